// What a weight is stored in, a layer computes in, or a file can hold.
// expect: pith: int8 weights are computed in float: pass float, bfloat16 or half
// expect: pith: int4 weights are computed in float: pass float, bfloat16 or half
// expect: pith: scales of four-bit weights are half or bfloat16
// expect: pith: bfloat16 and half weights are computed in float
// expect: LinearView<double, Eigen::
// expect: PackedLinear<double, Eigen::
// expect: pith: the layer computes in another scalar
// expect: pith: no safetensors dtype for this scalar; take BOOL as std::uint8_t
// expect: pith: the generator yields fewer than 16 bits a call; use std::mt19937_64
#include <random>
#include <type_traits>

#include <pith/core/random.hpp>
#include <pith/io/dtype.hpp>
#include <pith/nn.hpp>

using namespace pith;

template <class... A> void use(const A&...) {}

using Coin = std::independent_bits_engine<std::mt19937, 1, unsigned>;

void mistakes(const Matrix<float>& weight, const Matrix<double>& precise, Coin& coin, std::mt19937& rng) {
  const auto rows_with_scales = [](const auto& scales) {
    return [&scales](Index, Index) { return Int4Rows<typename std::remove_cvref_t<decltype(scales)>::Scalar>{.scales = scales}; };
  };
#ifndef PITH_CONTROL
  use(Int8Weight(precise));
  use(Int4Weight(precise));
  use(Int4Weight(8, 32, Int4Groups{}, rows_with_scales(weight)));
  use(LinearView<double, bfloat16>());
  use(PackedLinear<double, half>());
  use(AnyLinear<float>(Linear<double>(precise)));
  use(detail::dtype_of<bool>());
  use(canonical<float>(coin), rng);
#else
  const Matrix<half> narrow = weight.cast<half>();
  use(Int8Weight(weight), Int8Weight(narrow), Int4Weight(weight), Int4Weight(narrow));
  use(Int4Weight(8, 32, Int4Groups{}, rows_with_scales(narrow)));
  use(LinearView<float, bfloat16>(), PackedLinear<float, half>(), AnyLinear<double>(Linear<double>(precise)));
  use(detail::dtype_of<unsigned char>(), canonical<float>(rng), coin);
#endif
}
