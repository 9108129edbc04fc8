// A token's product has the same bits alone, among others, in any place, on any number of threads, packed or mapped.
#include <tuple>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/nn/matmul.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::random_matrix;

TEMPLATE_TEST_CASE("a product's bits do not depend on the batch", "[property]", float, double, bfloat16, half) {
  using T = TestType;
  using S = arithmetic_t<T>;
  ThreadPool two(2), four(4);
  // The last is blocked over k and large enough to wake the workers.
  for (const auto& [in, out] : {std::tuple<Index, Index>{3, 5}, {77, 40}, {640, 130}, {1100, 260}}) {
    const Matrix<T> w = random_matrix<T>(out, in, 1);
    const PackedWeight<T> packed{ConstMatrixRef<T>(w)};
    const Vector<S> bias = random_matrix<S>(out, 1, 2);
    const Matrix<S> x = random_matrix<S>(128, in, 3);
    Matrix<S> alone(128, out);
    Workspace one_ws(matmul_workspace_bytes<T>(1, in));
    for (Index t = 0; t < 128; ++t) matmul(x.middleRows(t, 1), packed, bias, alone.middleRows(t, 1), one_ws);
    for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(two), ExecutorRef(four)}) {
      Workspace ws(matmul_workspace_bytes<T>(128, in, executor.size()), executor);
      for (const Index tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 128}) {
        INFO(tokens << " tokens, [" << out << ", " << in << "], " << executor.size() << " workers");
        const Index first = tokens == 128 ? 0 : (tokens * 7) % 100;
        Matrix<S> y(tokens, out), mapped(tokens, out);
        matmul(x.middleRows(first, tokens), packed, bias, y, ws);
        matmul<T>(x.middleRows(first, tokens), ConstMatrixRef<T>(w), bias, mapped, ws);
        REQUIRE(pith_test::same_bits(y, Matrix<S>(alone.middleRows(first, tokens))));
        REQUIRE(pith_test::same_bits(mapped, y));
      }
    }
  }
}
