#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include <pith/core/types.hpp>

// Element types of tensors in files.
namespace pith { inline namespace v0 {

static_assert(std::endian::native == std::endian::little, "pith reads files in place: little-endian machines only");

/// The element types of safetensors. pith reads and writes all of them, and computes with F64, F32, F16 and BF16.
enum class DType : std::uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};

namespace detail {

struct DTypeInfo {
  std::string_view name;
  unsigned bits;
};
inline constexpr std::array<DTypeInfo, 22> dtypes{
    {{"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
     {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
     {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},    {"I64", 64}, {"U64", 64}}};

/// The DType with the memory layout of T.
template <class T> constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, double>)
    return DType::f64;
  else if constexpr (std::is_same_v<T, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<T, half>)
    return DType::f16;
  else if constexpr (std::is_same_v<T, bfloat16>)
    return DType::bf16;
  else {
    static_assert(std::is_integral_v<T> && !std::is_same_v<T, bool>,
                  "pith: no safetensors dtype for this scalar; take BOOL as std::uint8_t");
    constexpr bool is_signed = std::is_signed_v<T>;
    if constexpr (sizeof(T) == 1)
      return is_signed ? DType::i8 : DType::u8;
    else if constexpr (sizeof(T) == 2)
      return is_signed ? DType::i16 : DType::u16;
    else if constexpr (sizeof(T) == 4)
      return is_signed ? DType::i32 : DType::u32;
    else
      return is_signed ? DType::i64 : DType::u64;
  }
}

}  // namespace detail

constexpr std::string_view dtype_name(DType dtype) { return detail::dtypes[static_cast<std::size_t>(dtype)].name; }
constexpr unsigned dtype_bits(DType dtype) { return detail::dtypes[static_cast<std::size_t>(dtype)].bits; }

/// Whether pith computes with this type.
constexpr bool is_floating(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

}}  // namespace pith::v0
