#pragma once

#include <pith/kv/any_policy.hpp>
#include <pith/kv/attention_policies.hpp>
#include <pith/kv/budget.hpp>
#include <pith/kv/catalogue.hpp>
#include <pith/kv/codec.hpp>
#include <pith/kv/critical_values.hpp>
#include <pith/kv/cross_self.hpp>
#include <pith/kv/expected_attention.hpp>
#include <pith/kv/key_policies.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/protect.hpp>
#include <pith/kv/snapshot.hpp>
#include <pith/kv/window.hpp>
#include <pith/kv/wrapped_policy.hpp>
