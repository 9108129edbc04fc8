#pragma once
// The kernel of products with 4-bit weights.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <pith/core/integer_lanes.hpp>
#include <pith/core/processor.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/activation_blocks.hpp>
#include <pith/nn/detail/int4_panels.hpp>
#include <pith/nn/matmul.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // arrays of registers
#endif

namespace pith { inline namespace v0 { namespace detail {

/// A tile of Tokens tokens and some registers of outputs, a group at a time.
template <class L, int Tokens> struct Int4Tile {
  static constexpr int registers = L::tile_registers;

  /// Adds a group's products to sums [Tokens, 32], from register `first` of a panel on. codes.block(b, first): those of eight inputs.
  template <class Codes>
  static void run(const Int4Record& record, const Codes& codes, int first, const std::int16_t* x, Index x_stride, const BlockFacts* facts,
                  float* sums) {
    const Int4Shape& shape = record.shape;
    if (first == 0) __builtin_prefetch(record.data);  // in order of address: the scales lie before the codes
    typename L::Sum sum[std::size_t(Tokens)][std::size_t(registers)];
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 16
      for (int r = 0; r < registers; ++r) sum[t][r] = L::start(facts[t].start);
    }
    for (Index b = 0; b < shape.group / 8; ++b, x += x_stride) {
      const auto block = codes.block(b, first);
#pragma GCC unroll 4
      for (int part = 0; part < L::parts; ++part) {
        typename L::Part c[std::size_t(registers)];
#pragma GCC unroll 16
        for (int r = 0; r < registers; ++r) c[r] = block.part(part, r);
#pragma GCC unroll 16
        for (int t = 0; t < Tokens; ++t) {
          const typename L::Inputs xt = L::inputs(x + 8 * t, part);
#pragma GCC unroll 16
          for (int r = 0; r < registers; ++r) L::add(sum[t][r], c[r], xt);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < registers; ++r) {
      const int column = (first + r) * L::width;
      const auto scales = shape.half_scales ? L::widen_half(record.scales() + column) : L::widen_bfloat16(record.scales() + column);
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) {
        float* y = sums + t * panel_width + column;
        auto total = L::total(sum[t][r]);
        if (shape.zeros) total = L::fma(L::widen_half(record.zeros() + column), L::broadcast(-facts[t].sum), total);
        L::store(y, L::fma(total, L::times(scales, L::broadcast(facts[t].step)), L::load(y)));
      }
    }
  }
};

/// A record's codes, unpacked on their way into registers.
template <class L> struct PackedCodes {
  static constexpr int registers = L::tile_registers;
  struct Block {
    typename L::Words words[std::size_t(registers)];
    typename L::Part part(int p, int r) const { return L::unpack(words[r], p); }
  };
  const std::uint32_t* words;
  const char* ahead;  // prefetched meanwhile

  Block block(Index b, int first) const {
    Block out;
#pragma GCC unroll 16
    for (int r = 0; r < registers; ++r) {
      out.words[r] = L::words(words + b * panel_width + (first + r) * L::width);
    }
#pragma GCC unroll 16
    for (int r = 0; r < registers; r += (std::max)(1, 16 / L::width))
      __builtin_prefetch(ahead + (b * panel_width + (first + r) * L::width) * 4);
    if (b == 0 && first == 0) __builtin_prefetch(ahead - 64);
    return out;
  }
};

/// Codes that were unpacked before: [group / 8][row][parts].
template <class L> struct UnpackedCodes {
  using Part = typename L::Part;
  static constexpr int row = int(panel_width) / L::width;
  struct Block {
    const Part* parts;
    Part part(int p, int r) const { return parts[p * row + r]; }
  };
  Part* parts;

  Block block(Index b, int first) const { return {parts + b * row * L::parts + first}; }
  void unpack(const Int4Record& record) const {
    for (Index b = 0; b < record.shape.group / 8; ++b) {
      for (int r = 0; r < row; ++r) {
        const typename L::Words words = L::words(record.words() + b * panel_width + r * L::width);
        for (int p = 0; p < L::parts; ++p) parts[(b * L::parts + p) * row + r] = L::unpack(words, p);
      }
    }
  }
};

/// The sums of panels for some tokens, in tiles of L: each group in turn.
template <class L> struct Int4Panels {
  static constexpr Index most_together = 4;  // panels that few tokens read side by side: the hardware prefetches more streams
  static constexpr Index most_streamed = 2 * L::tile_tokens;  // tokens, beyond which unpacking once is cheaper than twice
  static constexpr int row = int(panel_width) / L::width;

  const Int4Shape& shape;
  const std::byte* records;

  bool alone() const { return std::size_t(shape.record_bytes()) > processor.long_record; }
  Index together() const { return alone() ? 1 : most_together; }
  Int4Record record(Index p, Index g) const { return {shape, records + (p * shape.groups() + g) * shape.record_bytes()}; }

  /// Straight from the records: few tokens.
  ///
  /// Shapes   sums [panels, tokens, 32]
  void stream(Share panels, const EncodedRows& rows, float* sums) const {
    std::fill_n(sums, (panels.end - panels.begin) * rows.tokens * panel_width, 0.f);
    const Index panel_bytes = shape.groups() * shape.record_bytes(), others = (panels.end - panels.begin - 1) * panel_bytes;
    const Index distance = alone() ? 4 * fetched_ahead : fetched_ahead;
    for (Index g = 0; g < shape.groups(); ++g) {
      // Behind the end of a panel follow those that are read beside it, and then the next of its stream.
      const Index ahead = distance + (g * shape.record_bytes() + distance < panel_bytes ? 0 : others);
      for (Index p = panels.begin; p < panels.end; ++p) {
        const Int4Record from = record(p, g);
        const PackedCodes<L> codes{from.words(), reinterpret_cast<const char*>(from.words()) + ahead};
        run_tiles(rows, g, from, codes, sums + (p - panels.begin) * rows.tokens * panel_width);
      }
    }
  }
  /// By way of codes unpacked into `parts`: many tokens.
  ///
  /// Shapes   sums [tokens, 32] · parts [group / 8, L::parts, row]
  void block(Index p, const EncodedRows& rows, float* sums, typename L::Part* parts) const {
    std::fill_n(sums, rows.tokens * panel_width, 0.f);
    const UnpackedCodes<L> codes{parts};
    for (Index g = 0; g < shape.groups(); ++g) {
      const Int4Record from = record(p, g);
      codes.unpack(from);
      run_tiles(rows, g, from, codes, sums);
    }
  }

 private:
  template <class Codes> static void run_tiles(const EncodedRows& rows, Index g, const Int4Record& from, const Codes& codes, float* sums) {
    const Index tiles = (rows.tokens + L::tile_tokens - 1) / L::tile_tokens;
    for (Index i = 0; i < tiles; ++i) {
      const Share own = share(rows.tokens, i, tiles);
      run_tile<L::tile_tokens>(own.end - own.begin, from, codes, rows.slot(g, own.begin), rows.stride(), rows.fact(g, own.begin),
                               sums + own.begin * panel_width);
    }
  }
  template <int Tokens, class Codes>
  static void run_tile(Index tokens, const Int4Record& from, const Codes& codes, const std::int16_t* x, Index x_stride,
                       const BlockFacts* facts, float* sums) {
    if constexpr (Tokens > 1) {
      if (tokens < Tokens) return run_tile<Tokens - 1>(tokens, from, codes, x, x_stride, facts, sums);
    }
    for (int first = 0; first < row; first += L::tile_registers) Int4Tile<L, Tokens>::run(from, codes, first, x, x_stride, facts, sums);
  }
};

/// y = x Wᵀ + bias over 4-bit panels, with the lanes Few for so few tokens that one tile holds them, and Many for more.
template <class Few, class Many> struct Int4Product {
  const Int4Shape& shape;
  const std::byte* records;
  const std::int32_t* order;  // the input at each place; nullptr: as they come

  void run(const ConstMatrixRef<float>& x, const ConstVectorRef<float>& bias, MatrixRef<float> y, Workspace& ws) const {
    if (x.rows() == 0 || shape.out == 0) return;
    const Index passes = (x.rows() + token_block - 1) / token_block;
    for (Index pass = 0; pass < passes; ++pass) {
      const Share own = share(x.rows(), pass, passes);
      const Index tokens = own.end - own.begin;
      const ConstMatrixRef<float> from = x.middleRows(own.begin, tokens);
      const MatrixRef<float> to = y.middleRows(own.begin, tokens);
      if (tokens <= Few::tile_tokens) {
        run_pass<Few>(from, bias, to, ws);
      } else {
        run_pass<Many>(from, bias, to, ws);
      }
    }
  }

  static std::size_t workspace_bytes(const Int4Shape& shape, Index tokens, Index workers) {
    const Index most = (std::min)(tokens, token_block);
    return tokens <= 0 ? 0 : (std::max)(pass_bytes<Few>(shape, most, workers), pass_bytes<Many>(shape, most, workers));
  }

 private:
  template <class L> static Index sum_rows(Index tokens) {
    using Panels = Int4Panels<L>;
    return tokens <= Panels::most_streamed ? Panels::most_together * tokens : tokens;
  }
  template <class L> static std::size_t pass_bytes(const Int4Shape& shape, Index tokens, Index workers) {
    const Index rows = (std::max)(tokens, sum_rows<L>((std::min)(tokens, Int4Panels<L>::most_streamed)));  // monotone
    return Workspace::bytes_for<std::int16_t>(shape.groups(), tokens, shape.group) +
           Workspace::bytes_for<BlockFacts>(shape.groups(), tokens) + Workspace::bytes_for<float>(workers, rows, panel_width) +
           Workspace::bytes_for<typename L::Part>(workers, shape.group / 8 * L::parts, Int4Panels<L>::row);
  }

  template <class L>
  void run_pass(const ConstMatrixRef<float>& x, const ConstVectorRef<float>& bias, MatrixRef<float> y, Workspace& ws) const {
    using Panels = Int4Panels<L>;
    const Workspace::Scope scope(ws);
    const Index tokens = x.rows(), blocks = shape.groups(), rows_of_sums = sum_rows<L>(tokens),
                parts = shape.group / 8 * L::parts * Panels::row;
    const Index workers = double(tokens) * double(shape.in) * double(shape.out) < worth_waking ? 1 : ws.workers();
    const EncodedRows rows{ws.take<std::int16_t>(blocks * tokens * shape.group),
                           ws.take<BlockFacts>(blocks * tokens),
                           tokens,
                           shape.in,
                           shape.group,
                           shape.zeros ? 0 : 8,
                           order};
    const Index encoders = (std::min)(workers, tokens);
    ws.executor()(encoders, [&](Index i) {
      const Share own = share(tokens, i, encoders);
      for (Index t = own.begin; t < own.end; ++t) rows.template encode<L>(t, x.data() + t * x.outerStride());
    });
    float* all_sums = ws.take<float>(workers * rows_of_sums * panel_width);
    typename L::Part* all_parts = ws.take<typename L::Part>(workers * parts);
    const Panels panels{shape, records};
    ws.executor()(workers, [&](Index i) {
      const Share own = share(shape.panels(), i, workers);
      float* sums = all_sums + i * rows_of_sums * panel_width;
      if (tokens > Panels::most_streamed) {
        for (Index p = own.begin; p < own.end; ++p) {
          panels.block(p, rows, sums, all_parts + i * parts);
          write(p, sums, bias, y);
        }
      } else {
        for (Index p = own.begin; p < own.end; p += panels.together()) {
          const Share some{p, (std::min)(p + panels.together(), own.end)};
          panels.stream(some, rows, sums);
          for (Index q = some.begin; q < some.end; ++q) write(q, sums + (q - p) * tokens * panel_width, bias, y);
        }
      }
    });
  }

  /// Writes the outputs of a panel, with the bias.
  static void write(Index p, const float* sums, const ConstVectorRef<float>& bias, MatrixRef<float> y) {
    const Index column = p * panel_width, n = (std::min)(panel_width, y.cols() - column);
    for (Index t = 0; t < y.rows(); ++t, sums += panel_width) {
      float* to = y.data() + t * y.outerStride() + column;
      if (bias.size() == 0) {
        std::copy_n(sums, n, to);
      } else {
        for (Index o = 0; o < n; ++o) to[o] = sums[o] + bias[column + o];
      }
    }
  }
};

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
