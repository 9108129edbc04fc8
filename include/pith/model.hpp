#pragma once

// A decoder by description, and its sessions.
// compact.hpp (compaction of a session's caches) needs more of Eigen: include it by name.
#include <pith/model/config.hpp>             // the sizes and constants of a decoder, as in config.json
#include <pith/model/decoder.hpp>            // Decoder: configuration and weights, shared by its sessions
#include <pith/model/look.hpp>               // what the observer of a proxy pass is shown
#include <pith/model/proxy_scores.hpp>       // KVzip, Finch: rows scored by a proxy pass
#include <pith/model/session.hpp>            // Session: one conversation, with a KV cache per layer
#include <pith/model/session_options.hpp>    // options of a session and of a prompt
#include <pith/model/speculative_batch.hpp>  // speculative decoding of many conversations in the same passes
#include <pith/model/splice.hpp>             // puts images into a prompt
#include <pith/model/weights.hpp>            // the weights of a decoder
