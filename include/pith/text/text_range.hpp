#pragma once

#include <cstddef>

namespace pith { inline namespace v0 {

/// Bytes [begin, end) of a text.
struct TextRange {
  std::size_t begin = 0, end = 0;
};

}}  // namespace pith::v0
