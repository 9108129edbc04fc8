#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <pith/attention/rope_options.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/policy_facts.hpp>
#include <pith/kv/prompt_buffer.hpp>
#include <pith/model/config.hpp>
#include <pith/model/session_options.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Refuses a policy that a layer cannot have. `turns`: it turns keys again and again; `exact`: rows are stored unrounded.
inline void check_layer_policy(const DecoderConfig& config, Index layer, const PolicyFacts& facts, bool turns, bool exact) {
  const LayerSpec spec = config.layer(layer);
  if (facts.traits.positions == RopePositions::cache && config.rope(spec.rope).scaling.type == RopeType::dynamic)
    raise<UnsupportedError>(
        "pith::Session: cache positions under dynamic rope: its angles change with the length; use RopePositions::text");
  if (facts.traits.needs_queries && spec.attention_softcap > 0)
    raise<UnsupportedError>("pith::Session: layer ", layer, " caps its scores at ", spec.attention_softcap,
                            ", and its policy predicts scores without a cap: choose another policy");
  if (turns && !exact)
    raise<UnsupportedError>("pith::Session: this policy turns keys again and again at cache positions, which rounded rows do not survive");
  if (turns && spec.window > 0)
    raise<UnsupportedError>("pith::Session: layer ", layer,
                            " is a sliding-window layer, which looks at text positions, and its policy turns keys: use RopePositions::text "
                            "there, with one policy per layer");
}

/// `soft`: rows of the adapter's prompt, which precede the prompt.
inline void check_prompt(Index n, Index soft, Index max_prompt, std::span<const TokenKind> kinds, const PrefillOptions& options) {
  if (n == 0) raise<ShapeError>("pith::Session::prefill: no tokens, expected 1 or more");
  if (n > max_prompt - soft)
    raise<CapacityError>("pith::Session::prefill: ", n, " tokens, expected at most max_prompt = ", max_prompt,
                         soft > 0 ? text(" less the ", soft, " of the adapter's prompt") : std::string(),
                         ": start the session with a larger max_prompt");
  const auto count = [n](std::string_view what, std::size_t found) {
    if (found != 0 && static_cast<Index>(found) != n)
      raise<ShapeError>("pith::Session::prefill: ", found, " ", what, " for ", n, " tokens");
  };
  count("kinds", kinds.size());
  count("masses", options.masses.size());
  count("places in sight", options.sight.size());
  for (std::size_t t = 0; t < options.sight.size(); ++t)
    if (options.sight[t] < static_cast<Position>(t) || options.sight[t] >= n)
      raise<ShapeError>("pith::Session::prefill: token ", t, " sees up to token ", options.sight[t], ", expected ", t, " .. ", n - 1);
}

/// Refuses to leave out tokens of a prompt where later layers could not read the others.
template <KvStorage T>
void check_pruning(const PrefillPruning& prune, const DecoderConfig& config, std::span<const KvCache<T>> caches, bool more) {
  if (prune.after == 0) return;
  if (prune.after < 1 || prune.after >= config.num_hidden_layers || prune.keep < 0)
    raise<ShapeError>("pith::Session::prefill: prune.after is ", prune.after, " and prune.keep ", prune.keep, ", expected 1 .. ",
                      config.num_hidden_layers - 1, " layers and 0 or more tokens");
  if (more) raise<UnsupportedError>("pith::Session::prefill: prune in a piece of a prompt: its last token comes later");
  for (Index l = prune.after; l < config.num_hidden_layers; ++l) {
    const PolicyFacts& facts = caches[static_cast<std::size_t>(l)].facts();
    if (facts.traits.positions == RopePositions::cache && facts.eviction == Eviction::by_age)
      raise<UnsupportedError>("pith::Session::prefill: prune leaves gaps between positions, and the window of layer ", l,
                              " reads at cache positions, which have none: give it RopePositions::text");
  }
}

/// The prompt buffer, where a cache may move into it: under a prompt-only policy the pieces of a prompt stay in the cache until the last.
template <KvStorage T>
KvPromptBuffer<T>* buffer_for(const KvCache<T>& cache, const AppendOptions& marks, KvPromptBuffer<T>* prompt_buffer) {
  return marks.phase != Phase::prefill || (marks.more && cache.facts().traits.prompt_only) ? nullptr : prompt_buffer;
}
/// Asks every layer whether it can read n tokens, before the first one changes.
template <KvStorage T>
void check_layers(std::span<const KvCache<T>> caches, Index n, const AppendOptions& marks, KvPromptBuffer<T>* prompt_buffer) {
  for (const KvCache<T>& cache : caches) CacheInternals::state(cache).check_room(n, marks, buffer_for(cache, marks, prompt_buffer));
}

inline void check_chunk(Index n, Index max_chunk) {
  if (n == 0) raise<ShapeError>("pith::Session::decode: no tokens, expected 1 or more");
  if (n > max_chunk)
    raise<CapacityError>("pith::Session::decode: ", n, " tokens, expected at most max_draft + 1 = ", max_chunk,
                         ": start the session with a larger max_draft, or use prefill()");
}

}}}  // namespace pith::v0::detail
