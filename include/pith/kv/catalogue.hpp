#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/policies/adaptive.hpp>
#include <pith/kv/policies/at_cache_positions.hpp>
#include <pith/kv/policies/cap_kv.hpp>
#include <pith/kv/policies/chunkwise.hpp>
#include <pith/kv/policies/compactor.hpp>
#include <pith/kv/policies/critical_values.hpp>
#include <pith/kv/policies/csp.hpp>
#include <pith/kv/policies/cur.hpp>
#include <pith/kv/policies/dense.hpp>
#include <pith/kv/policies/expected_attention.hpp>
#include <pith/kv/policies/growing.hpp>
#include <pith/kv/policies/heavy_hitter.hpp>
#include <pith/kv/policies/key_diff.hpp>
#include <pith/kv/policies/key_norm.hpp>
#include <pith/kv/policies/lagkv.hpp>
#include <pith/kv/policies/lazy_layer.hpp>
#include <pith/kv/policies/leverage.hpp>
#include <pith/kv/policies/newest.hpp>
#include <pith/kv/policies/non_causal.hpp>
#include <pith/kv/policies/observed_attention.hpp>
#include <pith/kv/policies/per_head.hpp>
#include <pith/kv/policies/prompt_only.hpp>
#include <pith/kv/policies/protect.hpp>
#include <pith/kv/policies/pyramid.hpp>
#include <pith/kv/policies/random.hpp>
#include <pith/kv/policies/rkv.hpp>
#include <pith/kv/policies/scissorhands.hpp>
#include <pith/kv/policies/sink_window.hpp>
#include <pith/kv/policies/snapkv.hpp>
#include <pith/kv/policies/threshold.hpp>
#include <pith/kv/policies/tova.hpp>
#include <pith/kv/policies/window.hpp>

namespace pith { inline namespace v0 {

// The list of all policies, for choosing one by name at run time: make_policy("h2o", 1024).

/// Parts of the model that some policies need.
template <class S = float> struct PolicyModel {
  std::shared_ptr<const Rope<S>> rope = {};      ///< expected attention: Decoder::rope(layer)
  std::shared_ptr<const Matrix<S>> o_proj = {};  ///< critical values: the layer's output projection
  S attention_scale = 0;                         ///< expected attention: LayerSpec::attention_scale; 0: 1/√head_dim
};

/// One policy of the catalogue: its name, a description and a factory that takes a budget and sets the other parameters in proportion.
template <class S = float> struct PolicyEntry {
  std::string_view name;                       ///< as make_policy() takes it
  std::string_view keeps, needs, cost, paper;  ///< a line each; `cost` is per step, on top of attention
  AnyPolicy<S> (*make)(Index rows, const PolicyModel<S>& model);
  bool needs_rope = false, needs_o_proj = false;
};

namespace detail {
// Small budgets are shared out, because a policy may not protect more rows than its budget.
inline Index usual_sinks(Index rows) { return (std::min<Index>)(4, rows / 2); }
inline Index usual_window(Index rows) { return std::clamp<Index>(rows / 2, 1, 32); }
}  // namespace detail

/// Every policy of the library. Tests, benchmarks, the shoot-out and the README read this list: a new policy is a struct and an entry here.
template <class S = float> std::span<const PolicyEntry<S>> policy_catalogue() {
  using Model = const PolicyModel<S>&;
  constexpr std::string_view none = "nothing", weights = "attention weights", window_weights = "weights of the last queries", keys = "keys",
                             rows_read = "keys and values", one_row = "one row moved, however many rows",
                             adds = "one add per weight, one look at each score", once = "none after the prompt";
  static const PolicyEntry<S> entries[] = {
      {"dense", "everything, up to `max_tokens`", none, none, "", [](Index, Model) -> AnyPolicy<S> { return Dense{}; }},
      {"window", "the newest rows", none, one_row, "2004.05150", [](Index rows, Model) -> AnyPolicy<S> { return Window{rows}; }},
      {"sinks", "the first tokens and the newest, read at cache positions (StreamingLLM)", none,
       "one row moved, one more rotation of the query", "2309.17453",
       [](Index rows, Model) -> AnyPolicy<S> {
         return SinkWindow{.sinks = detail::usual_sinks(rows), .window = rows - detail::usual_sinks(rows)};
       }},
      {"h2o", "rows with most accumulated attention, and the newest", weights, adds, "2306.14048",
       [](Index rows, Model) -> AnyPolicy<S> { return HeavyHitter{.heavy = rows / 2, .recent = rows - rows / 2}; }},
      {"h2o-cache", "the same, read at cache positions", weights, "… and a rotation of each key behind the row that left", "2306.14048",
       [](Index rows, Model) -> AnyPolicy<S> { return AtCachePositions(HeavyHitter{.heavy = rows / 2, .recent = rows - rows / 2}); }},
      {"scissorhands", "rows marked most often as above average, and the newest; half leave at once", weights,
       "a compare and an add per weight", "2305.17118",
       [](Index rows, Model) -> AnyPolicy<S> { return Scissorhands{.keep = rows, .recent = (std::min<Index>)(10, rows / 4)}; }},
      {"tova", "rows with most attention from the newest query, the same in all heads", "weights of the last query", adds, "2401.06104",
       [](Index rows, Model) -> AnyPolicy<S> { return Tova{rows}; }},
      {"observed", "rows by average attention over the prompt", weights, once, "2306.14048",
       [](Index rows, Model) -> AnyPolicy<S> { return ObservedAttention{rows}; }},
      {"snapkv", "rows with most attention from a prompt's last queries, and their neighbours", window_weights, once, "2404.14469",
       [](Index rows, Model) -> AnyPolicy<S> { return SnapKv{.keep = rows, .window = detail::usual_window(rows)}; }},
      {"adakv", "SnapKV's, with a budget that the heads of a layer share", window_weights, once, "2407.11550",
       [](Index rows, Model) -> AnyPolicy<S> { return Adaptive(SnapKv{.keep = rows, .window = detail::usual_window(rows)}); }},
      {"csp", "rows with most attention within a kind of token (text, image) and across kinds, a list each", window_weights, once,
       "2412.04652",
       [](Index rows, Model) -> AnyPolicy<S> {
         const Index recent = (std::max<Index>)(1, rows / 4);
         return Csp{.heavy = rows - recent, .recent = recent};
       }},
      {"text-prior", "all text, and heavy hitters of the rest (LOOK-M)", weights, once, "2406.18139",
       [](Index rows, Model) -> AnyPolicy<S> {
         return Protect(PromptOnly(HeavyHitter{.heavy = rows / 2, .recent = rows - rows / 2}), {.kind = TokenKind::text});
       }},
      {"expected", "rows with most expected attention from a Gaussian of future queries", "queries, keys and values", once, "2510.00636",
       [](Index rows, Model model) -> AnyPolicy<S> {
         return ExpectedAttention<S>{.rope = model.rope, .keep = rows, .sinks = detail::usual_sinks(rows), .scale = model.attention_scale};
       },
       true},
      {"critical", "SnapKV's, weighted by what a value adds to the output", "weights of the last queries, values", once, "2502.03805",
       [](Index rows, Model model) -> AnyPolicy<S> {
         return CriticalValues<SnapKv, S>(SnapKv{.keep = rows, .window = detail::usual_window(rows)}, model.o_proj);
       },
       false, true},
      {"knorm", "keys of small norm", keys, "a norm per row appended, one look at each score", "2406.11430",
       [](Index rows, Model) -> AnyPolicy<S> { return KeyNorm{rows}; }},
      {"keydiff", "keys least similar to the mean key; evicts a quarter of the budget at a time", keys,
       "two sweeps of the keys for each quarter that leaves", "2504.15364",
       [](Index rows, Model) -> AnyPolicy<S> { return KeyDiff{.keep = rows, .rows_per_eviction = (std::max<Index>)(1, rows / 4)}; }},
      {"lagkv", "tokens whose keys and values spread more than those after them", rows_read, once, "2504.04704",
       [](Index rows, Model) -> AnyPolicy<S> {
         return LagKv{.keep = rows, .sinks = detail::usual_sinks(rows), .lag = std::clamp<Index>(rows / 4, 2, 128)};
       }},
      {"cur", "keys and values of high leverage in their block", rows_read, once, "2509.15038",
       [](Index rows, Model) -> AnyPolicy<S> { return Cur{.keep = rows, .sinks = detail::usual_sinks(rows)}; }},
      {"leverage", "keys, without rope, that lie outside of what the others span", keys, once, "2507.08143",
       [](Index rows, Model model) -> AnyPolicy<S> {
         return Leverage<S>{.rope = model.rope, .keep = rows, .sinks = detail::usual_sinks(rows)};
       },
       true},
      {"non-causal", "rows that their chunk's queries look at, before or behind", "queries, keys and values", once, "2507.08143",
       [](Index rows, Model) -> AnyPolicy<S> { return NonCausal{.keep = rows, .sinks = detail::usual_sinks(rows)}; }},
      {"compactor", "leverage of keys and non-causal attention together", "queries, keys and values", once, "2507.08143",
       [](Index rows, Model model) -> AnyPolicy<S> {
         const Index sinks = detail::usual_sinks(rows);
         return Compactor<S>{.leverage = {.rope = model.rope, .keep = rows, .sinks = sinks},
                             .attention = {.keep = rows, .sinks = sinks},
                             .recent = (std::min<Index>)(4, rows - sinks)};
       },
       true},
      {"capkv", "values that lie outside of what the others span, by expected attention", "queries, keys and values", once, "",
       [](Index rows, Model model) -> AnyPolicy<S> {
         return CapKv<S>{.rope = model.rope, .keep = rows, .sinks = detail::usual_sinks(rows)};
       },
       true},
      {"rkv", "rows that the last queries attend to and that are not near copies of others; an eighth leaves at once",
       "the last queries, keys", "a copy of each query; cosines of all pairs for each eighth that leaves", "2505.24133",
       [](Index rows, Model) -> AnyPolicy<S> {
         const Index window = (std::min<Index>)(8, (std::max<Index>)(1, rows / 2));
         return RKv{.keep = rows, .window = window, .rows_per_eviction = std::clamp<Index>(rows / 8, 1, rows - window + 1)};
       }},
      {"chunkkv", "whole chunks of neighbours, by the norm of their keys", keys, once, "2502.00299",
       [](Index rows, Model) -> AnyPolicy<S> { return Chunkwise(KeyNorm{rows}, (std::max<Index>)(1, (std::min<Index>)(20, rows / 8))); }},
      {"random", "random rows (baseline)", none, "a hash per row appended, one look at each score", "",
       [](Index rows, Model) -> AnyPolicy<S> { return Random{rows}; }},
  };
  return entries;
}

/// Makes the policy of this name with a budget of `rows` rows per head. Texts longer than the model was trained on need cache positions
/// ("sinks", "h2o-cache") or "window"; under all other policies distances grow with the text.
///
/// Throws   UnsupportedError naming every policy if none has this name, ShapeError if `model` lacks a part that the policy needs
template <class S = float> AnyPolicy<S> make_policy(std::string_view name, Index rows, const PolicyModel<S>& model = {}) {
  std::string known;
  for (const PolicyEntry<S>& entry : policy_catalogue<S>()) {
    known += known.empty() ? detail::text(entry.name) : detail::text(", ", entry.name);
    if (entry.name != name) continue;
    if (rows < 1) raise<ShapeError>("pith::make_policy: ", rows, " rows for '", name, "', expected 1 or more");
    if ((entry.needs_rope && !model.rope) || (entry.needs_o_proj && !model.o_proj))
      raise<ShapeError>("pith::make_policy: '", name, "' needs PolicyModel::", entry.needs_rope ? "rope" : "o_proj", " of the model");
    return entry.make(rows, model);
  }
  raise<UnsupportedError>("pith::make_policy: no policy '", name, "': ", known);
}

}}  // namespace pith::v0
