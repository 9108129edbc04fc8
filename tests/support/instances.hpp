#pragma once

#include <pith/prebuilt.hpp>

// What many tests use besides, compiled once with the tests' PITH_ASSERT: PITH_TEST_INSTANCES(extern) declares, PITH_TEST_INSTANCES()
// compiles.
#define PITH_TEST_MATMUL(linkage, T)                                                                                        \
  linkage template void matmul<T>(ConstMatrixRef<arithmetic_t<T>>, const PackedWeight<T>&, ConstVectorRef<arithmetic_t<T>>, \
                                  MatrixRef<arithmetic_t<T>>, Workspace&);                                                  \
  linkage template void matmul<T>(ConstMatrixRef<arithmetic_t<T>>, ConstMatrixRef<T>, ConstVectorRef<arithmetic_t<T>>,      \
                                  MatrixRef<arithmetic_t<T>>, Workspace&);                                                  \
  linkage template void detail::run_tile<T>(int, const detail::TileArgs<arithmetic_t<T>>&, const T*);                       \
  linkage template void matmul_transposed<T>(ConstMatrixRef<arithmetic_t<T>>, ConstMatrixRef<T>, MatrixRef<arithmetic_t<T>>, Workspace&);
#define PITH_TEST_ATTEND(linkage, ...)                                                                                                \
  linkage template class detail::AttendTile<__VA_ARGS__>;                                                                             \
  linkage template void detail::attend_observed<__VA_ARGS__>(                                                                         \
      const ConstMatrixRef<arithmetic_t<__VA_ARGS__>>&, const KvView<__VA_ARGS__>&, MatrixRef<arithmetic_t<__VA_ARGS__>>, Workspace&, \
      detail::TileObserver<arithmetic_t<__VA_ARGS__>>, const AttendOptions<arithmetic_t<__VA_ARGS__>>&);
#define PITH_TEST_LOW_RANK(linkage, S, T)                                                                                     \
  linkage template void detail::add_factors<S, T>(ConstMatrixRef<S>, ConstMatrixRef<T>, ConstMatrixRef<T>, ConstVectorRef<S>, \
                                                  MatrixRef<S>, Workspace&);
#define PITH_TEST_INSTANCES(linkage)                                                                                              \
  namespace pith {                                                                                                                \
  linkage template class Session<float, bfloat16>;                                                                                \
  linkage template class Session<float, Q8>;                                                                                      \
  linkage template class Session<float, Kv<Q8, Rotated<Q4>>>;                                                                     \
  linkage template class KvCache<double>;                                                                                         \
  linkage template class KvCache<bfloat16>;                                                                                       \
  linkage template class KvCache<half>;                                                                                           \
  linkage template class KvCache<Q8>;                                                                                             \
  linkage template class KvCache<Rotated<Q4>>;                                                                                    \
  linkage template class KvCache<Kv<Q8, Rotated<Q4>>>;                                                                            \
  PITH_TEST_ATTEND(linkage, double)                                                                                               \
  PITH_TEST_ATTEND(linkage, bfloat16)                                                                                             \
  PITH_TEST_ATTEND(linkage, half)                                                                                                 \
  PITH_TEST_ATTEND(linkage, Q8)                                                                                                   \
  PITH_TEST_ATTEND(linkage, Q4)                                                                                                   \
  PITH_TEST_ATTEND(linkage, Rotated<Q4>)                                                                                          \
  PITH_TEST_ATTEND(linkage, Kv<Q8, Rotated<Q4>>)                                                                                  \
  linkage template struct detail::IntegerProduct<detail::Int4Source, detail::FewLanes, detail::ManyLanes>;                        \
  linkage template struct detail::IntegerProduct<detail::Int8Source, pith_test::FewBytes, detail::PairLanes>;                     \
  linkage template void detail::run_tile<std::int8_t>(int, const detail::TileArgs<float>&, const std::int8_t*);                   \
  PITH_TEST_MATMUL(linkage, float)                                                                                                \
  PITH_TEST_MATMUL(linkage, double)                                                                                               \
  PITH_TEST_MATMUL(linkage, bfloat16)                                                                                             \
  PITH_TEST_MATMUL(linkage, half)                                                                                                 \
  PITH_TEST_LOW_RANK(linkage, float, float)                                                                                       \
  PITH_TEST_LOW_RANK(linkage, float, bfloat16)                                                                                    \
  PITH_TEST_LOW_RANK(linkage, double, double)                                                                                     \
  }                                                                                                                               \
  linkage template struct Eigen::internal::gebp_kernel<double, double, Eigen::Index, pith_test::GebpColumns, pith_test::Gebp::mr, \
                                                       pith_test::Gebp::nr, false, false>;

namespace pith_test {
using Gebp = Eigen::internal::gebp_traits<double, double>;
using GebpColumns = Eigen::internal::blas_data_mapper<double, Eigen::Index, Eigen::ColMajor>;
template <class> struct FewLanesOf;
template <class Source, class Few, class Many> struct FewLanesOf<pith::detail::IntegerProduct<Source, Few, Many>> { using type = Few; };
using FewBytes = FewLanesOf<pith::detail::Int8Product<pith::detail::PairLanes>>::type;
}  // namespace pith_test

PITH_TEST_INSTANCES(extern)
