#pragma once

#include <cstdint>
#include <utility>

#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/random_matrix.hpp"

namespace pith_test {

/// A random term of that rank.
template <class S> pith::LowRankTerm<S> random_term(pith::Index out, pith::Index rank, pith::Index in, std::uint64_t seed) {
  return {random_matrix<S>(rank, in, seed), random_matrix<S>(rank, out, seed + 1), random_matrix<S>(rank, 1, seed + 2)};
}

/// LoRA of that rank on every projection and the head of a decoder.
template <class S> pith::ModelAdapter<S> random_adapter(const pith::Decoder<S>& decoder, pith::Index rank, std::uint64_t seed) {
  const pith::AdapterTarget target = decoder.adapter_target();
  pith::AdapterParts<S> parts;
  parts.layers.resize(static_cast<std::size_t>(target.num_layers));
  for (auto& layer : parts.layers)
    for (std::size_t p = 0; p < pith::num_projections; ++p)
      layer.projections[p].terms.push_back(
          random_term<S>(target.out(pith::Projection(p)), rank, target.in(pith::Projection(p)), seed += 3));
  parts.lm_head.terms.push_back(random_term<S>(target.vocab, rank, target.hidden, seed += 3));
  return {target, std::move(parts)};
}

/// Everything an adapter can do, on everything it can do it to: DoRA, biases, replaced projections, norms, table and head.
template <class S> pith::ModelAdapter<S> thorough_adapter(const pith::Decoder<S>& decoder, std::uint64_t seed) {
  using namespace pith;
  const AdapterTarget t = decoder.adapter_target();
  AdapterParts<S> parts = random_adapter<S>(decoder, 3, seed).parts();
  const auto vector = [&](Index n) { return Vector<S>(random_matrix<S>(n, 1, ++seed).col(0)); };
  LayerAdapter<S>& first = parts.layers.front();
  first[Projection::q].out_scale = vector(t.q);
  first[Projection::k].bias = vector(t.kv);
  first[Projection::up] = {.replacement = AnyLinear<S>(Linear<S>(random_matrix<S>(t.intermediate, t.hidden, ++seed, 0.3)))};
  first[Projection::down] = {};
  first[NormPlace::pre_attention] = RmsNorm<S>(vector(t.hidden));
  parts.layers.back()[NormPlace::pre_mlp] = RmsNorm<S>(vector(t.hidden));
  parts.norm = RmsNorm<S>(vector(t.hidden));
  parts.lm_head = {.replacement = AnyLinear<S>(Linear<S>(random_matrix<S>(t.vocab, t.hidden, ++seed)))};
  parts.embed_tokens = Embedding<S>(random_matrix<S>(t.vocab, t.hidden, ++seed));
  return {t, std::move(parts)};
}

}  // namespace pith_test
