#pragma once
// Basic types: scalars, indices, positions, tokens and matrices. Refuses compilers and flags that pith does not work with.

#if defined(_MSVC_LANG) ? _MSVC_LANG <= 201703L : __cplusplus <= 201703L
#error "pith needs C++20: compile with -std=c++20, in CMake target_compile_features(<target> PRIVATE cxx_std_20)"
#include <pith/needs_cxx_20>  // no such file: the compiler stops here, before thousands of unhelpful errors
#endif
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "pith answers in infinities and refuses NaN: add -fno-finite-math-only behind -ffast-math or -Ofast"
#endif

#include <Eigen/Core>

#include <cstdint>
#include <type_traits>

static_assert(EIGEN_VERSION_AT_LEAST(3, 4, 0), "pith needs Eigen 3.4 or newer");

namespace pith { inline namespace v0 {

using Eigen::bfloat16;
using Eigen::half;
using Eigen::Index;

using Position = std::int32_t;  ///< index of a token in the sequence; never changes, independent of where the token is stored
using Token = std::int32_t;     ///< index into a vocabulary

/// The modality of a token. Policies that distinguish modalities only compare kinds for equality.
enum class TokenKind : std::uint8_t { text, image, audio, video };

/// [tokens, features], features contiguous. An Eigen column-major [features, tokens] is the same bytes: pass x.transpose().
template <class S> using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class S> using Vector = Eigen::Matrix<S, Eigen::Dynamic, 1>;

namespace detail {
/// std::bit_cast, which the standard libraries of some clang versions for wasm lack although the compilers have the builtin.
template <class To, class From> constexpr To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<To> && std::is_trivially_copyable_v<From>);
  return __builtin_bit_cast(To, from);
}

template <class T> struct Arithmetic { using type = T; };
template <> struct Arithmetic<bfloat16> { using type = float; };
template <> struct Arithmetic<half> { using type = float; };
template <> struct Arithmetic<std::int8_t> { using type = float; };
}  // namespace detail

/// The scalar type for computing with numbers stored as T: float for bfloat16, half and 8-bit integers.
template <class T> using arithmetic_t = typename detail::Arithmetic<T>::type;

}}  // namespace pith::v0
