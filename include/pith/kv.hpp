#pragma once

#include <pith/kv/any_policy.hpp>
#include <pith/kv/attention_policies.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/window.hpp>
