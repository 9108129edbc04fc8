#pragma once
// The kernel of products with 4-bit weights.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <pith/core/integer_lanes.hpp>
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

/// y = x Wᵀ + bias over 4-bit panels with the lanes L.
template <class L> struct Int4Product {
  using Codes = typename L::Codes;
  static constexpr int row = int(panel_width) / L::width;  // registers of outputs in a panel
  static constexpr int together = (std::min)(row, 4), most_tokens = L::registers == 32 ? 12 : 3;

  const Int4Shape& shape;
  const std::byte* records;
  const std::int32_t* order;  // nullptr: inputs as they come

  void run(const ConstMatrixRef<float>& x, const ConstVectorRef<float>& bias, MatrixRef<float> y, Workspace& ws) const {
    const Index out = shape.out;
    if (x.rows() == 0 || out == 0) return;
    const Index passes = (x.rows() + token_block - 1) / token_block;
    const Workspace::Scope scope(ws);
    const Index most = (x.rows() + passes - 1) / passes, workers = ws.workers(), size = shape.group;
    EncodedRows rows{ws.take<std::int16_t>(shape.groups() * most * size),
                     ws.take<BlockFacts>(shape.groups() * most),
                     0,
                     shape.in,
                     size,
                     shape.zeros ? 0 : 8,
                     order};
    float* sums = ws.take<float>(workers * most * panel_width);
    Codes* unpacked = ws.take<Codes>(workers * row * size / 8);
    for (Index pass = 0; pass < passes; ++pass) {
      const Share part = share(x.rows(), pass, passes);
      rows.tokens = part.end - part.begin;
      const Index awake = double(rows.tokens) * double(shape.in) * double(out) < worth_waking ? 1 : workers;
      const Index encoders = (std::min)(awake, rows.tokens);
      ws.executor()(encoders, [&](Index i) {
        const Share own = share(rows.tokens, i, encoders);
        for (Index t = own.begin; t < own.end; ++t) rows.template encode<L>(t, x.data() + (part.begin + t) * x.outerStride());
      });
      ws.executor()(awake, [&](Index i) {
        const Share panels = share(shape.panels(), i, awake);
        float* own = sums + i * most * panel_width;
        for (Index p = panels.begin; p < panels.end; ++p) {
          panel(p, rows, own, unpacked + i * row * size / 8);
          const Index column = p * panel_width, n = (std::min)(panel_width, out - column);
          for (Index t = 0; t < rows.tokens; ++t) {
            float* to = y.data() + (part.begin + t) * y.outerStride() + column;
            for (Index o = 0; o < n; ++o) to[o] = bias.size() != 0 ? own[t * panel_width + o] + bias[column + o] : own[t * panel_width + o];
          }
        }
      });
    }
  }

 private:
  /// sums [tokens, 32]: the outputs of a panel.
  void panel(Index p, const EncodedRows& rows, float* sums, Codes* unpacked) const {
    const Index groups = shape.groups(), tiles = (rows.tokens + most_tokens - 1) / most_tokens;
    std::fill_n(sums, rows.tokens * panel_width, 0.f);
    for (Index g = 0; g < groups; ++g) {
      const Int4Record record{shape, records + (p * groups + g) * shape.record_bytes()};
      if (tiles > 1) {
        for (Index b = 0; b < shape.group / 8; ++b)
          for (int r = 0; r < row; ++r) unpacked[b * row + r] = L::unpack(record.words() + b * panel_width + r * L::width);
      }
      for (Index i = 0; i < tiles; ++i) {
        const Share own = share(rows.tokens, i, tiles);
        const auto with = [&](const auto& codes) {
          run_tile(own.end - own.begin, record, codes, rows.slot(g, own.begin), rows.fact(g, own.begin), sums + own.begin * panel_width);
        };
        if (tiles > 1) {
          with([&](Index b, int r) -> const Codes& { return unpacked[b * row + r]; });
        } else {
          with([&](Index b, int r) { return L::unpack(record.words() + b * panel_width + r * L::width); });
        }
      }
    }
  }

  template <int Most = most_tokens, class CodesAt>
  void run_tile(Index tokens, const Int4Record& record, const CodesAt& codes, const std::int16_t* x, const BlockFacts* facts,
                float* sums) const {
    if constexpr (Most > 1) {
      if (tokens < Most) return run_tile<Most - 1>(tokens, record, codes, x, facts, sums);
    }
    for (int first = 0; first < row; first += together) tile<Most>(record, codes, first, x, facts, sums);
  }

  template <int Tokens, class CodesAt>
  void tile(const Int4Record& record, const CodesAt& codes, int first, const std::int16_t* x, const BlockFacts* facts, float* sums) const {
    typename L::Sum sum[std::size_t(Tokens)][std::size_t(together)];
    for (int t = 0; t < Tokens; ++t)
      for (int r = 0; r < together; ++r) sum[t][r] = L::none();
    for (Index b = 0; b < shape.group / 8; ++b) {
      for (int r = 0; r < together; ++r) {
        const Codes c = codes(b, first + r);
        for (int t = 0; t < Tokens; ++t) L::add(sum[t][r], c, x + t * shape.group + 8 * b);
      }
    }
    for (int r = 0; r < together; ++r) {
      const int column = (first + r) * L::width;
      const auto scales =
          shape.half_scales ? L::template widen<half>(record.scales() + column) : L::template widen<bfloat16>(record.scales() + column);
      for (int t = 0; t < Tokens; ++t) {
        float* y = sums + t * panel_width + column;
        auto total = L::total(sum[t][r], facts[t].start);
        if (shape.zeros) total = L::fma(L::times(L::template widen<half>(record.zeros() + column), -1), L::broadcast(facts[t].sum), total);
        L::store(y, L::fma(total, L::times(scales, facts[t].step), L::load(y)));
      }
    }
  }
};

template <class L> std::size_t int4_workspace_bytes(const Int4Shape& shape, Index tokens, Index workers) {
  if (tokens <= 0) return 0;
  const Index most = (std::min)(tokens, token_block);
  return Workspace::bytes_for<std::int16_t>(shape.groups(), most, shape.group) + Workspace::bytes_for<BlockFacts>(shape.groups(), most) +
         Workspace::bytes_for<float>(workers, most, panel_width) +
         Workspace::bytes_for<typename L::Codes>(workers, Int4Product<L>::row, shape.group / 8);
}

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
