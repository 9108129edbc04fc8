#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <pith/pith.hpp>

#include "command_line.hpp"

// Reads --policy NAME:ROWS, for several examples.
namespace example {

inline constexpr const char* policy_usage =
    R"(  --policy NAME:ROWS   a policy of the catalogue (policy_shootout --table lists it) at a budget of rows a head       [sinks:4:252]
           sinks:S:N   the first S tokens and the newest N
           h2o:H:R     H heavy hitters and the newest R; h2o-cache:H:R: the same at cache positions, for texts beyond the
                       length that the model was trained on)";

inline std::vector<pith::Index> numbers(const std::string& what, const std::string& text, char separator, pith::Index least,
                                        pith::Index most) {
  std::vector<pith::Index> out;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(separator, at), text.size());
    out.push_back(number(what, text.substr(at, end - at), least, most));
    at = end + 1;
  }
  return out;
}

/// One policy of the catalogue per layer, since some need the layer's weights.
inline std::vector<pith::AnyPolicy<float>> per_layer(const pith::PolicyEntry<float>& entry, pith::Index rows,
                                                     const pith::Decoder<float>& decoder) {
  std::vector<pith::AnyPolicy<float>> policies;
  for (pith::Index l = 0; l < decoder.config().num_hidden_layers; ++l) {
    const pith::LayerWeights<float>& layer = decoder.weights().layers[static_cast<std::size_t>(l)];
    auto o_proj = std::make_shared<pith::Matrix<float>>(layer.o_proj.out(), layer.o_proj.in());
    if (entry.needs_o_proj) layer.o_proj.copy_weight(0, *o_proj);
    policies.push_back(entry.make(rows, {decoder.rope(l), o_proj, static_cast<float>(decoder.config().layer(l).attention_scale)}));
  }
  return policies;
}

inline pith::AnyPolicy<float> policy_argument(const std::string& text, const pith::Decoder<float>& decoder) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string name = text.substr(0, colon);
  std::vector<pith::Index> n{256};
  if (colon < text.size()) n = numbers("a number of --policy " + text, text.substr(colon + 1), ':', 0, 1'000'000'000);
  if (name == "sinks" && n.size() == 2) return pith::SinkWindow{.sinks = n[0], .window = n[1]};
  if (name == "h2o" && n.size() == 2) return pith::HeavyHitter{.heavy = n[0], .recent = n[1]};
  if (name == "h2o-cache" && n.size() == 2) return pith::AtCachePositions(pith::HeavyHitter{.heavy = n[0], .recent = n[1]});
  if (n.size() > 1) throw UsageError("--policy " + text + ": expected NAME:ROWS, sinks:S:N, h2o:H:R or h2o-cache:H:R");
  return pith::make_policy(name, n[0], {decoder.rope(), {}, static_cast<float>(decoder.config().layer(0).attention_scale)});
}

}  // namespace example
