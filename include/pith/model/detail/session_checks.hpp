#pragma once

#include <pith/attention/rope_options.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/policy_facts.hpp>
#include <pith/model/config.hpp>

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

}}}  // namespace pith::v0::detail
