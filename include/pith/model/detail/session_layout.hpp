#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <span>

#include <pith/core/check.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/policy_facts.hpp>
#include <pith/kv/prompt_buffer.hpp>
#include <pith/merge/any_merge.hpp>
#include <pith/model/detail/decoder_model.hpp>
#include <pith/model/detail/session_checks.hpp>
#include <pith/model/detail/session_copies.hpp>
#include <pith/model/session_options.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The caches of a session, one for each layer, and what follows from them.
template <class S, KvStorage T> struct SessionLayout {
  /// Throws   ShapeError for a wrong number of policies, what check_layer_policy() and the caches throw
  SessionLayout(const DecoderModel<S>& model, std::span<const AnyPolicy<S>> per_layer, const SessionOptions& options,
                const AnyMerge<S>& merge) {
    const DecoderConfig& config = model.config;
    if (static_cast<Index>(per_layer.size()) != config.num_hidden_layers)
      raise<ShapeError>("pith::Decoder::start: ", per_layer.size(), " policies for ", config.num_hidden_layers, " layers");
    const AttentionShape shape = config.attention();
    Index home = 0, longest = 0;
    KvPromptBufferOptions needs{.keep_masses = options.keep_masses, .merges = merge.facts().merges, .executor = options.executor};
    caches.reserve(per_layer.size());
    for (std::size_t layer = 0; layer < per_layer.size(); ++layer) {
      const PolicyFacts facts = per_layer[layer].facts(shape);
      const LayerSpec& spec = config.layers[layer];
      const bool turns = facts.traits.positions == RopePositions::cache && facts.eviction == Eviction::by_score;
      detail::check_layer_policy(config, static_cast<Index>(layer), facts, turns, std::same_as<T, S>);
      keeps_all = keeps_all && facts.eviction == Eviction::never;
      needs.cache_positions = needs.cache_positions || turns;
      caches.emplace_back(shape, per_layer[layer],
                          KvCacheOptions{.max_chunk = 1,
                                         .max_draft = options.max_draft,
                                         .max_tokens = options.max_tokens,
                                         .max_generated = options.max_generated,
                                         .window = spec.window,
                                         .keep_masses = options.keep_masses,
                                         .executor = options.executor,
                                         .skip_below = options.skip_below,
                                         .scout_keys = options.scout_keys,
                                         .prefix = options.prefix,
                                         .layer = static_cast<Index>(layer)},
                          merge);
      home = (std::max)(home, caches.back().capacity());
      if (facts.budget != unlimited && options.max_prompt > 1) longest = (std::max)(longest, facts.budget + options.max_prompt);
      needs.stats = (std::max)(needs.stats, facts.stats);
      needs.reads_rows = needs.reads_rows || facts.traits.reads_rows || facts.admits;
      needs.combines = needs.combines || facts.combines;
    }
    if (longest > 0) prompt_buffer = std::make_unique<KvPromptBuffer<T>>(shape, longest, needs);
    rows = options.prefix.rows() + (std::max)(home, longest);
  }

  SessionCaches<KvCache<T>> caches;
  std::unique_ptr<KvPromptBuffer<T>> prompt_buffer;  ///< for prompts longer than the budget of some layer; the layers use it in turn
  Index rows = 0;                                    ///< the most rows that a head of any layer may hold, including its prefix
  bool keeps_all = true;                             ///< no layer evicts
};

}}}  // namespace pith::v0::detail
