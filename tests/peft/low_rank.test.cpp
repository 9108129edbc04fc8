#include <cmath>
#include <limits>
#include <type_traits>

#include <pith/core/executor.hpp>
#include <pith/peft/low_rank.hpp>

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

template <class S> struct LowRankCase {
  Matrix<S> x, down, up, y;
  Vector<S> gain;

  LowRankCase(Index tokens, Index rank, Index in, Index out)
      : x(random_matrix<S>(tokens, in, 1)),
        down(random_matrix<S>(rank, in, 2)),
        up(random_matrix<S>(rank, out, 3)),
        y(random_matrix<S>(tokens, out, 4)),
        gain(random_matrix<S>(rank, 1, 5)) {}

  Matrix<S> result(ExecutorRef executor = serial) const {
    Matrix<S> sum = y;
    Workspace ws(low_rank_workspace_bytes<S>(x.rows(), down.rows(), executor.size()), executor);
    add_low_rank<S>(x, down, up, gain, sum, ws);
    return sum;
  }
  Matrix<S> row_alone(Index token) const {
    Matrix<S> sum = y.row(token);
    Workspace ws(low_rank_workspace_bytes<S>(1, down.rows()));
    add_low_rank<S>(x.row(token), down, up, gain, sum, ws);
    return sum;
  }

  /// Naive loops in long double, and what rounding may do: in + 2 roundings of each t, rank + 2 of their sum.
  void check() const {
    Eigen::MatrixXd expected(y.rows(), y.cols()), bound(y.rows(), y.cols());
    for (Index t = 0; t < y.rows(); ++t) {
      for (Index c = 0; c < y.cols(); ++c) {
        long double sum = y(t, c), size = std::abs(sum);
        for (Index r = 0; r < down.rows(); ++r) {
          long double dot = 0, dot_size = 0;
          for (Index k = 0; k < x.cols(); ++k) {
            const long double product = static_cast<long double>(x(t, k)) * static_cast<long double>(down(r, k));
            dot += product;
            dot_size += std::abs(product);
          }
          const long double weight = static_cast<long double>(gain[r]) * static_cast<long double>(up(r, c));
          sum += weight * dot;
          size += std::abs(weight) * dot_size;
        }
        expected(t, c) = static_cast<double>(sum);
        bound(t, c) = double(size) * static_cast<double>(std::numeric_limits<S>::epsilon()) * double(x.cols() + down.rows() + 4);
      }
    }
    INFO("tokens " << x.rows() << " rank " << down.rows() << " in " << x.cols() << " out " << y.cols());
    CHECK(near(result(), expected, bound, 1));
  }
};

struct MinimalAdapter {
  using Scalar = double;
  Matrix<double> a, bt;
  Vector<double> g, beta;
  Index rank() const { return a.rows(); }
  const Matrix<double>& down_rows() const { return a; }
  const Matrix<double>& up_rows() const { return bt; }
  const Vector<double>& gain() const { return g; }
  const Vector<double>& scaled_bias() const { return beta; }
};
struct NoGain {
  using Scalar = double;
  Index rank() const { return 0; }
  Matrix<double> down_rows() const { return {}; }
  Matrix<double> up_rows() const { return {}; }
};
static_assert(LowRankAdapter<MinimalAdapter> && !LowRankAdapter<NoGain>);

}  // namespace

TEST_CASE("add_low_rank: y += ((x Aᵀ) ∘ gain) Bᵀ in every shape", "[peft]") {
  for (const Index tokens : {1, 2, 3, 4, 7, 13, 130})
    for (const Index rank : {1, 3, 8, 13})
      for (const Index in : {1, 16, 37})
        for (const Index out : {1, 32, 75}) {
          LowRankCase<float>(tokens, rank, in, out).check();
          if (tokens < 8) LowRankCase<double>(tokens, rank, in, out).check();
        }
  LowRankCase<float>(5, 64, 300, 200).check();
}

TEST_CASE("add_low_rank: a token alone, in a batch, with any number of workers: the same bits", "[peft]") {
  ThreadPool two(2), three(3);
  for (const Index tokens : {1, 2, 3, 5, 8, 64, 131}) {
    const LowRankCase<float> c(tokens, 21, 1000, 515);  // one token is work enough to share
    const Matrix<float> all = c.result();
    for (Index t = 0; t<tokens; t += tokens> 20 ? 17 : 1) CHECK(same_bits(all.row(t), c.row_alone(t)));
    CHECK(same_bits(c.result(two), all));
    CHECK(same_bits(c.result(three), all));
  }
  const LowRankCase<float> long_row(1, 30, 5000, 4000);
  CHECK(same_bits(long_row.result(three), long_row.result()));
}

TEST_CASE("add_low_rank: rank 0 and a gain of 0 leave every bit, for any factors", "[peft]") {
  for (const Index tokens : {1, 9}) {
    LowRankCase<float> none(tokens, 0, 20, 30);
    none.y.setConstant(-0.f);
    CHECK(same_bits(none.result(), none.y));

    LowRankCase<float> off(tokens, 5, 20, 30);
    off.y.setConstant(-0.f);
    off.gain.setZero();
    off.gain[2] = -0.f;
    off.down.setConstant(std::numeric_limits<float>::infinity());
    off.up.setConstant(std::numeric_limits<float>::quiet_NaN());
    CHECK(same_bits(off.result(), off.y));

    LowRankCase<float> some(tokens, 6, 20, 30), kept(tokens, 2, 20, 30);
    some.gain[0] = some.gain[2] = some.gain[3] = some.gain[5] = 0;
    for (const Index i : {0, 1}) {
      const Index from = i == 0 ? 1 : 4;
      kept.down.row(i) = some.down.row(from), kept.up.row(i) = some.up.row(from), kept.gain[i] = some.gain[from];
    }
    CHECK(same_bits(some.result(), kept.result()));
  }
}

TEST_CASE("add_low_rank: a gain that is not a number is not taken for 0", "[peft]") {
  LowRankCase<float> c(2, 3, 8, 9);
  c.gain[1] = std::numeric_limits<float>::quiet_NaN();
  CHECK(c.result().array().isNaN().all());
}

TEST_CASE("add_low_rank: factors and tokens in strides", "[peft]") {
  const LowRankCase<float> whole(6, 10, 40, 70);
  const Index rank = 7;
  Matrix<float> wide_y = random_matrix<float>(6, 100, 9), wide_x = random_matrix<float>(6, 50, 10);
  wide_y.middleCols(3, 70) = whole.y;
  wide_x.middleCols(5, 40) = whole.x;
  const Matrix<float> before = wide_y;
  Workspace ws(low_rank_workspace_bytes<float>(6, rank));
  add_low_rank<float>(wide_x.middleCols(5, 40), whole.down.topRows(rank), whole.up.topRows(rank), whole.gain.head(rank),
                      wide_y.middleCols(3, 70), ws);
  LowRankCase<float> cut = whole;
  cut.down = whole.down.topRows(rank).eval(), cut.up = whole.up.topRows(rank).eval(), cut.gain = whole.gain.head(rank).eval();
  CHECK(same_bits(wide_y.middleCols(3, 70), cut.result()));
  CHECK(same_bits(wide_y.leftCols(3), before.leftCols(3)));
  CHECK(same_bits(wide_y.rightCols(27), before.rightCols(27)));
}

TEST_CASE("add_low_rank: an adapter and its bias", "[peft]") {
  const LowRankCase<double> c(3, 2, 5, 7);
  MinimalAdapter adapter{c.down, c.up, c.gain, {}};
  Workspace ws(low_rank_workspace_bytes<double>(3, 2));
  Matrix<double> y = c.y;
  add_low_rank(c.x, adapter, y, ws);
  CHECK(same_bits(y, c.result()));

  adapter.beta = random_matrix<double>(7, 1, 6);
  Matrix<double> shifted = c.y;
  add_low_rank(c.x, adapter, shifted, ws);
  CHECK(same_bits(shifted, pith_test::with_bias(y, adapter.beta)));

  adapter.beta = Vector<double>::Ones(6);
  CHECK_THROWS_WITH(add_low_rank(c.x, adapter, shifted, ws), contains("bias has 6 entries, expected 7"));
}

TEST_CASE("add_low_rank: what does not fit together is refused before y is touched", "[peft]") {
  const LowRankCase<float> c(4, 3, 10, 12);
  Matrix<float> y = c.y;
  Workspace ws(low_rank_workspace_bytes<float>(4, 3)), none(64);
  const auto add = [&](const Matrix<float>& x, const Matrix<float>& down, const Matrix<float>& up, const Vector<float>& gain,
                       Workspace& w) { add_low_rank<float>(x, down, up, gain, y, w); };
  CHECK_THROWS_AS(add(c.x.leftCols(9), c.down, c.up, c.gain, ws), ShapeError);
  CHECK_THROWS_WITH(add(c.x.leftCols(9), c.down, c.up, c.gain, ws), contains("x is [4, 9], expected [*, 10]"));
  CHECK_THROWS_WITH(add(c.x, c.down, c.up.topRows(2), c.gain, ws), contains("up_rows is [2, 12], expected [3, *]"));
  CHECK_THROWS_WITH(add(c.x, c.down, c.up.transpose(), c.gain, ws), contains("did you mean up_rows.transpose()?"));
  CHECK_THROWS_WITH(add(c.x, c.down, c.up, c.gain.head(2), ws), contains("gain is [2, 1], expected [3, 1]"));
  CHECK_THROWS_WITH(add(c.x.topRows(3), c.down, c.up, c.gain, ws), contains("y is [4, 12], expected [3, 12]"));
  CHECK_THROWS_AS(add(c.x, c.down, c.up, c.gain, none), CapacityError);
  CHECK(same_bits(y, c.y));
}

TEST_CASE("add_low_rank: the workspace asked for is enough", "[peft]") {
  ThreadPool three(3);
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(three)})
    for (const Index tokens : {1, 3, 4, 127, 128, 129, 400})
      for (const Index rank : {1, 17}) {
        const std::size_t bytes = low_rank_workspace_bytes<float>(tokens, rank, executor.size());
        CHECK(bytes >= low_rank_workspace_bytes<float>(tokens - 1, rank, executor.size()));
        CHECK(bytes >= low_rank_workspace_bytes<float>(tokens, rank - 1, executor.size()));
        const LowRankCase<float> c(tokens, rank, 9, 40);
        CHECK_NOTHROW(c.result(executor));
      }
  CHECK(low_rank_workspace_bytes<float>(0, 4) == 0);
  CHECK(low_rank_workspace_bytes<float>(4, 0) == 0);
}
