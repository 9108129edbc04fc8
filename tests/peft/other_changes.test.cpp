// Changes of a projection beyond low-rank terms against their weights in double, formed by plain loops.
#include <memory>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::random_matrix;
using pith_test::random_vector;
using pith_test::same_bits;
using pith_test::times;
using pith_test::times_transposed;
using pith_test::transposed;
using pith_test::with_scaled_columns;

namespace {

constexpr Index changed_in = 12, changed_out = 10;

/// y of a change over a base, in one call; row by row it must have the same bits.
template <class S> Matrix<S> changed_rows(const AnyLinear<S>& base, const LinearAdapter<S>& change, const Matrix<S>& x) {
  Matrix<S> y(x.rows(), base.out());
  change.check("test", base.out(), base.in());
  Workspace ws(base.workspace_bytes(x.rows()) + linear_adapter_workspace_bytes<S>(x.rows()) + change.more_workspace_bytes(x.rows()));
  forward_adapted(base, &change, x, y, ws);
  for (Index t = 0; t < x.rows(); ++t) {
    Matrix<S> row(1, base.out());
    forward_adapted(base, &change, Matrix<S>(x.row(t)), row, ws);
    CHECK(same_bits(row, Matrix<S>(y.row(t))));
  }
  return y;
}

/// The change's own account of its weight, and what it computes, both against `weight`.
template <class S> void check_change(const LinearAdapter<S>& change, const Matrix<double>& base_weight, const Matrix<double>& weight) {
  const Matrix<S> w = base_weight.cast<S>(), x = random_matrix<S>(5, changed_in, 77);
  const AnyLinear<S> base{Linear<S>(w)};
  Matrix<double> told = base_weight;
  change.change_weight(0, told);
  const double bound = 64 * double(std::numeric_limits<S>::epsilon()) * weight.cwiseAbs().maxCoeff() * changed_in;
  CHECK(pith_test::near(told, weight, bound));
  CHECK(pith_test::near(changed_rows(base, change, x), times_transposed(x, weight), bound * 4));
}

}  // namespace

TEMPLATE_TEST_CASE("a Kronecker product, whole and a part of its rows", "[peft]", float, double) {
  using S = TestType;
  const Matrix<S> w1 = random_matrix<S>(5, 3, 1), w2 = random_matrix<S>(4, 4, 2);
  const Matrix<double> w = random_matrix<double>(20, changed_in, 3).template cast<S>().template cast<double>();
  Matrix<double> all = w;
  for (Index a = 0; a < 5; ++a)
    for (Index b = 0; b < 3; ++b)
      for (Index c = 0; c < 4; ++c)
        for (Index d = 0; d < 4; ++d) all(a * 4 + c, b * 4 + d) += double(w1(a, b)) * double(w2(c, d));
  for (const auto& [first, rows] : {std::pair<Index, Index>{0, 20}, {3, 10}, {17, 3}, {4, 4}}) {
    LinearAdapter<S> change;
    change.more.push_back(std::make_shared<const KroneckerChange<S>>(w1, w2, first, rows));
    check_change<S>(change, w.middleRows(first, rows), all.middleRows(first, rows));
  }
  CHECK_THROWS_AS((KroneckerChange<S>(w1, w2, 15, 6)), ShapeError);
}

TEMPLATE_TEST_CASE("shared projections, block turns, replaced rows: together and alone", "[peft]", float, double) {
  using S = TestType;
  const Matrix<double> w = random_matrix<double>(changed_out, changed_in, 3).template cast<S>().template cast<double>();
  const auto shared =
      std::make_shared<const VeraProjections<S>>(VeraProjections<S>{random_matrix<S>(140, 15, 4), random_matrix<S>(140, 16, 5)});
  const Vector<S> d = random_vector<S>(140, 6), b = random_vector<S>(changed_out, 7);
  LinearAdapter<S> vera;
  vera.more.push_back(std::make_shared<const VeraChange<S>>(shared, changed_in, d, b, 2));
  Matrix<double> with_vera = w;
  for (Index o = 0; o < changed_out; ++o)
    for (Index i = 0; i < changed_in; ++i)
      for (Index k = 0; k < 140; ++k)
        with_vera(o, i) += double(b[o]) * double(shared->b_rows(k, o + 2)) * double(d[k]) * double(shared->a_rows(k, i));
  check_change<S>(vera, w, with_vera);
  CHECK_THROWS_AS((VeraChange<S>(shared, 16, d, b)), ShapeError);
  CHECK_THROWS_AS((VeraChange<S>(shared, 12, d, b, 7)), ShapeError);

  // x M W^T with M = P diag(R) P^T and (x P)[place[i]] = x[i], two of them one after the other
  LinearAdapter<S> turned;
  Matrix<double> with_turns = w;
  std::vector<Matrix<double>> factors;
  for (int f = 0; f < 2; ++f) {
    BlockTurn<S> turn{.blocks = random_matrix<S>(changed_in, f == 0 ? 3 : 4, 8 + static_cast<std::uint64_t>(f))};
    if (f == 1) turn.place = {3, 7, 0, 11, 1, 2, 10, 9, 4, 8, 6, 5};
    Matrix<double> p = Matrix<double>::Zero(changed_in, changed_in), r = p;
    const Index size = turn.blocks.cols();
    for (Index i = 0; i < changed_in; ++i) p(i, f == 1 ? turn.place[static_cast<std::size_t>(i)] : i) = 1;
    for (Index i = 0; i < changed_in; ++i)
      for (Index j = 0; j < size; ++j) r(i, i / size * size + j) = double(turn.blocks(i, j));
    factors.push_back(times_transposed(times(p, r), p));
    turned.turns.push_back(std::move(turn));
  }
  with_turns = times_transposed(w, times(factors[0], factors[1]));
  check_change<S>(turned, w, with_turns);
  turned.out_scale = random_vector<S>(changed_out, 12);
  check_change<S>(turned, w, transposed(with_scaled_columns(transposed(with_turns), turned.out_scale)));
  BlockTurn<S> twice{.blocks = random_matrix<S>(changed_in, 1, 1), .place = std::vector<Index>(changed_in, 0)};
  CHECK_THROWS_AS(twice.check("test", changed_in), ShapeError);
  CHECK_THROWS_AS((BlockTurn<S>{.blocks = random_matrix<S>(changed_in, 5, 1)}.check("test", changed_in)), ShapeError);

  LinearAdapter<S> rows;
  const Matrix<S> own = random_matrix<S>(2, changed_in, 13);
  rows.more.push_back(std::make_shared<const ReplacedRows<S>>(changed_out, std::vector<Token>{7, 0}, own));
  Matrix<double> with_rows = w;
  with_rows.row(7) = own.row(0).template cast<double>();
  with_rows.row(0) = own.row(1).template cast<double>();
  check_change<S>(rows, w, with_rows);
  CHECK_THROWS_AS((ReplacedRows<S>(changed_out, {7, 7}, own)), ShapeError);
  CHECK_THROWS_AS((ReplacedRows<S>(7, {7, 0}, own)), ShapeError);
}

TEST_CASE("a table's changes: low rank, single rows, and a table that is scaled", "[peft]") {
  EmbeddingChange<float> change{random_matrix<float>(9, 2, 1), random_matrix<float>(2, 6, 2), {4, 1}, random_matrix<float>(2, 6, 3)};
  change.check(9, 6);
  const std::vector<Token> tokens{1, 8, 4, 4};
  const Matrix<float> table = random_matrix<float>(9, 6, 5);
  Matrix<float> out(4, 6);
  Embedding<float>(table).scaled(3).gather(tokens, out);
  change.scaled(3).apply(tokens, out);
  for (Index t = 0; t < 4; ++t)
    for (Index i = 0; i < 6; ++i) {
      const Token id = tokens[static_cast<std::size_t>(t)];
      const double low = double(table(id, i)) + double(change.token_rows(id, 0)) * change.up_rows(0, i) +
                         double(change.token_rows(id, 1)) * change.up_rows(1, i);
      const double expected = 3 * (id == 4 ? double(change.rows(0, i)) : id == 1 ? double(change.rows(1, i)) : low);
      CHECK(std::abs(out(t, i) - expected) <= 1e-5);
    }
  change.ids = {4, 4};
  CHECK_THROWS_AS(change.check(9, 6), ShapeError);
  change.ids = {4, 9};
  CHECK_THROWS_AS(change.check(9, 6), ShapeError);
}
