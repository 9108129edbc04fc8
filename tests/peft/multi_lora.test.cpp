#include <vector>

#include <pith/core/executor.hpp>
#include <pith/peft/dylora.hpp>
#include <pith/peft/fused_lora.hpp>
#include <pith/peft/lora_embedding.hpp>
#include <pith/peft/multi_lora.hpp>

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

constexpr Index multi_in = 90, multi_out = 140;

std::vector<LoraAdapter<float>> several_adapters() {
  std::vector<LoraAdapter<float>> all;
  for (const Index rank : {4, 1, 0, 16, 7})
    all.emplace_back(random_matrix<float>(rank, multi_in, 10 + std::uint64_t(rank)),
                     random_matrix<float>(multi_out, rank, 30 + std::uint64_t(rank)), LoraOptions{.alpha = double(rank) + 1});
  all.emplace_back(random_matrix<float>(2, multi_in, 1), random_matrix<float>(multi_out, 2, 2), LoraOptions{},
                   random_vector<float>(multi_out, 3));
  return all;
}

}  // namespace

TEST_CASE("MultiLoraLinear: another adapter for every row, or none, with the bits each has alone", "[peft]") {
  const Linear<float> base(random_matrix<float>(multi_out, multi_in, 1), random_vector<float>(multi_out, 2));
  const MultiLoraLinear<LinearView<float>> layer(LinearView{base}, several_adapters());
  ThreadPool two(2), three(3);
  const std::vector<std::vector<Index>> batches{
      {0}, {no_adapter}, {5, 5, 5}, {0, 1, 2, 3, 4, 5, no_adapter}, {3, 0, 3, 1, 3, no_adapter, 0, 3, 3, 5, 5}, std::vector<Index>(140, 4)};
  for (const std::vector<Index>& chosen : batches) {
    const Index tokens = static_cast<Index>(chosen.size());
    const Matrix<float> x = random_matrix<float>(tokens, multi_in, 7);
    for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(two), ExecutorRef(three)}) {
      Matrix<float> y(tokens, multi_out);
      Workspace ws(layer.workspace_bytes(tokens, executor.size()), executor);
      layer.forward(x, chosen, y, ws);
      for (Index t = 0; t < tokens; ++t) {
        INFO("row " << t << " of " << tokens);
        const Index a = chosen[static_cast<std::size_t>(t)];
        const Matrix<float> row = x.row(t);
        CHECK(same_bits(y.row(t), a == no_adapter ? base.forward(row) : LoraLinear(LinearView{base}, layer.adapter(a)).forward(row)));
      }
    }
  }
}

TEST_CASE("MultiLoraLinear: several at once add up in order, and off is off", "[peft]") {
  const Linear<float> base(random_matrix<float>(multi_out, multi_in, 1));
  MultiLoraLinear<LinearView<float>> layer(LinearView{base}, several_adapters());
  const Matrix<float> x = random_matrix<float>(3, multi_in, 2);
  CHECK(same_bits(layer.forward(x), base.forward(x)));
  layer.use({3, 0});
  CHECK(same_bits(layer.forward(x), LoraLinear(LoraLinear(LinearView{base}, layer.adapter(3)), layer.adapter(0)).forward(x)));
  layer.adapter(3).set_scale(0);
  CHECK(same_bits(layer.forward(x), LoraLinear(LinearView{base}, layer.adapter(0)).forward(x)));
  layer.use({});
  CHECK(same_bits(layer.forward(x), base.forward(x)));
}

TEST_CASE("add_multi_lora: adapters of any kind, and what does not fit", "[peft]") {
  const DyLoraAdapter<float> dylora(random_matrix<float>(6, 10, 1), random_matrix<float>(12, 6, 2));
  const LoraAdapter<float> lora(random_matrix<float>(3, 10, 3), random_matrix<float>(12, 3, 4));
  const std::vector<LowRankView<float>> views{dylora, lora};
  const Matrix<float> x = random_matrix<float>(2, 10, 5);
  Matrix<float> y = Matrix<float>::Zero(2, 12), expected = y;
  Workspace ws(multi_lora_workspace_bytes<float>(2, 10, 12, 2, 6)), one(low_rank_workspace_bytes<float>(1, 6)), none;
  const std::vector<Index> chosen{1, 0};
  add_multi_lora<float>(x, views, chosen, y, ws);
  add_low_rank(x.topRows(1), lora, expected.topRows(1), one);
  add_low_rank(x.bottomRows(1), dylora, expected.bottomRows(1), one);
  CHECK(same_bits(y, expected));

  CHECK_THROWS_WITH(add_multi_lora<float>(x, views, std::vector<Index>{0, 2}, y, ws), contains("adapter 2 of 2"));
  CHECK_THROWS_WITH(add_multi_lora<float>(x, views, std::vector<Index>{0, -2}, y, ws), contains("adapter -2 of 2"));
  CHECK_THROWS_WITH(add_multi_lora<float>(x, views, std::vector<Index>{0}, y, ws), contains("1 choices for 2 rows"));
  CHECK_THROWS_WITH(add_multi_lora<float>(x.leftCols(9), views, chosen, y, ws), contains("down is [6, 10], expected [6, 9]"));
  CHECK_THROWS_AS(add_multi_lora<float>(x, views, chosen, y, none), CapacityError);
  CHECK(same_bits(y, expected));
  MultiLoraLinear<Linear<float>> layer(Linear<float>(random_matrix<float>(12, 10, 1)), {lora});
  CHECK_THROWS_WITH(layer.use({1}), contains("adapter 1 of 1"));
  CHECK_THROWS_AS(layer.adapter(-1), ShapeError);
  CHECK_THROWS_WITH((MultiLoraLinear<Linear<float>>(Linear<float>(random_matrix<float>(12, 11, 1)), {lora})),
                    contains("down is [3, 10], expected [3, 11]"));
}

TEST_CASE("LoraEmbedding: a token's row and its column of A", "[peft]") {
  const Matrix<double> w = random_matrix<double>(9, 5, 1), a = random_matrix<double>(3, 9, 2), b = random_matrix<double>(5, 3, 3);
  const LoraEmbedding<double> table(Embedding<double>(w), a, b, {.alpha = 6});
  const Matrix<double> all = w + 2 * pith_test::transposed(pith_test::times(b, a));
  const std::vector<Token> ids{8, 0, 8, 3};
  Matrix<double> rows(4, 5), merged(9, 5);
  table.gather(ids, rows);
  for (Index i = 0; i < 4; ++i) CHECK(near(rows.row(i), all.row(ids[static_cast<std::size_t>(i)]), 1e-14));
  table.merged().copy_rows(0, merged);
  CHECK(near(merged, all, 1e-14));
  CHECK_THROWS_AS(table.gather(std::vector<Token>{1, 2, 3, 9}, rows), ShapeError);
  CHECK_THROWS_WITH(LoraEmbedding<double>(Embedding<double>(w), a.leftCols(8), b), contains("down is [3, 8], expected [*, 9]"));
  CHECK_THROWS_WITH(LoraEmbedding<double>(Embedding<double>(w), a, b.leftCols(2)), contains("up is [5, 2], expected [5, 3]"));
}

TEST_CASE("fused_lora: what does not fit is refused", "[peft]") {
  const Matrix<float> a = random_matrix<float>(4, 8, 1), b = random_matrix<float>(8, 2, 2);
  constexpr bool none[] = {false, false}, three[] = {true, true, true}, one[] = {false, true}, two[] = {true, false, true};
  CHECK(fused_lora<float>(ConstMatrixRef<float>(a), b, two).out() == 12);
  CHECK_THROWS_WITH(fused_lora<float>(ConstMatrixRef<float>(a), b, none), contains("0 blocks share 8 rows"));
  CHECK_THROWS_AS(fused_lora<float>(ConstMatrixRef<float>(a), b, three), ShapeError);
  CHECK_THROWS_WITH(fused_lora<float>(ConstMatrixRef<float>(a), b, one), contains("down is [4, 8], expected [2, *]"));
}
