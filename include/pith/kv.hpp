#pragma once

// The KV cache and its eviction policies.
#include <pith/kv/any_policy.hpp>                   // a policy chosen at run time
#include <pith/kv/budget.hpp>                       // rows at a compression ratio
#include <pith/kv/catalogue.hpp>                    // every policy by name: make_policy("h2o", rows)
#include <pith/kv/kivi.hpp>                         // KIVI: rows of 2 to 8 bits, as codes
#include <pith/kv/kv_cache.hpp>                     // the keys and values of one layer under a policy
#include <pith/kv/layer_scores.hpp>                 // the scores of all heads, for heads that decide together
#include <pith/kv/options.hpp>                      // what a cache and an append() are told
#include <pith/kv/policies/adaptive.hpp>            // AdaKV: heads share one budget
#include <pith/kv/policies/at_cache_positions.hpp>  // a policy at cache positions, for endless streams
#include <pith/kv/policies/chunkwise.hpp>           // ChunkKV: whole chunks stay or go
#include <pith/kv/policies/critical_values.hpp>     // CriticalKV: weighed by what the values add to the output
#include <pith/kv/policies/csp.hpp>                 // CSP: cross- and self-attention of images and text apart
#include <pith/kv/policies/cur.hpp>                 // CurDKV: leverage of keys and values
#include <pith/kv/policies/dense.hpp>               // keeps everything
#include <pith/kv/policies/expected_attention.hpp>  // what queries to come are expected to look at
#include <pith/kv/policies/heavy_hitter.hpp>        // H2O: what got most attention, and the newest
#include <pith/kv/policies/key_diff.hpp>            // KeyDiff: keys unlike the others stay
#include <pith/kv/policies/key_norm.hpp>            // small keys stay
#include <pith/kv/policies/lagkv.hpp>               // LagKV: what spreads more than the tokens behind
#include <pith/kv/policies/observed_attention.hpp>  // what a prompt looked at, on average
#include <pith/kv/policies/prompt_only.hpp>         // evict when a prompt ends, never while decoding
#include <pith/kv/policies/protect.hpp>             // some rows stay whatever a policy says
#include <pith/kv/policies/pyramid.hpp>             // PyramidKV: more rows for the first layers
#include <pith/kv/policies/random.hpp>              // drawn at random, for comparison
#include <pith/kv/policies/scissorhands.hpp>        // what was looked at most often
#include <pith/kv/policies/sink_window.hpp>         // StreamingLLM: the first tokens and the newest
#include <pith/kv/policies/snapkv.hpp>              // SnapKV: what the end of a prompt looks at
#include <pith/kv/policies/tova.hpp>                // drops what the newest query looks at least
#include <pith/kv/policies/window.hpp>              // the newest rows
#include <pith/kv/policy.hpp>                       // what a policy is, for writing your own
#include <pith/kv/prefix.hpp>                       // rows shared by many conversations
#include <pith/kv/prefix_tuning.hpp>                // prefix tuning: learned keys and values in front
#include <pith/kv/prompt_buffer.hpp>                // room for a prompt longer than the budget
#include <pith/kv/query_window.hpp>                 // the last queries of a prompt, however it is cut
#include <pith/kv/ranked_row.hpp>                   // rows in the order they leave
#include <pith/kv/snapshot.hpp>                     // all that a cache holds, as plain numbers
#include <pith/kv/wrapped_policy.hpp>               // a policy inside another one
