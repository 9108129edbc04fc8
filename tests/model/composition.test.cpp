// Everything with everything: adapter × policy × merge × storage × speculation, against a decoder written down plainly in double.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;

namespace {

/// One token through a decoder whose caches are given: the next logits, in double, every sum in the order of its index.
class PlainDecoder {
 public:
  PlainDecoder(const Decoder<float>& decoder, const ModelAdapter<float>* adapter, bool counted)
      : decoder_(decoder), adapter_(adapter), counted_(counted) {}

  template <class Snapshot> Vector<double> next_logits(const Snapshot& before, Token token) const {
    const DecoderConfig& c = decoder_.config();
    Matrix<float> row(1, c.hidden_size);
    decoder_.weights().embed_tokens.gather(std::span(&token, 1), row);
    Vector<double> x = row.row(0).transpose().cast<double>();
    for (std::size_t l = 0; l < decoder_.weights().layers.size(); ++l) {
      const LayerWeights<float>& w = decoder_.weights().layers[l];
      const Vector<double> h = normed(x, w.input_layernorm);
      const auto project = [&](Projection p, const Vector<double>& in) { return Vector<double>(weight(w, l, p) * in); };
      Vector<double> q = project(Projection::q, h), k = project(Projection::k, h);
      const Vector<double> v = project(Projection::v, h);
      rotate(q, before.layers[l].next);
      rotate(k, before.layers[l].next);
      x += project(Projection::o, attended(before.layers[l], q, k, v));
      const Vector<double> m = normed(x, w.post_attention_layernorm), gate = project(Projection::gate, m), up = project(Projection::up, m);
      x += project(Projection::down, (gate.array() / (1 + (-gate.array()).exp()) * up.array()).matrix());
    }
    return head() * normed(x, decoder_.weights().norm);
  }

 private:
  static Matrix<double> with(const AnyLinear<float>& base, const LinearAdapter<float>* overlay) {
    Matrix<float> weight(base.out(), base.in());
    base.copy_weight(0, weight);
    Matrix<double> out = weight.cast<double>();
    if (overlay != nullptr)
      for (const LowRankTerm<float>& term : overlay->terms)
        out += (term.b_rows.transpose() * term.gains.asDiagonal()).cast<double>() * term.a_rows.cast<double>();
    return out;
  }
  Matrix<double> weight(const LayerWeights<float>& w, std::size_t layer, Projection p) const {
    return with(detail::projection_of(w, p), adapter_ == nullptr ? nullptr : &adapter_->parts().layers[layer][p]);
  }
  Matrix<double> head() const { return with(decoder_.weights().lm_head, adapter_ == nullptr ? nullptr : &adapter_->parts().lm_head); }

  Vector<double> normed(const Vector<double>& x, const Vector<float>& weight) const {
    const double scale = 1 / std::sqrt(x.squaredNorm() / static_cast<double>(x.size()) + decoder_.config().rms_norm_eps);
    return (scale * x.array() * weight.cast<double>().array()).matrix();
  }

  void rotate(Vector<double>& heads, Position position) const {
    const Index d = decoder_.config().head_dim;
    for (Index first = 0; first < heads.size(); first += d)
      for (Index i = 0; i < d / 2; ++i) {
        const double angle = position * std::pow(decoder_.config().rope_theta, -2. * static_cast<double>(i) / static_cast<double>(d));
        const double a = heads[first + i], b = heads[first + i + d / 2];
        heads[first + i] = a * std::cos(angle) - b * std::sin(angle);
        heads[first + i + d / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
  }

  template <class Layer>
  Vector<double> attended(const Layer& cache, const Vector<double>& q, const Vector<double>& k, const Vector<double>& v) const {
    const DecoderConfig& c = decoder_.config();
    const Index d = c.head_dim, group = c.num_attention_heads / c.num_key_value_heads;
    Vector<double> out(q.size());
    for (Index h = 0, first = 0; h < c.num_key_value_heads;
         first += static_cast<Index>(cache.heads[static_cast<std::size_t>(3 * h)]), ++h) {
      const Index rows = static_cast<Index>(cache.heads[static_cast<std::size_t>(3 * h)]);
      Matrix<double> keys(rows + 1, d), values(rows + 1, d);
      Vector<double> mass = Vector<double>::Ones(rows + 1);
      for (Index r = 0; r < rows; ++r) {
        keys.row(r) = widened(cache.keys, first + r, d);
        values.row(r) = widened(cache.values, first + r, d);
        if (counted_ && !cache.masses.empty()) mass[r] = double(cache.masses[static_cast<std::size_t>(first + r)]);
      }
      keys.row(rows) = stored<typename Layer::S>(cache.keys, k.segment(h * d, d));
      values.row(rows) = stored<typename Layer::S>(cache.values, v.segment(h * d, d));
      for (Index g = 0; g < group; ++g) {
        const Index head = (h * group + g) * d;
        Vector<double> weights = (keys * q.segment(head, d) / std::sqrt(static_cast<double>(d))).array().exp() * mass.array();
        weights /= weights.sum();
        out.segment(head, d) = values.transpose() * weights;
      }
    }
    return out;
  }

  /// A row as it is stored.
  template <class T> static Matrix<double> widened(const std::vector<T>& all, Index row, Index d) {
    Matrix<float> out(1, d);
    detail::widen<T>(all.data() + row * detail::row_units<T>(d), out.data(), d);
    return out.cast<double>();
  }
  /// A new row after the one rounding.
  template <class S, class T> static Matrix<double> stored(const std::vector<T>&, const Vector<double>& row) {
    const Vector<S> narrow = row.cast<S>();
    std::vector<T> kept(static_cast<std::size_t>(detail::row_units<T>(row.size())));
    detail::narrow<T>(narrow.data(), kept.data(), row.size());
    return widened(kept, 0, row.size());
  }

  const Decoder<float>& decoder_;
  const ModelAdapter<float>* adapter_;
  bool counted_;  ///< rows count as the tokens they stand for
};

/// Whether two sessions hold the same bits in the same order.
template <class Session> bool same_rows(const Session& a, const Session& b) {
  const auto x = a.snapshot(), y = b.snapshot();
  for (std::size_t l = 0; l < x.layers.size(); ++l) {
    const auto &p = x.layers[l], &q = y.layers[l];
    const auto bytes = [](const auto& rows) { return std::as_bytes(std::span(rows)); };
    const auto same = [&](const auto& one, const auto& other) { return std::ranges::equal(bytes(one), bytes(other)); };
    if (p.next != q.next || p.heads != q.heads || p.positions != q.positions || !same(p.keys, q.keys) || !same(p.values, q.values) ||
        !same(p.masses, q.masses) || !same(p.gate, q.gate) || p.stats != q.stats)
      return false;
  }
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("every adapter, policy, merge and storage compose, with speculation and without", "[model]", float, bfloat16, Q8) {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const ModelAdapter<float> adapter = pith_test::random_adapter<float>(decoder, 2, 5);
  const std::vector<Token> tokens = pith_test::random_tokens(40, decoder.vocab_size());
  const std::span<const Token> prompt = std::span(tokens).first(24);
  Index merged = 0, accepted = 0;
  for (const char* policy : {"dense", "window", "h2o", "scissorhands", "snapkv", "keydiff"})
    for (const MergeEntry<float>& entry : merge_catalogue())
      for (const bool adapted : {false, true}) {
        const bool counted = entry.name == "size-weighted";
        INFO(policy << ", " << entry.name << (adapted ? ", adapted" : ""));
        const auto start = [&] {
          auto session =
              decoder.start<TestType>(make_policy(policy, 10), {.max_prompt = 40, .max_tokens = 80, .keep_masses = counted}, entry.make());
          if (adapted) session.use(&adapter);
          return session;
        };
        // Against the plain decoder, over the rows that are there.
        const PlainDecoder plain(decoder, adapted ? &adapter : nullptr, counted);
        auto session = start();
        session.prefill(prompt);
        for (const Token token : std::span(tokens).subspan(24, 6)) {
          const auto before = session.snapshot();
          const Vector<double> expected = plain.next_logits(before, token);
          const Vector<double> found = session.decode(token).row(0).transpose().template cast<double>();
          // Sums of at most 40 products in floats, two layers deep; of what is rounded besides, the new row may fall to the other side.
          const double step = std::is_same_v<TestType, float> ? 0 : std::is_same_v<TestType, bfloat16> ? 1. / 256 : 1. / 127;
          const double slack = (200 * std::numeric_limits<float>::epsilon() + step / 4) * (1 + expected.cwiseAbs().maxCoeff());
          REQUIRE((found - expected).cwiseAbs().maxCoeff() < slack);
        }
        for (const auto& cache : session.caches())
          if (const auto masses = cache.masses(0); masses.size() > 0) merged += masses.maxCoeff() > 1;
        // Speculation says what the target alone says, and leaves its cache as if it had never guessed.
        const SamplerOptions greedy{.temperature = 0};
        auto alone = start(), target = start();
        std::mt19937_64 rng(1);
        const std::vector<Token> expected = generate(alone, alone.prefill(prompt), {.max_tokens = 24, .sampler = greedy}, rng);
        PromptLookup<float> draft(decoder.vocab_size(), {.ngram = 2});
        SpeculativeDecoder spec(target, draft, {.draft_tokens = 3, .sampler = greedy});
        spec.prefill(prompt);
        std::vector<Token> found;
        generate(spec, {.max_tokens = 24}, rng, [&](Token token) { found.push_back(token); });
        REQUIRE(found == expected);
        REQUIRE(same_rows(alone, target));
        accepted += spec.stats().accepted;
      }
  CHECK(merged > 50);
  CHECK(accepted > 50);
}
