#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>

#include "fuzz/fuzz.hpp"
#include "fuzz/twins.hpp"
#include "support/tiny_model.hpp"

namespace pith_fuzz {

inline constexpr pith::Index tiny_vocab = 11;

inline const pith::Decoder<float>& tiny_decoder() {
  static const pith::Decoder<float> decoder = [] {
    pith::DecoderConfig config = pith_test::tiny_config();
    config.vocab_size = tiny_vocab;
    config.hidden_size = 8;
    config.intermediate_size = 8;
    config.head_dim = 4;
    return pith_test::random_decoder<float>(config);
  }();
  return decoder;
}

/// The ways of keeping a session's rows: the name of a policy, of a strategy, and a budget.
struct TinyKind {
  std::string_view policy, merge;
  pith::Index rows;
};
inline constexpr std::array tiny_ways{
    TinyKind{"dense", "drop", 6},       TinyKind{"window", "drop", 6},     TinyKind{"sinks", "drop", 6},
    TinyKind{"h2o", "drop", 6},         TinyKind{"h2o-cache", "drop", 6},  TinyKind{"scissorhands", "drop", 6},
    TinyKind{"tova", "drop", 5},        TinyKind{"observed", "drop", 6},   TinyKind{"snapkv", "drop", 6},
    TinyKind{"adakv", "drop", 6},       TinyKind{"csp", "drop", 6},        TinyKind{"text-prior", "drop", 6},
    TinyKind{"expected", "drop", 6},    TinyKind{"critical", "drop", 6},   TinyKind{"knorm", "averaged", 6},
    TinyKind{"keydiff", "drop", 6},     TinyKind{"lagkv", "drop", 12},     TinyKind{"cur", "drop", 8},
    TinyKind{"chunkkv", "drop", 16},    TinyKind{"random", "drop", 6},     TinyKind{"h2o", "d2o", 6},
    TinyKind{"snapkv", "pivotal", 6},   TinyKind{"tova", "weighted", 4},   TinyKind{"h2o-cache", "values-only", 6},
    TinyKind{"adakv", "normalized", 6}, TinyKind{"window", "averaged", 6}, TinyKind{"leverage", "drop", 6},
    TinyKind{"non-causal", "drop", 6},  TinyKind{"compactor", "drop", 8},  TinyKind{"capkv", "drop", 6},
    TinyKind{"rkv", "drop", 8},         TinyKind{"rkv", "averaged", 5}};
inline constexpr std::size_t tiny_kinds = tiny_ways.size();

/// The way that a byte chooses. High bytes choose those that came after the first 26: older inputs keep their meaning.
inline std::size_t tiny_kind(std::size_t byte) { return byte < 208 ? byte % 26 : 26 + (byte - 208) % (tiny_kinds - 26); }

inline pith::AnyPolicy<float> tiny_policy(std::size_t kind, std::size_t layer = 0) {
  const pith::Decoder<float>& decoder = tiny_decoder();
  static const auto rope = std::make_shared<const pith::Rope<float>>(decoder.config().rope());
  static const auto o_proj = [&] {
    std::vector<std::shared_ptr<const pith::Matrix<float>>> of_layers;
    for (const auto& of : decoder.weights().layers) {
      pith::Matrix<float> weight(8, 16);
      of.o_proj.copy_weight(0, weight);
      of_layers.push_back(std::make_shared<const pith::Matrix<float>>(std::move(weight)));
    }
    return of_layers;
  }();
  [[maybe_unused]] static const bool complete = [] {
    for (const auto& entry : pith::policy_catalogue<float>())
      demand(std::any_of(tiny_ways.begin(), tiny_ways.end(), [&](const TinyKind& way) { return way.policy == entry.name; }),
             "sessions are tried under every policy of the catalogue");
    return true;
  }();
  return pith::make_policy<float>(tiny_ways[kind].policy, tiny_ways[kind].rows, {rope, o_proj[layer]});
}

inline pith::Session<float, float> start_tiny(std::size_t kind,
                                              const pith::SessionOptions& options = {
                                                  .max_prompt = 12, .max_tokens = 40, .max_generated = 12, .max_draft = 4}) {
  const std::array policies{tiny_policy(kind, 0), tiny_policy(kind, 1)};
  return tiny_decoder().start<float>(policies, options, pith::make_merge<float>(tiny_ways[kind].merge));
}

inline std::span<const pith::Token> tiny_prompt() {
  static const std::vector<pith::Token> tokens = pith_test::random_tokens(9, tiny_vocab);
  return tokens;
}

inline bool same_logits(const pith::ConstMatrixRef<float>& a, const pith::ConstMatrixRef<float>& b) { return pith_test::same_bits(a, b); }

/// Whether two sessions are the same to the last bit, as far as they show it.
inline bool same_session(const pith::Session<float, float>& a, const pith::Session<float, float>& b) {
  if (a.next_position() != b.next_position() || a.adapter() != b.adapter() || !same_logits(a.logits(), b.logits())) return false;
  for (std::size_t layer = 0; layer < a.caches().size(); ++layer)
    if (!same_cache(a.caches()[layer], b.caches()[layer])) return false;
  return true;
}

}  // namespace pith_fuzz
