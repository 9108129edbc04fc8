#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

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

/// What adapters beyond LoRA do: turned and scaled inputs, Kronecker products, shared projections, replaced rows of table and head.
template <class S> pith::ModelAdapter<S> other_adapter(const pith::Decoder<S>& decoder, std::uint64_t seed) {
  using namespace pith;
  const AdapterTarget t = decoder.adapter_target();
  AdapterParts<S> parts;
  parts.layers.resize(static_cast<std::size_t>(t.num_layers));
  const auto shared = std::make_shared<const VeraProjections<S>>(
      VeraProjections<S>{random_matrix<S>(5, t.hidden, ++seed, 0.3), random_matrix<S>(5, t.intermediate, ++seed, 0.3)});
  const auto vector = [&](Index n) { return Vector<S>(random_matrix<S>(n, 1, ++seed).col(0)); };
  for (LayerAdapter<S>& layer : parts.layers) {
    layer[Projection::q].turns.push_back({.blocks = random_matrix<S>(t.hidden, 2, ++seed)});
    layer[Projection::k].out_scale = vector(t.kv);
    const Matrix<S> w1 = random_matrix<S>(t.hidden / 2, t.q / 2, ++seed, 0.3), w2 = random_matrix<S>(2, 2, ++seed);
    layer[Projection::o].more.push_back(std::make_shared<const KroneckerChange<S>>(w1, w2));
    const Vector<S> d = vector(5), b = vector(t.intermediate);
    layer[Projection::up].more.push_back(std::make_shared<const VeraChange<S>>(shared, t.hidden, d, b));
    layer[Projection::down].turns.push_back({.blocks = random_matrix<S>(t.intermediate, 1, ++seed)});
  }
  const std::vector<Token> ids{3, static_cast<Token>(t.vocab - 1)};
  parts.lm_head.more.push_back(std::make_shared<const ReplacedRows<S>>(t.vocab, ids, random_matrix<S>(2, t.hidden, ++seed)));
  parts.embedding = {random_matrix<S>(t.vocab, 2, ++seed), random_matrix<S>(2, t.hidden, ++seed), ids,
                     random_matrix<S>(2, t.hidden, ++seed)};
  return {t, std::move(parts)};
}

/// An adapter with the factors of its terms in bfloat16, or (Wide) with those widened again: the same numbers in both types.
template <bool Wide, class S> pith::ModelAdapter<S> narrowed(const pith::ModelAdapter<S>& adapter) {
  using namespace pith;
  AdapterParts<S> parts = adapter.parts();
  const auto narrow = [](LinearAdapter<S>& overlay) {
    for (LowRankTerm<S>& term : overlay.terms) {
      auto rounded = LowRankTerm<S, bfloat16>::of(term);
      if (Wide)
        term = {rounded.a_rows.template cast<S>(), rounded.b_rows.template cast<S>(), term.gains};
      else
        overlay.narrow_terms.push_back(std::move(rounded));
    }
    if (!Wide) overlay.terms.clear();
  };
  for (auto& layer : parts.layers)
    for (LinearAdapter<S>& overlay : layer.projections) narrow(overlay);
  narrow(parts.lm_head);
  parts.embed_tokens = {};
  return {adapter.target(), std::move(parts)};
}

}  // namespace pith_test
