#pragma once
// Rows of weights as panels, by transposed squares of packets.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index panel_width = 32;  // a constant of the format, independent of the packet width

/// The place of column c in each row of a panel. bfloat16 keeps c and c + 16 side by side, so that a shift and a mask widen one 32-bit
/// word to both.
template <class T> constexpr Index panel_slot(Index c) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return c % 16 * 2 + c / 16;
  } else {
    return c;
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // packets as template arguments of Eigen's functions keep their alignment
#endif

/// Rows [32, in] as a panel [in][32]: packets of columns come in, packets of rows go out.
///
/// Numbers of 16 bits move as words of two: a word of two columns from each of two rows gives a word of both rows for each of the columns.
/// Some columns of all rows are copied first. Rows are often a multiple of 4096 bytes apart, and the columns of all of them would then
/// share the eight lines of one place in L1: 10 GB/s, and 27 where the rows are 64 bytes further apart (bfloat16 in L2 of a Zen 4).
template <class T> class PanelSquares {
  using Word = std::conditional_t<sizeof(T) == sizeof(double), double, float>;
  using V = Simd<Word>;
  using Packet = typename V::Packet;
  static constexpr Index width = V::width;
  static constexpr bool paired = sizeof(T) == 2;
  static constexpr Index depth = paired ? 2 * width : width;  // columns of a square

 public:
  /// Whether this build has packets for T.
  static constexpr bool possible = width > 1 && sizeof(T) > 1 && (!paired || std::endian::native == std::endian::little);

  /// Packs whole squares of columns and returns how many columns that are.
  static Index pack(const ConstMatrixRef<T>& rows, T* panel) {
    constexpr Index bytes = 512, columns = bytes / Index(sizeof(T)), stride = columns + 64 / Index(sizeof(T));
    alignas(64) T copied[std::size_t(panel_width * stride)];
    const Index whole = rows.cols() / depth * depth;
    for (Index k = 0; k < whole; k += columns) {
      const Index n = (std::min)(columns, whole - k);
      for (Index r = 0; r < panel_width; ++r)
        std::memcpy(copied + r * stride, rows.data() + r * rows.outerStride() + k, static_cast<std::size_t>(n) * sizeof(T));
      for (Index i = 0; i < n; i += depth) square(copied + i, stride, panel + (k + i) * panel_width);
    }
    return whole;
  }

 private:
  static void square(const T* rows, Index stride, T* panel) {
    const auto load = [&](Index row) { return V::load(reinterpret_cast<const Word*>(rows + row * stride)); };
    const auto store = [&](Index column, Index slot, Packet words) {
      V::store(reinterpret_cast<Word*>(panel + column * panel_width + slot), words);
    };
    if constexpr (paired) {
      using Words = typename Eigen::internal::unpacket_traits<Packet>::integer_packet;
      using namespace Eigen::internal;
      const Packet first_column = pset1frombits<Packet>(0x0000FFFFu), second_column = pset1frombits<Packet>(0xFFFF0000u);
      constexpr Index apart = std::is_same_v<T, bfloat16> ? panel_width / 2 : 1;  // the rows of a word are r and r + apart
      for (Index word = 0; word < panel_width / 2; word += width) {
        Packet first[std::size_t(width)], second[std::size_t(width)];
        for (Index i = 0; i < width; ++i) {
          const Index row = apart == 1 ? 2 * (word + i) : word + i;
          const Packet a = load(row), b = load(row + apart);
          first[i] = por(pand(a, first_column), preinterpret<Packet>(plogical_shift_left<16>(preinterpret<Words>(b))));
          second[i] = por(preinterpret<Packet>(plogical_shift_right<16>(preinterpret<Words>(a))), pand(b, second_column));
        }
        V::transpose(first);
        V::transpose(second);
        for (Index i = 0; i < width; ++i) {
          store(2 * i, 2 * word, first[i]);
          store(2 * i + 1, 2 * word, second[i]);
        }
      }
    } else {
      for (Index row = 0; row < panel_width; row += width) {
        Packet words[std::size_t(width)];
        for (Index i = 0; i < width; ++i) words[i] = load(row + i);
        V::transpose(words);
        for (Index i = 0; i < width; ++i) store(i, row, words[i]);
      }
    }
  }
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

}}}  // namespace pith::v0::detail
