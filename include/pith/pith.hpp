#pragma once

// All of pith but pith::io and pith::text, which need other libraries: <pith/io.hpp>, <pith/text.hpp>.
#include <pith/attention.hpp>  // attention over cached rows
#include <pith/core.hpp>       // types, views, errors, memory, threads
#include <pith/decode.hpp>     // sampling and speculative decoding
#include <pith/kv.hpp>         // the KV cache and its eviction policies
#include <pith/merge.hpp>      // token merging
#include <pith/model.hpp>      // a decoder by description and its conversations
#include <pith/nn.hpp>         // layers
#include <pith/peft.hpp>       // LoRA and its relatives
#include <pith/version.hpp>    // PITH_VERSION
#include <pith/vision.hpp>     // image towers
