#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <pith/core/types.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>

// What a safetensors header may hold: the same for reader and writer, so that every written file can be read.
namespace pith { inline namespace v0 { namespace detail {

/// Bits of a tensor; empty if its shape is negative or too large for any file.
inline std::optional<std::size_t> tensor_bits(DType dtype, std::span<const Index> shape) {
  std::size_t bits = dtype_bits(dtype);
  for (const Index extent : shape)
    if (extent < 0 || __builtin_mul_overflow(bits, static_cast<std::size_t>(extent), &bits) ||
        bits > (std::numeric_limits<std::size_t>::max)() / 2)
      return {};
  return bits;
}

/// Counts the memory that a parsed header takes.
class HeaderMemory {
 public:
  static std::size_t of_metadata(std::string_view key, std::string_view value) { return tree_node + letters(key) + letters(value); }
  static std::size_t of_tensor(std::string_view name, std::size_t rank) {
    return sizeof(TensorInfo) + sizeof(std::uint32_t) + block + name.size() + block + std::bit_ceil(rank) * sizeof(Index);
  }

  void add(std::size_t bytes) { bytes_ += bytes; }
  void remove(std::size_t bytes) { bytes_ -= bytes; }
  bool holds(std::size_t more) const { return more <= max_header_memory - bytes_; }

 private:
  static constexpr std::size_t block = 16;      ///< overhead of an allocation
  static constexpr std::size_t tree_node = 48;  ///< overhead of a std::map node
  static std::size_t letters(std::string_view s) { return sizeof(std::string) + block + s.size(); }

  std::size_t bytes_ = 0;
};

}}}  // namespace pith::v0::detail
