#pragma once

// Everything but io/: that needs nlohmann-json, see <pith/io.hpp>.
#include <pith/attention.hpp>
#include <pith/core.hpp>
#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>
#include <pith/nn.hpp>
#include <pith/peft.hpp>
#include <pith/version.hpp>
