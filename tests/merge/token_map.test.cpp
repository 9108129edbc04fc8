#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <pith/merge/averaged.hpp>
#include <pith/merge/token_map.hpp>
#include <pith/merge/weighted.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

using Ids = std::vector<std::int32_t>;

Ids listed_ids(std::span<const std::int32_t> ids) { return {ids.begin(), ids.end()}; }

/// Of 6 tokens 1 and 5 join 2, 3 is dropped.
template <class S> TokenMap<S> small_map() {
  TokenMap<S> map(8);
  map.start(6);
  map.merge_into(1, 2, S(.5));
  map.merge_into(5, 2, S(.25));
  map.drop(3);
  map.place();
  return map;
}

template <class S, class Rule> Matrix<S> merged_by(const TokenMap<S>& map, const Matrix<S>& x, const Rule& rule) {
  Matrix<S> out(map.rows(), x.cols());
  Workspace ws(TokenMap<S>::workspace_bytes(map.tokens()));
  map.merge(x, out, rule, ws);
  return out;
}

}  // namespace

TEST_CASE("a token map knows where each token went and who stayed", "[merge]") {
  TokenMap<float> map = small_map<float>();
  CHECK(map.tokens() == 6);
  CHECK(map.rows() == 3);
  CHECK(map.merged() == 2);
  CHECK(listed_ids(map.row_of()) == Ids{0, 1, 1, -1, 2, 1});
  CHECK(listed_ids(map.token_of()) == Ids{0, 2, 4});
  CHECK(listed_ids(map.leaves_to()) == Ids{-1, 1, -1, -1, -1, 1});
  CHECK(map.cosine()[5] == .25f);
  CHECK(map.cosine()[0] == 0);

  map.place(Ids{4, 0, 2});
  CHECK(listed_ids(map.row_of()) == Ids{1, 2, 2, -1, 0, 2});
  CHECK(listed_ids(map.leaves_to()) == Ids{-1, 2, -1, -1, -1, 2});
  Ids where{3, 5, -1, 4};
  map.follow(where);
  CHECK(where == Ids{-1, 2, -1, 0});

  map.start(8);  // nothing of the last merge is left
  CHECK(listed_ids(map.row_of()) == Ids{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(map.merged() == 0);
  CHECK(map.cosine().isZero());
}

TEMPLATE_TEST_CASE("rows of a token map are mixed by any rule, and given back to every token", "[merge]", float, double) {
  const TokenMap<TestType> map = small_map<TestType>();
  const Matrix<TestType> x = random_matrix<TestType>(6, 5, 1);
  const double bound = 8 * static_cast<double>(std::numeric_limits<TestType>::epsilon());
  const auto row = [&](Index t) { return x.row(t).template cast<double>().eval(); };
  Matrix<double> expected(3, 5);
  expected << row(0), (row(1) + row(2) + row(5)) / 3, row(4);
  const Matrix<TestType> averaged_rows = merged_by(map, x, Averaged{});
  CHECK(near(averaged_rows, expected, bound));
  CHECK(same_bits(averaged_rows.row(0), x.row(0)));
  CHECK(same_bits(averaged_rows.row(2), x.row(4)));
  expected.row(1) = (row(2) + .5 * row(1) + .25 * row(5)) / 3;
  CHECK(near(merged_by(map, x, Weighted{}), expected, bound));

  Matrix<TestType> back(6, 5);
  map.unmerge(averaged_rows, back);
  for (const Index t : {1, 2, 5}) CHECK(same_bits(back.row(t), averaged_rows.row(1)));
  CHECK(same_bits(back.row(4), x.row(4)));
  CHECK(back.row(3).isZero());
}

TEST_CASE("masses of a token map add up, asked for or not", "[merge]") {
  const TokenMap<double> map = small_map<double>();
  const Matrix<double> x = random_matrix<double>(6, 5, 2);
  Vector<double> before(6), after(3), counted(3);
  before << 1, 2, 3, 1, 5, 4;
  Workspace ws(TokenMap<double>::workspace_bytes(6));
  Matrix<double> out(3, 5), unasked(3, 5), plain(3, 5);
  map.merge(x, out, MassWeighted{}, ws, {before, after});
  CHECK(after == (Vector<double>(3) << 1, 9, 5).finished());
  CHECK(near(out.row(1), ((2 * x.row(1) + 3 * x.row(2) + 4 * x.row(5)) / 9).eval(), 1e-14));
  map.merge(x, unasked, MassWeighted{}, ws, {before, {}});
  CHECK(same_bits(unasked, out));
  map.merge(x, plain, MassWeighted{}, ws, {{}, counted});
  CHECK(counted == (Vector<double>(3) << 1, 3, 1).finished());
  CHECK(near(plain, merged_by(map, x, Averaged{}), 1e-14));
}

TEST_CASE("token map: what has no meaning is refused", "[merge]") {
  CHECK_THROWS_WITH(TokenMap<float>(-1), contains("room for -1 tokens"));
  CHECK_THROWS_AS(TokenMap<float>(Index(1) << 31), CapacityError);
  TokenMap<float> map = small_map<float>();
  CHECK_THROWS_WITH(map.start(9), contains("9 tokens, but there is room for 8"));
  CHECK_THROWS_AS(map.start(-1), CapacityError);
  CHECK_THROWS_WITH(map.merge_into(6, 0, 1.f), contains("token 6, expected 0 .. 5"));
  CHECK_THROWS_AS(map.merge_into(0, -1, 1.f), ShapeError);
  CHECK_THROWS_AS(map.drop(6), ShapeError);
  CHECK_THROWS_WITH(map.place(Ids{0, 2}), contains("an order of 2 tokens, expected each of the 3 tokens that stay once"));
  CHECK_THROWS_WITH(map.place(Ids{0, 2, 2}), contains("token 2 in the order"));
  CHECK_THROWS_AS(map.place(Ids{0, 2, 5}), ShapeError);
  CHECK_THROWS_AS(map.place(Ids{0, 2, 77}), ShapeError);
  CHECK(listed_ids(map.row_of()) == Ids{0, 1, 1, -1, 2, 1});  // as before

  Ids where{0, 6};
  CHECK_THROWS_WITH(map.follow(where), contains("row 6, expected -1 .. 5"));
  CHECK(where == Ids{0, 6});

  const Matrix<float> x = random_matrix<float>(6, 4, 1);
  Matrix<float> out(3, 4), wide(3, 5), back(6, 4);
  Workspace ws(TokenMap<float>::workspace_bytes(6));
  CHECK_THROWS_AS(map.merge(x.topRows(5), out, Averaged{}, ws), ShapeError);
  CHECK_THROWS_AS(map.merge(x, wide, Averaged{}, ws), ShapeError);
  CHECK_THROWS_AS(map.unmerge(out, wide), ShapeError);
  CHECK_THROWS_AS(map.unmerge(wide, back), ShapeError);
  Vector<float> before = Vector<float>::Ones(5), after(3);
  CHECK_THROWS_WITH(map.merge(x, out, Averaged{}, ws, {before, after}), contains("5 masses before, expected 6 or none"));
  before = Vector<float>::Zero(6);
  CHECK_THROWS_WITH(map.merge(x, out, Averaged{}, ws, {before, after}), contains("not above 0"));
  before.setOnes();
  Vector<float> few(2);
  CHECK_THROWS_WITH(map.merge(x, out, Averaged{}, ws, {before, few}), contains("2 masses after, expected 3 or none"));
  Workspace none(0);
  CHECK_THROWS_AS(map.merge(x, out, Averaged{}, none), CapacityError);

  map.merge_into(2, 4, 1.f);  // 1 and 5 still join 2
  CHECK_THROWS_AS(map.place(), StateError);
  CHECK_THROWS_WITH(map.place(), contains("token 1 is merged into 2, which does not stay itself"));
}

TEST_CASE("TokenMap: whether a token stays is told of tokens alone", "[merge]") {
  TokenMap<float> map(4);
  map.start(3);
  map.merge_into(2, 0, 1);
  CHECK(map.stays(0));
  CHECK_FALSE(map.stays(2));
  for (const Index token : {Index(-1), Index(3), std::numeric_limits<Index>::max()}) CHECK_THROWS_AS(map.stays(token), ShapeError);
}
