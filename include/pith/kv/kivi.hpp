#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <pith/attention/q8.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

// KIVI: low-bit rounding of keys per channel and of values per token.

namespace pith { inline namespace v0 {

namespace detail {

/// Encodes n numbers at stride x_stride as codes at stride codes_stride: code = (x - minimum) / scale, halves to even.
template <class S>
void kivi_encode_group(const S* x, Index x_stride, Index n, int bits, std::uint8_t* codes, Index codes_stride, S& scale, S& minimum) {
  S low = x[0], high = x[0], odd = 0;  // odd becomes NaN if any number is not finite
  for (Index i = 0; i < n; ++i) {
    const S v = x[i * x_stride];
    low = (std::min)(low, v);
    high = (std::max)(high, v);
    odd += v - v;
  }
  const S top = static_cast<S>((1 << bits) - 1);
  const bool finite = std::isfinite(high - low + odd);
  scale = finite ? (high - low) / top : std::numeric_limits<S>::quiet_NaN();
  minimum = finite ? low : scale;
  for (Index i = 0; i < n; ++i)
    codes[i * codes_stride] =
        scale > 0 ? static_cast<std::uint8_t>(std::nearbyint(std::clamp((x[i * x_stride] - low) / scale, S(0), top))) : std::uint8_t(0);
}

/// Checks common to encoding and decoding. Returns the number of groups of `count` numbers.
inline Index kivi_check(const char* where, Index rows, Index cols, Index count, Index group, bool whole, std::size_t codes) {
  if (group < 1) raise<ShapeError>("pith::", where, ": group is ", group, ", expected 1 or more");
  if (whole && count % group != 0)
    raise<ShapeError>("pith::", where, ": ", count, " tokens are no whole groups of ", group, ": keep the rest in full precision");
  if (const Index expected = checked_product(where, rows, cols); static_cast<Index>(codes) != expected)
    raise<ShapeError>("pith::", where, ": codes holds ", codes, ", expected ", expected, " for ", shape_text(rows, cols));
  return count / group + (count % group != 0);
}

inline void kivi_check_bits(const char* where, int bits) {
  if (bits < 1 || bits > 8) raise<ShapeError>("pith::", where, ": bits is ", bits, ", expected 1 .. 8");
}

}  // namespace detail

/// Rounds keys per channel, because outliers sit in few channels: `group` consecutive tokens share a scale and a minimum per channel. A
/// code takes a byte for any number of bits.
///
///   scale = (max - min) / (2^bits - 1), code = round((k - min) / scale)
///
/// Equal numbers have scale 0 and codes 0. A group with a number or a range that is not finite has NaN as scale and minimum, and decodes
/// to NaN.
///
/// Shapes   k [tokens, d], tokens a multiple of group · codes [tokens*d] row by row · scale, minimum [tokens/group, d]
/// Cost     two sweeps of k
/// Heap     none
/// Throws   ShapeError if shapes disagree, group < 1, or bits is not 1 .. 8
/// Law      decoded numbers are off by at most half a scale, up to rounding
/// Paper    KIVI: arXiv:2402.02750
template <std::floating_point S>
void kivi_encode_keys(ConstMatrixRef<S> k, int bits, Index group, std::span<std::uint8_t> codes, std::type_identity_t<MatrixRef<S>> scale,
                      std::type_identity_t<MatrixRef<S>> minimum) {
  detail::kivi_check_bits("kivi_encode_keys", bits);
  const Index d = k.cols(), groups = detail::kivi_check("kivi_encode_keys", k.rows(), d, k.rows(), group, true, codes.size());
  check_shape("kivi_encode_keys", "scale", scale, groups, d);
  check_shape("kivi_encode_keys", "minimum", minimum, groups, d);
  for (Index g = 0; g < groups; ++g)
    for (Index c = 0; c < d; ++c)
      detail::kivi_encode_group(&k.coeffRef(g * group, c), k.outerStride(), group, bits, codes.data() + g * group * d + c, d,
                                scale.coeffRef(g, c), minimum.coeffRef(g, c));
}

/// Rounds values per token: `group` consecutive channels of a token share a scale and a minimum; the last group may be shorter.
///
/// Shapes   v [tokens, d] · codes [tokens*d] row by row · scale, minimum [tokens, ceil(d/group)]
/// Cost     two sweeps of v
/// Heap     none
/// Throws   ShapeError if shapes disagree, group < 1, or bits is not 1 .. 8
/// Law      decoded numbers are off by at most half a scale, up to rounding; the same exceptions as with keys
/// Paper    KIVI: arXiv:2402.02750
template <std::floating_point S>
void kivi_encode_values(ConstMatrixRef<S> v, int bits, Index group, std::span<std::uint8_t> codes, std::type_identity_t<MatrixRef<S>> scale,
                        std::type_identity_t<MatrixRef<S>> minimum) {
  detail::kivi_check_bits("kivi_encode_values", bits);
  const Index d = v.cols(), groups = detail::kivi_check("kivi_encode_values", v.rows(), d, d, group, false, codes.size());
  check_shape("kivi_encode_values", "scale", scale, v.rows(), groups);
  check_shape("kivi_encode_values", "minimum", minimum, v.rows(), groups);
  for (Index t = 0; t < v.rows(); ++t)
    for (Index g = 0; g < groups; ++g)
      detail::kivi_encode_group(&v.coeffRef(t, g * group), 1, (std::min)(group, d - g * group), bits, codes.data() + t * d + g * group, 1,
                                scale.coeffRef(t, g), minimum.coeffRef(t, g));
}

/// Decodes the output of kivi_encode_keys(): k = code * scale + minimum.
///
/// Shapes   codes [tokens*d] · scale, minimum [tokens/group, d] · k [tokens, d]
/// Heap     none
/// Throws   ShapeError if shapes disagree or group < 1
template <std::floating_point S>
void kivi_decode_keys(std::span<const std::uint8_t> codes, Index group, ConstMatrixRef<S> scale,
                      std::type_identity_t<ConstMatrixRef<S>> minimum, std::type_identity_t<MatrixRef<S>> k) {
  const Index d = k.cols(), groups = detail::kivi_check("kivi_decode_keys", k.rows(), d, k.rows(), group, true, codes.size());
  check_shape("kivi_decode_keys", "scale", scale, groups, d);
  check_shape("kivi_decode_keys", "minimum", minimum, groups, d);
  for (Index t = 0; t < k.rows(); ++t)
    for (Index c = 0; c < d; ++c)
      k(t, c) = static_cast<S>(codes[static_cast<std::size_t>(t * d + c)]) * scale(t / group, c) + minimum(t / group, c);
}

/// Decodes the output of kivi_encode_values(): v = code * scale + minimum.
///
/// Shapes   codes [tokens*d] · scale, minimum [tokens, ceil(d/group)] · v [tokens, d]
/// Heap     none
/// Throws   ShapeError if shapes disagree or group < 1
template <std::floating_point S>
void kivi_decode_values(std::span<const std::uint8_t> codes, Index group, ConstMatrixRef<S> scale,
                        std::type_identity_t<ConstMatrixRef<S>> minimum, std::type_identity_t<MatrixRef<S>> v) {
  const Index d = v.cols(), groups = detail::kivi_check("kivi_decode_values", v.rows(), d, d, group, false, codes.size());
  check_shape("kivi_decode_values", "scale", scale, v.rows(), groups);
  check_shape("kivi_decode_values", "minimum", minimum, v.rows(), groups);
  for (Index t = 0; t < v.rows(); ++t)
    for (Index c = 0; c < d; ++c)
      v(t, c) = static_cast<S>(codes[static_cast<std::size_t>(t * d + c)]) * scale(t, c / group) + minimum(t, c / group);
}

}}  // namespace pith::v0
