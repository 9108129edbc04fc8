#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/kv.hpp>
#include <pith/peft/houlsby_adapter.hpp>
#include <pith/peft/prefix_tuning.hpp>
#include <pith/peft/prompt_tuning.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::random_vector;
using pith_test::same_bits;

namespace {

HoulsbyWeights<float> block_weights(Index d, Index c, bool silent) {
  return {Linear<float>(random_matrix<float>(c, d, 1), random_vector<float>(c, 2)),
          silent ? Linear<float>(Matrix<float>::Zero(d, c), Vector<float>::Zero(d))
                 : Linear<float>(random_matrix<float>(d, c, 3), random_vector<float>(d, 4))};
}

}  // namespace

TEST_CASE("HoulsbyAdapter: with Up = 0 the layer is what it was", "[peft]") {
  const Matrix<float> h = random_matrix<float>(5, 16, 5), u = random_matrix<float>(5, 16, 6);
  const LayerNorm<float> norm(random_vector<float>(16, 7), random_vector<float>(16, 8));
  const Matrix<float> plain = norm.forward(Matrix<float>(h + u));
  for (const HoulsbyOptions& options : {HoulsbyOptions::houlsby(), HoulsbyOptions::pfeiffer(), HoulsbyOptions::parallel_block()}) {
    const HoulsbyAdapter<float> adapter(block_weights(16, 4, true), options);
    CHECK(same_bits(adapter.forward(h, u, norm), plain));
  }
  HoulsbyOptions inside = HoulsbyOptions::pfeiffer();
  inside.norm_after = false;  // the model adds and norms
  CHECK(same_bits(HoulsbyAdapter<float>(block_weights(16, 4, true), inside).forward(h, u, norm), h));
}

TEST_CASE("HoulsbyAdapter: a skip from the sum, a RmsNorm, and a gate over all rows of a call", "[peft]") {
  const Matrix<float> h = random_matrix<float>(5, 16, 5), u = random_matrix<float>(5, 16, 6);
  const HoulsbyAdapter<float> summed(block_weights(16, 4, false), {.norm_after = false, .skip = HoulsbySkip::sum});
  const HoulsbyAdapter<float> plain(block_weights(16, 4, false), {.norm_after = false});
  CHECK(same_bits(summed.forward(h, u), Matrix<float>(plain.forward(h, u) + u)));
  const RmsNorm<float> norm(random_vector<float>(16, 7));
  CHECK(same_bits(HoulsbyAdapter<float>(block_weights(16, 4, false)).forward(h, u, norm),
                  norm.forward(Matrix<float>(plain.forward(h, u) + u))));

  HoulsbyWeights<float> gated = block_weights(16, 4, false);
  gated.gate = random_vector<float>(16, 9);
  gated.gate_bias = 0.5f;
  const HoulsbyAdapter<float> gate(gated, {.norm_after = false});
  const Matrix<float> together = gate.forward(h, u), first = gate.forward(h.topRows(1), u.topRows(1));
  CHECK(!same_bits(together.topRows(1), first));
  double mean = 0;
  for (Index t = 0; t < 5; ++t) mean += 1 / (1 + std::exp(-(double(h.row(t).dot(gated.gate)) + 0.5))) / 5;
  const Matrix<double> core = plain.forward(h, u).cast<double>() - h.cast<double>();
  CHECK(near(together, h.cast<double>() + mean * core, 1e-5));
  CHECK(gate.parameters() == 16 * 4 * 2 + 4 + 16 + 17);
}

TEST_CASE("HoulsbyAdapter: what the accessors return makes the same block again", "[peft]") {
  const Matrix<float> h = random_matrix<float>(5, 8, 5), u = random_matrix<float>(5, 8, 6);
  HoulsbyWeights<float> weights = block_weights(8, 8, false);  // as wide as the layer, so that D and Up could change places
  weights.scale = random_vector<float>(8, 9);
  weights.gate = random_vector<float>(8, 10);
  weights.gate_bias = 0.25f;
  const HoulsbyAdapter<float> block(weights, HoulsbyOptions::parallel_block());
  CHECK(same_bits(block.down().weight(), weights.down.weight()));
  CHECK(same_bits(block.up().weight(), weights.up.weight()));
  const HoulsbyAdapter<float> again(
      {.down = block.down(), .up = block.up(), .scale = block.scale(), .gate = block.gate(), .gate_bias = block.gate_bias()},
      block.options());
  CHECK(same_bits(again.forward(h, u), block.forward(h, u)));
}

TEST_CASE("HoulsbyAdapter: a token among others has the bits it has alone", "[peft]") {
  HoulsbyWeights<float> weights = block_weights(40, 8, false);
  weights.scale = random_vector<float>(40, 3);
  weights.before = LayerNorm<float>(Vector<float>::Ones(40), Vector<float>::Zero(40));
  weights.after = weights.before;
  const HoulsbyAdapter<float, GeluTanh> adapter(weights, {.norm_before = true});
  const Matrix<float> h = random_matrix<float>(70, 40, 5), u = random_matrix<float>(70, 40, 6);
  const LayerNorm<float> norm(Vector<float>::Ones(40), Vector<float>::Zero(40));
  Matrix<float> y(70, 40);
  Workspace ws(adapter.workspace_bytes(70));
  adapter.forward(h, u, norm, y, ws);
  CHECK(same_bits(adapter.forward(h.middleRows(33, 1), u.middleRows(33, 1), norm), y.middleRows(33, 1)));
}

TEST_CASE("HoulsbyAdapter: what does not fit is refused", "[peft]") {
  const HoulsbyAdapter<float> adapter(block_weights(16, 4, false));
  CHECK_THROWS_WITH(adapter.forward(random_matrix<float>(2, 15, 1), random_matrix<float>(2, 15, 1)),
                    contains("hidden is [2, 15], expected [*, 16]"));
  CHECK_THROWS_WITH(adapter.forward(random_matrix<float>(2, 16, 1), random_matrix<float>(3, 16, 1)),
                    contains("residual is [3, 16], expected [2, 16]"));
  HoulsbyWeights<float> odd = block_weights(16, 4, false);
  odd.scale = Vector<float>::Ones(2);
  CHECK_THROWS_WITH(HoulsbyAdapter<float>(odd), contains("scale is [2, 1], expected [16, 1]"));
  odd = block_weights(16, 4, false);
  odd.after = LayerNorm<float>(Vector<float>::Ones(4), Vector<float>::Zero(4));
  CHECK_THROWS_WITH(HoulsbyAdapter<float>(odd), contains("norm behind is 4, expected 16"));
  odd = block_weights(16, 4, false);
  odd.up = Linear<float>(random_matrix<float>(15, 4, 1));
  CHECK_THROWS_AS(HoulsbyAdapter<float>(odd), ShapeError);
  CHECK(houlsby_size(768, 16) == 48);
  CHECK(houlsby_size(10, 96) == 1);
  CHECK(houlsby_size(10, 0.5) == 20);
  CHECK_THROWS_AS(houlsby_size(10, 0), ShapeError);
  CHECK_THROWS_AS(houlsby_size(0, 1), ShapeError);
  CHECK_THROWS_AS(houlsby_size(10, 1e-300), ShapeError);
}

TEST_CASE("PromptTuning: rows before the text, drawn, sampled, or taken from a text", "[peft]") {
  std::mt19937_64 rng(1);
  const Embedding<float> table(random_matrix<float>(9, 6, 2));
  const auto row = [&](Token id) {
    Matrix<float> r(1, 6);
    table.gather(std::vector<Token>{id}, r);
    return r;
  };
  const std::vector<Token> text{3, 1, 4}, tokens{7, 0};
  const PromptTuning<float> repeated = PromptTuning<float>::from_text(5, text, table), cut = PromptTuning<float>::from_text(2, text, table);
  CHECK(same_bits(repeated.rows().middleRows(4, 1), row(1)));
  CHECK(cut.size() == 2);
  Matrix<float> out(7, 6);
  repeated.prepend_to(tokens, table, out);
  CHECK(same_bits(out.topRows(5), repeated.rows()));
  CHECK(same_bits(out.middleRows(5, 1), row(7)));
  const PromptTuning<float> sampled = PromptTuning<float>::sampled(20, table, rng);
  for (Index i = 0; i < 20; ++i) {
    bool found = false;
    for (Token id = 0; id < 9; ++id) found |= same_bits(sampled.rows().middleRows(i, 1), row(id));
    CHECK(found);
  }
  const PromptTuning<double> random = PromptTuning<double>::random(50, 40, rng);
  CHECK(random.rows().squaredNorm() / 2000 == Approx(1).epsilon(5 * std::sqrt(2. / 2000)));
  Matrix<float> narrow(6, 6);
  CHECK_THROWS_AS(repeated.prepend_to(tokens, table, narrow), ShapeError);
  CHECK_THROWS_AS(PromptTuning<float>::from_text(2, {}, table), ShapeError);
  CHECK_THROWS_AS(PromptTuning<float>::random(-1, 4, rng), ShapeError);
  CHECK_THROWS_AS(PromptTuning<float>::random(std::numeric_limits<Index>::max(), 4, rng), CapacityError);
}

TEST_CASE("prefix tuning: every query sees the whole prefix, unrotated, and the text begins behind it", "[peft]") {
  const AttentionShape shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 8};
  const Index virtual_tokens = 3, layers = 2, tokens = 5;
  const PrefixEncoder<double> encoder(random_matrix<double>(virtual_tokens, 16, 1),
                                      Linear<double>(random_matrix<double>(6, 16, 2), random_vector<double>(6, 3)),
                                      Linear<double>(random_matrix<double>(64, 6, 4), random_vector<double>(64, 5)));
  const Matrix<double> rows = encoder.rows();
  const auto through = [](const Matrix<double>& x, const Linear<double>& layer) {
    return pith_test::with_bias(pith_test::times_transposed(x, layer.weight()), layer.bias());
  };
  const Matrix<double> hidden = through(encoder.embedding(), encoder.first()).array().tanh();
  CHECK(near(rows, through(hidden, encoder.second()), 1e-13));

  const KvPrefix prefix = prefix_tuning<double>(rows, shape, layers);
  CHECK(prefix.next_position() == virtual_tokens);
  CHECK(prefix.rows() == virtual_tokens);
  for (Index layer = 0; layer < layers; ++layer) {
    KvCache<double> cache(shape, Dense{}, {.max_chunk = tokens, .prefix = prefix, .layer = layer});
    const Matrix<double> q = random_matrix<double>(tokens, 32, 6), k = random_matrix<double>(tokens, 16, 7),
                         v = random_matrix<double>(tokens, 16, 8);
    cache.append(k, v);
    CHECK(cache.next_position() == virtual_tokens + tokens);
    Matrix<double> out(tokens, 32), expected(tokens, 32);
    Workspace ws(attend_workspace_bytes<double>(shape, virtual_tokens + tokens, 1, tokens));
    attend(q, cache.view(), out, ws);
    for (Index head = 0; head < 4; ++head) {
      const Index kv = head / 2, keys_at = layer * 32 + kv * 8, values_at = keys_at + 16;
      for (Index t = 0; t < tokens; ++t) {
        Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(8);
        double total = 0;
        for (Index j = 0; j < virtual_tokens + t + 1; ++j) {
          const bool own = j >= virtual_tokens;
          const Eigen::RowVectorXd key = own ? k.row(j - virtual_tokens).segment(kv * 8, 8) : rows.row(j).segment(keys_at, 8);
          const Eigen::RowVectorXd value = own ? v.row(j - virtual_tokens).segment(kv * 8, 8) : rows.row(j).segment(values_at, 8);
          const double weight = std::exp(q.row(t).segment(head * 8, 8).dot(key) / std::sqrt(8.));
          sum += weight * value;
          total += weight;
        }
        expected.row(t).segment(head * 8, 8) = sum / total;
      }
    }
    CHECK(near(out, expected, 1e-12));
  }
  CHECK_THROWS_WITH(prefix_tuning<double>(rows, shape, 3), contains("embeddings is [3, 64], expected [*, 96]"));
  CHECK_THROWS_AS(prefix_tuning<double>(rows, shape, -1), CapacityError);
  CHECK_THROWS_AS(PrefixEncoder<double>(rows, encoder.first(), encoder.second()), ShapeError);
  CHECK_NOTHROW(prefix_tuning<bfloat16>(rows.cast<float>().eval(), shape, layers));
}
