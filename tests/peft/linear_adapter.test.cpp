#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/detail/rows_by_adapter.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/model_adapter.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

template <class S> LowRankTerm<S> overlay_term(Index out, Index rank, Index in, std::uint64_t seed) {
  return {random_matrix<S>(rank, in, seed), random_matrix<S>(rank, out, seed + 1), random_matrix<S>(rank, 1, seed + 2)};
}

template <class S> Vector<S> overlay_vector(Index n, std::uint64_t seed) { return random_matrix<S>(n, 1, seed).col(0); }

template <class S>
Matrix<S> overlaid(const AnyLinear<S>& base, const LinearAdapter<S>* overlay, const Matrix<S>& x, ExecutorRef executor = serial) {
  Workspace ws(base.workspace_bytes(x.rows(), executor.size()) + linear_adapter_workspace_bytes<S>(x.rows(), executor.size()), executor);
  Matrix<S> y(x.rows(), base.out());
  forward_adapted(base, overlay, x, y, ws);
  return y;
}

/// What y ← out_scale ∘ (x Wᵀ + b + Σ terms) + bias is, in double.
template <class S> Matrix<double> naive_overlay(const Linear<S>& base, const LinearAdapter<S>& o, const Matrix<S>& x) {
  Matrix<double> y = pith_test::times_transposed(x, base.weight());
  if (base.bias().size() > 0) y = pith_test::with_bias(y, base.bias());
  for (const LowRankTerm<S>& t : o.terms)
    y += pith_test::times(pith_test::with_scaled_columns(pith_test::times_transposed(x, t.a_rows), t.gains), t.b_rows);
  if (o.out_scale.size() > 0) y = pith_test::with_scaled_columns(y, o.out_scale);
  if (o.bias.size() > 0) y = pith_test::with_bias(y, o.bias);
  return y;
}

/// What rounding may do to it: every number is at most 1, so sums are bounded by their lengths.
template <class S> double overlay_bound(Index in, const LinearAdapter<S>& o) {
  double size = double(in) + 1, steps = double(in) + 4;
  for (const LowRankTerm<S>& t : o.terms) size += double(t.rank()) * double(in), steps += double(in) + double(t.rank()) + 2;
  return steps * double(std::numeric_limits<S>::epsilon()) * size;
}

}  // namespace

TEMPLATE_TEST_CASE("overlay: terms, scale and bias over a base, against double", "[peft]", float, double) {
  using S = TestType;
  for (const Index tokens : {1, 3, 70}) {
    const Index in = 37, out = 45;
    const Linear<S> base(random_matrix<S>(out, in, 1), overlay_vector<S>(out, 2));
    const AnyLinear<S> any(base);
    const Matrix<S> x = random_matrix<S>(tokens, in, 3);
    LinearAdapter<S> o;
    const auto check = [&] {
      INFO(tokens << " tokens, " << o.terms.size() << " terms, scaled " << o.out_scale.size() << ", bias " << o.bias.size());
      CHECK(near(overlaid(any, &o, x), naive_overlay(base, o, x), overlay_bound(in, o), 3));
      ThreadPool pool(2);
      CHECK(same_bits(overlaid(any, &o, x), overlaid(any, &o, x, pool)));
      const Matrix<S> all = overlaid(any, &o, x);
      for (Index t = 0; t < tokens; ++t) CHECK(same_bits(Matrix<S>(all.row(t)), overlaid(any, &o, Matrix<S>(x.row(t)))));
    };
    CHECK(o.empty());
    CHECK(same_bits(overlaid(any, &o, x), any.forward(x)));
    CHECK(same_bits(overlaid<S>(any, nullptr, x), any.forward(x)));
    o.terms.push_back(overlay_term<S>(out, 4, in, 10));
    check();
    o.terms.push_back(overlay_term<S>(out, 300, in, 20));  // more components than are added at a time
    check();
    o.out_scale = overlay_vector<S>(out, 30);
    check();
    o.bias = overlay_vector<S>(out, 31);
    check();
    o.terms.clear();
    check();
    CHECK_FALSE(o.empty());
  }
}

TEST_CASE("overlay: components in blocks are the chain of one call, bit for bit", "[peft]") {
  const Index in = 40, out = 50, rank = 3 * detail::overlay_block + 5;
  const AnyLinear<float> base(Linear<float>(random_matrix<float>(out, in, 1)));
  for (const Index tokens : {1, 2, 9}) {
    const Matrix<float> x = random_matrix<float>(tokens, in, 2);
    const LinearAdapter<float> o{.terms = {overlay_term<float>(out, rank, in, 3)}};
    Matrix<float> whole = base.forward(x);
    Workspace ws(low_rank_workspace_bytes<float>(tokens, rank));
    add_low_rank(x, o.terms[0], MatrixRef<float>(whole), ws);
    CHECK(same_bits(overlaid(base, &o, x), whole));
  }
}

TEMPLATE_TEST_CASE("overlay: factors in bfloat16 add what plain loops over them do, and the bits of the same numbers", "[peft]", float,
                   double) {
  using S = TestType;
  const Index in = 37, out = 45;
  const Linear<S> base(random_matrix<S>(out, in, 1), overlay_vector<S>(out, 2));
  const AnyLinear<S> any(base);
  for (const Index rank : {1, 13, 150}) {
    LowRankTerm<S> exact = overlay_term<S>(out, rank, in, 10);
    exact.gains[0] = rank == 1 ? S(1) : S(0);
    const auto narrow = LowRankTerm<S, bfloat16>::of(exact);
    const LowRankTerm<S> rounded{narrow.a_rows.template cast<S>(), narrow.b_rows.template cast<S>(), narrow.gains};
    REQUIRE_FALSE(same_bits(rounded.a_rows, exact.a_rows));
    LinearAdapter<S> o{.narrow_terms = {narrow}}, wide{.terms = {rounded}};
    CHECK_FALSE(o.empty());
    o.out_scale = wide.out_scale = overlay_vector<S>(out, 30);
    o.bias = wide.bias = overlay_vector<S>(out, 31);
    for (const Index tokens : {1, 2, 5, 70}) {
      INFO(rank << " components, " << tokens << " tokens");
      const Matrix<S> x = random_matrix<S>(tokens, in, 3), y = overlaid(any, &o, x);
      Eigen::MatrixXd expected(tokens, out);
      for (Index t = 0; t < tokens; ++t)
        for (Index c = 0; c < out; ++c) {
          double sum = double(base.bias()[c]);
          for (Index k = 0; k < in; ++k) sum += double(x(t, k)) * double(base.weight()(c, k));
          for (Index r = 0; r < rank; ++r) {
            double through = 0;
            for (Index k = 0; k < in; ++k) through += double(x(t, k)) * double(float(narrow.a_rows(r, k)));
            sum += through * double(narrow.gains[r]) * double(float(narrow.b_rows(r, c)));
          }
          expected(t, c) = double(o.out_scale[c]) * sum + double(o.bias[c]);
        }
      CHECK(near(y, expected, overlay_bound(in, wide), 3));
      CHECK(same_bits(y, overlaid(any, &wide, x)));
      ThreadPool pool(2);
      CHECK(same_bits(y, overlaid(any, &o, x, pool)));
      for (Index t = 0; t < tokens; ++t) CHECK(same_bits(Matrix<S>(y.row(t)), overlaid(any, &o, Matrix<S>(x.row(t)))));
    }
    const Vector<S> magnitude = overlay_vector<S>(out, 6);
    CHECK(same_bits(Matrix<S>(dora_scale(base, narrow, ConstVectorRef<S>(magnitude))),
                    Matrix<S>(dora_scale(base, rounded, ConstVectorRef<S>(magnitude)))));
    Matrix<double> merged = Matrix<double>::Zero(out, in), merged_wide = merged;
    o.change_weight(0, merged);
    wide.change_weight(0, merged_wide);
    CHECK(same_bits(merged, merged_wide));
    CHECK(merged.cwiseAbs().maxCoeff() > 0);
    CHECK(wide.bytes() - o.bytes() == static_cast<std::size_t>(rank * (in + out)) * (sizeof(S) - 2));
    o.narrow_terms[0].b_rows.resize(rank, out - 1);
    CHECK_THROWS_WITH(o.check("here", out, in), contains("here: up of a term is"));
  }
}

TEST_CASE("overlay: of an adapter's numbers it does what the adapter's own layer does", "[peft]") {
  const Index in = 24, out = 33;
  const Linear<float> base(random_matrix<float>(out, in, 1), overlay_vector<float>(out, 2));
  const LoraAdapter<float> lora(random_matrix<float>(5, in, 3), random_matrix<float>(out, 5, 4), {.alpha = 7});
  const Matrix<float> x = random_matrix<float>(6, in, 5);
  const LinearAdapter<float> plain{.terms = {LowRankTerm<float>::of(lora)}};
  CHECK(same_bits(overlaid(AnyLinear<float>(base), &plain, x), LoraLinear(LinearView(base), lora).forward(x)));

  const Vector<float> magnitude = overlay_vector<float>(out, 6);
  LinearAdapter<float> dora = plain;
  dora.out_scale = dora_scale(base, dora.terms[0], ConstVectorRef<float>(magnitude));
  dora.bias = base.bias() - dora.out_scale.cwiseProduct(base.bias());  // DoRA leaves the bias as it is
  const Matrix<float> expected = DoraLinear(LinearView(base), lora, magnitude).forward(x);
  // Both round a handful of sums of in + rank products of numbers below 1; the base's bias goes in and comes out again.
  CHECK(near(overlaid(AnyLinear<float>(base), &dora, x), expected, 2 * overlay_bound<float>(in, plain), 5));
  CHECK_THROWS_WITH(dora_scale(base, dora.terms[0], ConstVectorRef<float>(magnitude.head(3))),
                    contains("dora_scale: magnitude is [3, 1], expected [33, 1]"));

  Matrix<float> zero_row = base.weight();
  zero_row.row(4).setZero();
  LowRankTerm<float> nothing = dora.terms[0];
  nothing.gains.setZero();
  CHECK(dora_scale(Linear<float>(zero_row), nothing, ConstVectorRef<float>(magnitude))[4] == 1);  // no direction to scale
}

TEST_CASE("overlay: a replacement computes instead of the base", "[peft]") {
  const AnyLinear<float> base(Linear<float>(random_matrix<float>(9, 7, 1)));
  const Linear<float> other(random_matrix<float>(9, 7, 2), overlay_vector<float>(9, 3));
  const Matrix<float> x = random_matrix<float>(4, 7, 4);
  LinearAdapter<float> o{.replacement = AnyLinear<float>(other)};
  CHECK(same_bits(overlaid(base, &o, x), other.forward(x)));
  o.terms.push_back(overlay_term<float>(9, 2, 7, 5));
  CHECK(near(overlaid(base, &o, x), naive_overlay(other, o, x), overlay_bound(7, o), 4));
}

TEST_CASE("overlay: rows under different adapters, none and replaced ones included, each as if alone", "[peft]") {
  const AdapterTarget target{.num_layers = 1, .hidden = 20, .intermediate = 30, .q = 20, .kv = 10, .vocab = 15};
  const auto adapter = [&](LinearAdapter<float> head) { return ModelAdapter<float>(target, {.lm_head = std::move(head)}); };
  const ModelAdapter<float> a = adapter({.terms = {overlay_term<float>(15, 3, 20, 1)}});
  const ModelAdapter<float> b = adapter({.terms = {overlay_term<float>(15, 5, 20, 4)}, .out_scale = overlay_vector<float>(15, 7)});
  const ModelAdapter<float> r = adapter({.replacement = AnyLinear<float>(Linear<float>(random_matrix<float>(15, 20, 8)))});
  const AnyLinear<float> base(Linear<float>(random_matrix<float>(15, 20, 9)));
  const auto head = [](const ModelAdapter<float>& m) { return m.lm_head(); };
  const std::vector<std::vector<detail::RowsOfAdapter<float>>> mixes{
      {}, {{&a}}, {{nullptr}}, {{&a, 2}, {nullptr, 3}, {&b, 1}, {&r, 3}}, {{&r}}, {{&r, 9}}, {{&r, 4}, {&a, 5}}, {{&b, 8}, {&r, 1}}};
  for (const auto& mix : mixes)
    for (const Index skipped : {0, 2, 5}) {
      const Index rows = 9 - skipped;
      const Matrix<float> x = random_matrix<float>(rows, 20, 10);
      Matrix<float> y(rows, 15);
      Workspace ws(base.workspace_bytes(rows) + linear_adapter_workspace_bytes<float>(rows));
      detail::forward_runs(base, detail::RowsByAdapter<float>{mix}.from(skipped), head, x, y, ws);
      Index row = 0;
      std::vector<const ModelAdapter<float>*> of;
      for (const auto& run : mix)
        for (Index i = 0; i < std::min<Index>(run.rows, 9); ++i) of.push_back(run.adapter);
      for (; row < rows; ++row) {
        const ModelAdapter<float>* mine = mix.empty() ? nullptr : of[static_cast<std::size_t>(row + skipped)];
        CHECK(same_bits(Matrix<float>(y.row(row)), overlaid<float>(base, mine ? mine->lm_head() : nullptr, x.row(row))));
      }
    }
}

TEST_CASE("overlay: an adapter's fingerprint is of every number", "[peft]") {
  const AdapterTarget target{.num_layers = 1, .hidden = 6, .intermediate = 8, .q = 6, .kv = 4, .vocab = 5};
  const auto make = [&](const auto& change) {
    AdapterParts<float> parts;
    parts.layers.resize(1);
    LinearAdapter<float>& q = parts.layers[0][Projection::q];
    q = {.terms = {overlay_term<float>(6, 2, 6, 1)}, .out_scale = Vector<float>::Ones(6), .bias = Vector<float>::Ones(6)};
    Matrix<float> weight = random_matrix<float>(5, 6, 4), table = random_matrix<float>(5, 6, 5);
    Vector<float> norm = Vector<float>::Ones(6);
    parts.prompt = random_matrix<float>(2, 6, 6);
    change(q, weight, table, norm, parts.prompt);
    parts.lm_head.replacement = AnyLinear<float>(Linear<float>(weight));
    parts.embed_tokens = Embedding<float>(table);
    parts.norm = RmsNorm<float>(norm);
    return ModelAdapter<float>(target, std::move(parts)).fingerprint();
  };
  const auto same = [](auto&, auto&, auto&, auto&, auto&) {};
  CHECK(make(same) == make(same));
  std::vector<std::uint64_t> all{0, make(same), ModelAdapter<float>(target, {}).fingerprint()};
  all.push_back(make([](auto& q, auto&, auto&, auto&, auto&) { q.terms[0].a_rows(1, 5) += 1; }));
  all.push_back(make([](auto& q, auto&, auto&, auto&, auto&) { q.terms[0].b_rows(1, 5) += 1; }));
  all.push_back(make([](auto& q, auto&, auto&, auto&, auto&) { q.terms[0].gains *= 2; }));  // another scale of the same
  all.push_back(make([](auto& q, auto&, auto&, auto&, auto&) { q.out_scale[5] = 2; }));
  all.push_back(make([](auto& q, auto&, auto&, auto&, auto&) { q.bias[5] = 2; }));
  all.push_back(make([](auto&, auto& weight, auto&, auto&, auto&) { weight(4, 5) += 1; }));
  all.push_back(make([](auto&, auto&, auto& table, auto&, auto&) { table(4, 5) += 1; }));
  all.push_back(make([](auto&, auto&, auto&, auto& norm, auto&) { norm[5] = 2; }));
  all.push_back(make([](auto&, auto&, auto&, auto&, auto& prompt) { prompt(1, 5) += 1; }));
  std::sort(all.begin(), all.end());
  CHECK(std::unique(all.begin(), all.end()) == all.end());
}

TEST_CASE("overlay: what does not fit is refused by name", "[peft]") {
  AdapterTarget target{.num_layers = 2, .hidden = 6, .intermediate = 8, .q = 10, .kv = 4, .vocab = 5};
  target.norms.resize(2);  // of a Llama: before attention and before the feed-forward block
  for (auto& layer : target.norms)
    for (const NormPlace place : {NormPlace::pre_attention, NormPlace::pre_mlp}) layer[static_cast<std::size_t>(place)] = 6;
  const auto refused = [&](const auto& change, const std::string& text) {
    AdapterParts<float> parts;
    parts.layers.resize(2);
    change(parts);
    CHECK_THROWS_AS(ModelAdapter<float>(target, parts), ShapeError);
    CHECK_THROWS_WITH(ModelAdapter<float>(target, parts), contains(text));
  };
  refused([](auto& p) { p.layers.resize(3); }, "ModelAdapter: 3 layers, expected 2, or none at all");
  refused([](auto& p) { p.layers[1][Projection::o].terms = {overlay_term<float>(6, 2, 6, 1)}; },
          "ModelAdapter: layers[1].self_attn.o_proj: down of a term is [2, 6], expected [*, 10]");
  refused([](auto& p) { p.layers[0][Projection::k].terms = {overlay_term<float>(6, 2, 6, 1)}; },
          "layers[0].self_attn.k_proj: up of a term is [2, 6], expected [2, 4]");
  refused(
      [](auto& p) {
        p.lm_head.terms = {overlay_term<float>(5, 2, 6, 1)};
        p.lm_head.terms[0].gains.resize(1);
      },
      "lm_head: gain of a term is [1, 1], expected [2, 1]");
  refused([](auto& p) { p.lm_head.out_scale = Vector<float>::Ones(4); }, "lm_head: out_scale is [4, 1], expected [5, 1]");
  refused([](auto& p) { p.lm_head.bias = Vector<float>::Ones(4); }, "lm_head: bias is [4, 1], expected [5, 1]");
  refused([](auto& p) { p.layers[0][Projection::down].replacement = AnyLinear<float>(Linear<float>(Matrix<float>::Ones(8, 6))); },
          "layers[0].mlp.down_proj: replacement is [8, 6], expected [6, 8]");
  refused([](auto& p) { p.norm = RmsNorm<float>(Vector<float>::Ones(5)); }, "norm is [5, 1], expected [6, 1]");
  refused([](auto& p) { p.layers[1][NormPlace::pre_attention] = RmsNorm<float>(Vector<float>::Ones(5)); },
          "layers[1].pre_attention_norm is [5, 1], expected [6, 1]");
  refused([](auto& p) { p.layers[1][NormPlace::q] = RmsNorm<float>(Vector<float>::Ones(6)); },
          "layers[1].q_norm is given, but the decoder has no such norm");
  refused([](auto& p) { p.embed_tokens = Embedding<float>(Matrix<float>(Matrix<float>::Ones(6, 5))); },
          "embed_tokens is [6, 5], expected [5, 6]");
  refused([](auto& p) { p.prompt = Matrix<float>::Ones(2, 5); }, "prompt is [2, 5], expected [*, 6]");

  const AnyLinear<float> base(Linear<float>(random_matrix<float>(9, 7, 1)));
  const Matrix<float> x = random_matrix<float>(4, 7, 4);
  Matrix<float> y(4, 9);
  Workspace empty;
  const LinearAdapter<float> o{.terms = {overlay_term<float>(9, 2, 7, 5)}};
  CHECK_THROWS_AS(o.add(x, y, empty), CapacityError);
  const LinearAdapter<float> wide{.bias = Vector<float>::Ones(8)};
  CHECK_THROWS_AS(wide.add(x, y, empty), ShapeError);
}
