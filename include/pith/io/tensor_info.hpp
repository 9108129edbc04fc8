#pragma once

#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/io/dtype.hpp>

namespace pith { inline namespace v0 {

/// A tensor of a safetensors file, as its header describes it.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<Index> shape;        ///< row-major; empty: a scalar
  std::size_t begin = 0, end = 0;  ///< bytes [begin, end) of the file's data, which follows the header

  Index elements() const {
    return std::accumulate(shape.begin(), shape.end(), Index{1}, [](Index a, Index b) { return a * b; });
  }
  std::size_t bytes() const { return end - begin; }
};

/// Limits of reader and writer. The first is the format's; the others bound a header's cost to 64 MB of memory besides its bytes.
inline constexpr std::size_t max_header_bytes = 100'000'000;
inline constexpr std::size_t max_header_entries = std::size_t{1} << 18;     ///< tensors
inline constexpr std::size_t max_header_text_bytes = std::size_t{4} << 20;  ///< of one metadata text, as JSON writes it
inline constexpr std::size_t max_header_memory = std::size_t{42} << 20;     ///< for names, shapes and metadata
inline constexpr std::size_t max_tensor_name_bytes = 4096;
inline constexpr std::size_t max_tensor_rank = 64;

}}  // namespace pith::v0
