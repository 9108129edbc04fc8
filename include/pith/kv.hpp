#pragma once

// The KV cache and its eviction policies.
// Not here, but included by name: compact.hpp and compact_options.hpp (Attention Matching, which needs more of Eigen), and policy_laws.hpp
// with its policy_law_options.hpp (for tests of your own policies).
#include <pith/kv/any_policy.hpp>                   // a policy chosen at run time
#include <pith/kv/attend.hpp>                       // attention over a cache, with memory of its own
#include <pith/kv/budget.hpp>                       // rows at a compression ratio
#include <pith/kv/catalogue.hpp>                    // every policy by name: make_policy("h2o", rows)
#include <pith/kv/kept_rows.hpp>                    // rows that stay, as a prefix or in their caches
#include <pith/kv/kivi.hpp>                         // KIVI: rows of 2 to 8 bits, as codes
#include <pith/kv/kv_cache.hpp>                     // the keys and values of one layer under a policy
#include <pith/kv/layer_scores.hpp>                 // the scores of all heads, for heads that decide together
#include <pith/kv/options.hpp>                      // options of a cache and of append()
#include <pith/kv/policies/adaptive.hpp>            // AdaKV: heads share one budget
#include <pith/kv/policies/at_cache_positions.hpp>  // a policy at cache positions, for endless streams
#include <pith/kv/policies/cap_kv.hpp>              // CapKV: values that lie outside of what others span
#include <pith/kv/policies/chunkwise.hpp>           // ChunkKV: keeps or evicts whole chunks of neighbours
#include <pith/kv/policies/compactor.hpp>           // Compactor: leverage and non-causal attention together
#include <pith/kv/policies/critical_values.hpp>     // CriticalKV: weighted by what values add to the output
#include <pith/kv/policies/csp.hpp>                 // CSP: ranks rows of text and images by self and by cross attention
#include <pith/kv/policies/cur.hpp>                 // CurDKV: rows of high leverage in keys and values
#include <pith/kv/policies/dense.hpp>               // keeps every row
#include <pith/kv/policies/expected_attention.hpp>  // rows that future queries are expected to attend to
#include <pith/kv/policies/growing.hpp>             // a budget that grows with the text
#include <pith/kv/policies/heavy_hitter.hpp>        // H2O: the rows with most attention so far, and the newest
#include <pith/kv/policies/key_diff.hpp>            // KeyDiff: the keys least similar to the mean key
#include <pith/kv/policies/key_norm.hpp>            // KNorm: the keys of smallest norm
#include <pith/kv/policies/lagkv.hpp>               // LagKV: tokens that spread more than the tokens after them
#include <pith/kv/policies/lazy_layer.hpp>          // SimLayerKV: layers that look only at sinks and the newest rows
#include <pith/kv/policies/leverage.hpp>            // leverage: keys that lie outside of what others span
#include <pith/kv/policies/newest.hpp>              // the newest rows, by score, for wrappers
#include <pith/kv/policies/non_causal.hpp>          // rows that their chunk's queries look at, before or behind
#include <pith/kv/policies/observed_attention.hpp>  // the rows with most attention per query of the prompt
#include <pith/kv/policies/per_head.hpp>            // a budget for each head: DuoAttention, LU-KV
#include <pith/kv/policies/prompt_only.hpp>         // evicts when a prompt ends, never while decoding
#include <pith/kv/policies/protect.hpp>             // keeps chosen rows regardless of a policy's scores
#include <pith/kv/policies/pyramid.hpp>             // PyramidKV: more rows for the first layers
#include <pith/kv/policies/random.hpp>              // random rows, the baseline
#include <pith/kv/policies/rkv.hpp>                 // R-KV: attention against redundancy, while decoding
#include <pith/kv/policies/scissorhands.hpp>        // Scissorhands: the rows most often above average
#include <pith/kv/policies/sink_window.hpp>         // StreamingLLM: the first tokens and the newest
#include <pith/kv/policies/snapkv.hpp>              // SnapKV: the rows that a prompt's last queries attend to
#include <pith/kv/policies/threshold.hpp>           // DMS: a threshold instead of a budget
#include <pith/kv/policies/tova.hpp>                // TOVA: drops the row that the newest query attends to least
#include <pith/kv/policies/window.hpp>              // sliding window: the newest rows
#include <pith/kv/policy.hpp>                       // the interface of a policy, for writing your own
#include <pith/kv/policy_checks.hpp>                // checks of single numbers, for the check() of a policy
#include <pith/kv/policy_facts.hpp>                 // the constant answers of a policy
#include <pith/kv/prefix.hpp>                       // rows shared by many conversations
#include <pith/kv/prefix_tuning.hpp>                // prefix tuning: learned keys and values in front
#include <pith/kv/prompt_buffer.hpp>                // memory for a prompt longer than the budget
#include <pith/kv/query_window.hpp>                 // the last queries of a prompt that comes in pieces
#include <pith/kv/ranked_row.hpp>                   // rows in order of eviction
#include <pith/kv/reference_queries.hpp>            // a sample of queries, for compaction
#include <pith/kv/row_budget.hpp>                   // budgets that heads, layers or a model share
#include <pith/kv/snapshot.hpp>                     // the whole state of a cache as plain numbers
#include <pith/kv/wrapped_policy.hpp>               // the base of policies that wrap another policy
