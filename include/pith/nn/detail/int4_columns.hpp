#pragma once
// Products with 4-bit weights the other way, as a backward pass needs them.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <pith/core/detail/nibbles.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/int4_panels.hpp>
#include <pith/nn/matmul.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// 4-bit panels as a matrix [out, places]: blocks of 32 places are decoded into scratch for the kernel of floats.
struct Int4Columns {
  using Stored = float;
  static constexpr bool direct = false, copies = true;
  static constexpr Index row_bytes = 0;

  const Int4Shape& shape;
  const std::byte* records;

  const void* address(Index, Index) const { return records; }
  const float* block(Index p, Index k0, Index depth, float* scratch) const {
    constexpr int shifts[8] = {nibble_shift(0), nibble_shift(1), nibble_shift(2), nibble_shift(3),
                               nibble_shift(4), nibble_shift(5), nibble_shift(6), nibble_shift(7)};
    const Index places = shape.groups() * shape.group;
    for (Index place = p * panel_width; place < (p + 1) * panel_width; place += 8) {
      float* to = scratch + place % panel_width;
      for (Index k = 0; k < depth; ++k, to += panel_width) {
        if (place >= places) {
          std::fill_n(to, 8, 0.f);
          continue;
        }
        const Index o = (k0 + k) % panel_width, g = place / shape.group;
        const Int4Record record{shape, records + ((k0 + k) / panel_width * shape.groups() + g) * shape.record_bytes()};
        const std::uint32_t word = record.words()[place % shape.group / 8 * panel_width + o];
        const float scale = record.scale(o), zero = record.zero(o);
        for (int j = 0; j < 8; ++j) to[j] = (static_cast<float>(static_cast<std::int32_t>(word >> shifts[j] & 15)) - zero) * scale;
      }
    }
    return scratch;
  }
};

/// y = x W over 4-bit panels.
inline void int4_transposed(const ConstMatrixRef<float>& x, const Int4Shape& shape, const std::byte* records, const std::int32_t* order,
                            MatrixRef<float> y, Workspace& ws) {
  const Int4Columns columns{shape, records};
  if (order == nullptr) return product(Product<float>{x, {}, y}, columns, ws);
  const Workspace::Scope scope(ws);
  MatrixRef<float> placed = ws.matrix<float>(y.rows(), y.cols());
  product(Product<float>{x, {}, placed}, columns, ws);
  for (Index t = 0; t < y.rows(); ++t)
    for (Index place = 0; place < y.cols(); ++place) y(t, order[place]) = placed(t, place);
}

inline std::size_t int4_transposed_workspace_bytes(const Int4Shape& shape, bool ordered, Index tokens, Index workers) {
  return matmul_workspace_bytes<float>(tokens, shape.out, workers) + (ordered ? Workspace::bytes_for<float>(tokens, shape.in) : 0);
}

}}}  // namespace pith::v0::detail
