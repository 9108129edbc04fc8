#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>

// Converts a tensor's bytes to scalars.
namespace pith { inline namespace v0 { namespace detail {

/// Reads a T from any address, aligned or not.
template <class T> T load_unaligned(const std::byte* from) {
  T value;
  std::memcpy(static_cast<void*>(&value), from, sizeof value);
  return value;
}

/// Widens a value, or rounds it from double to float.
template <class S, class T> S to_scalar(T value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return static_cast<S>(detail::bits_as<float>(std::uint32_t(value.value) << 16));
  } else if constexpr (std::is_same_v<T, half>) {
    return static_cast<S>(static_cast<float>(value));
  } else {
    return static_cast<S>(value);
  }
}

/// Calls visit(T{}) for the C++ type of a dtype, if it has one.
template <class Visit> void with_type(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f64:
      return visit(double{});
    case DType::f32:
      return visit(float{});
    case DType::f16:
      return visit(half{});
    case DType::bf16:
      return visit(bfloat16{});
    case DType::boolean:
    case DType::u8:
      return visit(std::uint8_t{});
    case DType::i8:
      return visit(std::int8_t{});
    case DType::u16:
      return visit(std::uint16_t{});
    case DType::i16:
      return visit(std::int16_t{});
    case DType::u32:
      return visit(std::uint32_t{});
    case DType::i32:
      return visit(std::int32_t{});
    case DType::u64:
      return visit(std::uint64_t{});
    case DType::i64:
      return visit(std::int64_t{});
    default:
      return;
  }
}

inline bool is_integer(DType dtype) {
  bool integer = false;
  with_type(dtype, [&]<class T>(T) { integer = std::is_integral_v<T>; });
  return integer;
}

/// Refuses, by name, an element type that cannot be converted to S.
template <class S> void check_conversion(std::string_view file, const TensorInfo& tensor) {
  constexpr bool wants_float = std::is_floating_point_v<S>;
  if (tensor.dtype == dtype_of<S>() || (wants_float && is_floating(tensor.dtype)) || (std::is_integral_v<S> && is_integer(tensor.dtype)))
    return;
  raise<UnsupportedError>("pith: ", in_quotes(file), ": tensor ", in_quotes(tensor.name), " is ", dtype_name(tensor.dtype), ", expected ",
                          std::is_integral_v<S> ? std::string_view("an integer type")
                          : wants_float         ? "F64, F32, F16 or BF16"
                                                : dtype_name(dtype_of<S>()));
}

/// out[i] = value i. Returns the index of the first value that does not fit an integral S, or -1. check_conversion() must have passed.
template <class S> Index convert_values(DType dtype, const std::byte* from, Index n, S* out) {
  if (n == 0) return -1;
  if (dtype == dtype_of<S>()) {
    std::memcpy(static_cast<void*>(out), from, static_cast<std::size_t>(n) * sizeof(S));
    return -1;
  }
  Index bad = -1;
  with_type(dtype, [&]<class T>(T) {
    if constexpr (std::is_floating_point_v<S> && !std::is_integral_v<T>) {
      for (Index i = 0; i < n; ++i) out[i] = to_scalar<S>(load_unaligned<T>(from + static_cast<std::size_t>(i) * sizeof(T)));
    } else if constexpr (std::is_integral_v<S> && std::is_integral_v<T>) {
      for (Index i = 0; i < n; ++i) {
        const T value = load_unaligned<T>(from + static_cast<std::size_t>(i) * sizeof(T));
        if (bad < 0 && !std::in_range<S>(value)) bad = i;
        out[i] = static_cast<S>(value);
      }
    }
  });
  return bad;
}

/// The index of the first value that is NaN or infinite as S, or -1. One pass, mostly bit operations.
template <class S> Index first_non_finite(DType dtype, const std::byte* from, Index n) {
  Index bad = -1;
  with_type(dtype, [&]<class T>(T) {
    if constexpr (!std::is_integral_v<T>) {
      using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;
      constexpr int mantissa = std::is_same_v<T, double> ? 52 : std::is_same_v<T, float> ? 23 : std::is_same_v<T, half> ? 10 : 7;
      constexpr Bits exponent = static_cast<Bits>((Bits(~Bits{0}) >> 1) & ~((Bits{1} << mantissa) - 1));
      constexpr Index block = 4096;  // one branch per block, not per value
      for (Index first = 0; first < n && bad < 0; first += block) {
        const Index last = n - first < block ? n : first + block;
        unsigned found = 0;
        for (Index i = first; i < last; ++i)
          found |= unsigned((load_unaligned<Bits>(from + static_cast<std::size_t>(i) * sizeof(T)) & exponent) == exponent);
        const bool narrows = sizeof(S) < sizeof(T);
        for (Index i = first; (found != 0 || narrows) && i < last && bad < 0; ++i)
          if (!std::isfinite(to_scalar<S>(load_unaligned<T>(from + static_cast<std::size_t>(i) * sizeof(T))))) bad = i;
      }
    }
  });
  return bad;
}

}  // namespace detail

}}  // namespace pith::v0
