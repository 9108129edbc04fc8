#pragma once
// The kernel of products of codes with activations in blocks of 15-bit integers.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <pith/core/detail/integer_lanes.hpp>
#include <pith/core/detail/processor.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/activation_blocks.hpp>
#include <pith/nn/detail/matmul_kernel.hpp>
#include <pith/nn/packed.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // arrays of registers
#endif

namespace pith { inline namespace v0 { namespace detail {

/// A tile of Tokens tokens and some registers of outputs, a record at a time: a panel's codes of as many inputs as a block of activations.
template <class L, int Tokens> struct IntegerTile {
  static constexpr int registers = L::tile_registers;

  /// Adds a record's products to sums [Tokens, 32], from register `first` of a panel on. codes.slice(b, first): those of eight inputs.
  template <class Record, class Codes>
  [[gnu::always_inline]] static inline void run(const Record& record, const Codes& codes, int first, const std::int16_t* x, Index x_stride,
                                                const BlockFacts* facts, float* sums) {
    if constexpr (Codes::how == Prefetch::every_line)
      if (first == 0) __builtin_prefetch(record.data);  // in order of address: the scales lie before the codes
    typename L::Sum sum[std::size_t(Tokens)][std::size_t(registers)];
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 16
      for (int r = 0; r < registers; ++r) sum[t][r] = L::start(facts[t].start);
    }
    const Index slices = record.slices();
    for (Index b = 0; b < slices; ++b, x += x_stride) {
      const auto slice = codes.slice(b, first);
#pragma GCC unroll 4
      for (int part = 0; part < L::parts; ++part) {
        typename L::Part c[std::size_t(registers)];
#pragma GCC unroll 16
        for (int r = 0; r < registers; ++r) c[r] = slice.part(part, r);
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
      const auto scaled = record.template scaling<L>(column);
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) {
        float* y = sums + t * panel_width + column;
        L::store(y, scaled(L::total(sum[t][r]), facts[t], L::load(y)));
      }
    }
  }
};

/// A record's codes, unpacked on their way into registers.
template <class L, int Tokens, class Record> struct PackedCodes {
  static constexpr Index tile_bytes = Record::slice_bytes * L::tile_registers * L::width / panel_width;
  static constexpr Prefetch how = prefetch_of(Tokens, Prefetch::some_lines_into_l2);
  const char* codes;
  const char* ahead;  // prefetched meanwhile

  auto slice(Index b, int first) const {
    const Index offset = b * Record::slice_bytes + first * L::width * Record::slice_bytes / panel_width;
#pragma GCC unroll 16
    for (Index i = 0; i < tile_bytes; i += 64) fetch_weights<how>(ahead + offset + i, offset + i);
    if constexpr (Record::has_header)
      if (b == 0 && first == 0) fetch_weights<how>(ahead - 64, 64);
    return Record::template slice<L>(codes, b, first);
  }
};

/// Codes that were unpacked before: [slices][L::parts][row].
template <class L> struct UnpackedCodes {
  using Part = typename L::Part;
  static constexpr int row = int(panel_width) / L::width;
  static constexpr Prefetch how = Prefetch::every_line;
  struct Slice {
    const Part* parts;
    Part part(int p, int r) const { return parts[p * row + r]; }
  };
  Part* parts;

  Slice slice(Index b, int first) const { return {parts + b * row * L::parts + first}; }
  template <class Record> void unpack(const Record& record) const {
    const char* codes = record.codes();
    for (Index b = 0; b < record.slices(); ++b) {
      for (int first = 0; first < row; first += L::tile_registers) {
        const auto slice = Record::template slice<L>(codes, b, first);
        for (int p = 0; p < L::parts; ++p)
          for (int r = 0; r < L::tile_registers; ++r) parts[(b * L::parts + p) * row + first + r] = slice.part(p, r);
      }
    }
  }
};

/// The sums of panels for some tokens, in tiles of L: each record in turn.
template <class Source, class L> struct IntegerPanels {
  using Record = typename Source::Record;
  static constexpr Index most_together = 4;  // panels that few tokens read side by side: the hardware prefetches more streams
  static constexpr Index most_streamed = 2 * L::tile_tokens;  // tokens, beyond which unpacking once is cheaper than twice
  static constexpr int row = int(panel_width) / L::width;

  const Source& weights;

  Index together() const { return weights.alone() ? 1 : most_together; }

  /// Straight from the records: few tokens, a tile of them at a time.
  ///
  /// Shapes   sums [panels, tokens, 32]
  void stream(Share panels, const EncodedRows& rows, float* sums) const {
    std::fill_n(sums, (panels.end - panels.begin) * rows.tokens * panel_width, 0.f);
    const Index tiles = tiles_of(rows.tokens);
    for (Index i = 0; i < tiles; ++i) {
      const Share own = share(rows.tokens, i, tiles);
      with_tile<L::tile_tokens>(own.end - own.begin, [&](auto tokens) { stream_tile<tokens>(panels, rows, own.begin, sums); });
    }
  }
  /// By way of codes unpacked into `parts`: many tokens.
  ///
  /// Shapes   sums [tokens, 32] · parts [slices, L::parts, row]
  void block(Index p, const EncodedRows& rows, float* sums, typename L::Part* parts) const {
    std::fill_n(sums, rows.tokens * panel_width, 0.f);
    const UnpackedCodes<L> codes{parts};
    const Index tiles = tiles_of(rows.tokens);
    for (Index g = 0; g < weights.blocks(); ++g) {
      const Record from = weights.record(p, g);
      codes.unpack(from);
      for (Index i = 0; i < tiles; ++i) {
        const Share own = share(rows.tokens, i, tiles);
        with_tile<L::tile_tokens>(own.end - own.begin, [&](auto tokens) { block_tile<tokens>(from, codes, rows, g, own.begin, sums); });
      }
    }
  }

 private:
  static Index tiles_of(Index tokens) { return (tokens + L::tile_tokens - 1) / L::tile_tokens; }

  /// run(tokens), the number as a constant: at most Most.
  template <int Most, class Run> static void with_tile(Index tokens, const Run& run) {
    if constexpr (Most > 1) {
      if (tokens < Most) return with_tile<Most - 1>(tokens, run);
    }
    run(std::integral_constant<int, Most>{});
  }

  // A function for each number of tokens: its registers are its own.
  template <int Tokens> [[gnu::noinline]] void stream_tile(Share panels, const EncodedRows& rows, Index token, float* sums) const {
    const Index panel_bytes = weights.panel_bytes(), others = (panels.end - panels.begin - 1) * panel_bytes;
    const Index distance = weights.distance(), blocks = weights.blocks();
    for (Index g = 0; g < blocks; ++g) {
      // Behind the end of a panel follow those that are read beside it, and then the next of its stream.
      const Index ahead = distance + (g * weights.record_bytes() + distance < panel_bytes ? 0 : others);
      float* to = sums + token * panel_width;
      for (Index p = panels.begin; p < panels.end; ++p, to += rows.tokens * panel_width) {
        const Record from = weights.record(p, g);
        const PackedCodes<L, Tokens, Record> codes{from.codes(), from.codes() + ahead};
        run_tile<Tokens>(from, codes, rows, g, token, to);
      }
    }
  }
  template <int Tokens>
  [[gnu::noinline]] static void block_tile(const Record& from, const UnpackedCodes<L>& codes, const EncodedRows& rows, Index g, Index token,
                                           float* sums) {
    run_tile<Tokens>(from, codes, rows, g, token, sums + token * panel_width);
  }
  template <int Tokens, class Codes>
  [[gnu::always_inline]] static inline void run_tile(const Record& from, const Codes& codes, const EncodedRows& rows, Index g, Index token,
                                                     float* sums) {
    for (int first = 0; first < row; first += L::tile_registers)
      IntegerTile<L, Tokens>::run(from, codes, first, rows.slot(g, token), rows.stride(), rows.fact(g, token), sums);
  }
};

/// y = x Wᵀ + bias over panels of codes, with the lanes Few for so few tokens that one tile holds them, and Many for more.
///
/// Of a Source of weights it needs their shape, in blocks of activations: in(), out(), size(), blocks(), panels(), panel_bytes(),
/// record_bytes(); whether few tokens read panels alone() or side by side, and the distance() of prefetching; zero() and order() for
/// EncodedRows; record(panel, block) with data, codes(), slices(), slice(), scaling(); write().
template <class Source, class Few, class Many> struct IntegerProduct {
  Source weights;

  void run(const ConstMatrixRef<float>& x, const ConstVectorRef<float>& bias, MatrixRef<float> y, Workspace& ws) const;

  std::size_t workspace_bytes(Index tokens, Index workers) const {
    const Index most = (std::min)(tokens, token_block);
    return tokens <= 0 ? 0 : (std::max)(pass_bytes<Few>(most, workers), pass_bytes<Many>(most, workers));
  }

 private:
  template <class L> static Index sum_rows(Index tokens) {
    using Panels = IntegerPanels<Source, L>;
    return tokens <= Panels::most_streamed ? Panels::most_together * tokens : tokens;
  }
  template <class L> std::size_t pass_bytes(Index tokens, Index workers) const {
    using Panels = IntegerPanels<Source, L>;
    const Index rows = (std::max)(tokens, sum_rows<L>((std::min)(tokens, Panels::most_streamed)));  // monotone
    return Workspace::bytes_for<std::int16_t>(weights.blocks(), tokens, weights.size()) +
           Workspace::bytes_for<BlockFacts>(weights.blocks(), tokens) + Workspace::bytes_for<float>(workers, rows, panel_width) +
           Workspace::bytes_for<typename L::Part>(workers, weights.size() / 8 * L::parts, Panels::row);
  }

  template <class L>
  void run_pass(const ConstMatrixRef<float>& x, const ConstVectorRef<float>& bias, MatrixRef<float> y, Workspace& ws) const {
    using Panels = IntegerPanels<Source, L>;
    const Workspace::Scope scope(ws);
    const Index tokens = x.rows(), blocks = weights.blocks(), rows_of_sums = sum_rows<L>(tokens),
                parts = weights.size() / 8 * L::parts * Panels::row;
    const Index workers = double(tokens) * double(weights.in()) * double(weights.out()) < worth_waking ? 1 : ws.workers();
    const EncodedRows rows{ws.take<std::int16_t>(blocks * tokens * weights.size()),
                           ws.take<BlockFacts>(blocks * tokens),
                           tokens,
                           weights.in(),
                           weights.size(),
                           weights.zero(),
                           weights.order()};
    const Index encoders = (std::min)(workers, tokens);
    ws.executor()(encoders, [&](Index i) {
      const Share own = share(tokens, i, encoders);
      for (Index t = own.begin; t < own.end; ++t) rows.template encode<L>(t, x.data() + t * x.outerStride());
    });
    float* all_sums = ws.take<float>(workers * rows_of_sums * panel_width);
    typename L::Part* all_parts = ws.take<typename L::Part>(workers * parts);
    const Panels panels{weights};
    ws.executor()(workers, [&](Index i) {
      const Share own = share(weights.panels(), i, workers);
      float* sums = all_sums + i * rows_of_sums * panel_width;
      if (tokens > Panels::most_streamed) {
        for (Index p = own.begin; p < own.end; ++p) {
          panels.block(p, rows, sums, all_parts + i * parts);
          weights.template write<L>(p, sums, bias, y);
        }
      } else {
        for (Index p = own.begin; p < own.end; p += panels.together()) {
          const Share some{p, (std::min)(p + panels.together(), own.end)};
          panels.stream(some, rows, sums);
          for (Index q = some.begin; q < some.end; ++q) weights.template write<L>(q, sums + (q - p) * tokens * panel_width, bias, y);
        }
      }
    });
  }
};

// Out of the class, so that a program which compiles it once (extern template) compiles nothing of it elsewhere.
template <class Source, class Few, class Many>
void IntegerProduct<Source, Few, Many>::run(const ConstMatrixRef<float>& x, const ConstVectorRef<float>& bias, MatrixRef<float> y,
                                            Workspace& ws) const {
  if (x.rows() == 0 || weights.out() == 0) return;
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

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
