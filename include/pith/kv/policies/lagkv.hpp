#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include <pith/kv/detail/channels.hpp>
#include <pith/kv/policy.hpp>
#include <pith/nn/softmax.hpp>

namespace pith { inline namespace v0 {

/// LagKV: keeps tokens whose keys and values spread more than those of the tokens after them.
///
///   s_r(x) = softmax_r(std_c((x_rc - min_c) / (max_c - min_c))), min and max over the next part; score_r = rank_r(s(K) + s(V)) / lag
///
/// The prompt behind the sinks is cut into parts of `lag` tokens. Rows are ranked within their part; among equals the later row ranks
/// higher. The last part and the remainder outrank all others. A prompt too short for two parts keeps its newest rows. A channel that is
/// constant in the next part is left out.
///
/// Keeps    `keep` rows by rank, the first `sinks` among them, when a prompt ends; of equal ranks the newer
/// Needs    keys and values
/// Cost     four sweeps of both, once, and lag compares per row
/// Paper    LagKV: arXiv:2504.04704
struct LagKv {
  Index keep = 1024;  ///< rows kept
  Index sinks = 4;    ///< initial tokens, always kept
  Index lag = 128;    ///< tokens of a part
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    check_count("LagKv", "keep", keep, 1);
    check_count("LagKv", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
    check_count("LagKv", "lag", lag, 1, max_head_rows / 2);
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .reads_rows = true}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index n = rows.size(), initial = sinks_held(rows), parts = (n - initial) / lag;
    if (parts < 2) {
      for (Index r = 0; r < n; ++r) out[r] = static_cast<S>(rows.positions[static_cast<std::size_t>(r)]);
    } else {
      out.setOnes();
    }
    for (Index p = 0; p + 1 < parts; ++p) {
      const Index first = initial + p * lag;
      auto part = out.segment(first, lag);
      VectorRef<S> spread(rows.scratch, lag);
      spreads(rows.keys, first, spread);
      part = spread / S(2);
      spreads(rows.values, first, spread);
      part += spread / S(2);
      spread = part;
      for (Index r = 0; r < lag; ++r) {
        Index below = 0;
        for (Index other = 0; other < lag; ++other) below += spread[other] < spread[r] || (spread[other] == spread[r] && other < r);
        part[r] = static_cast<S>(below) / static_cast<S>(lag);
      }
    }
    out.head(initial).setConstant(std::numeric_limits<S>::infinity());
  }

 private:
  /// Number of sinks among the rows, which are in order of position.
  template <class S> Index sinks_held(const KvRows<S>& rows) const {
    Index held = 0;
    while (held < rows.size() && rows.positions[static_cast<std::size_t>(held)] - rows.first < sinks) ++held;
    return held;
  }

  /// out = softmax over the part of the standard deviation over channels, each channel scaled by its range in the next part.
  template <class S> void spreads(const ConstMatrixRef<S>& x, Index first, VectorRef<S> out) const {
    constexpr S most = S(1 << 30);  // limit for tiny ranges: its square is finite, and its softmax is 0 or 1
    Index scaled = 0;
    // Calls f(row, scaled number) for every number of the part in a channel with a range above 0.
    const auto for_scaled = [&](auto&& f) {
      scaled = 0;
      detail::for_channels(x.cols(), [&](Index channel, Index count) {
        S low[detail::channels_together], high[detail::channels_together];
        for (Index i = 0; i < count; ++i) low[i] = high[i] = x(first + lag, channel + i);
        for (Index r = first + lag; r < first + 2 * lag; ++r)
          for (Index i = 0; i < count; ++i) {
            low[i] = (std::min)(low[i], x(r, channel + i));
            high[i] = (std::max)(high[i], x(r, channel + i));
          }
        for (Index i = 0; i < count; ++i) scaled += low[i] < high[i];
        for (Index r = 0; r < lag; ++r)
          for (Index i = 0; i < count; ++i)
            if (low[i] < high[i]) f(r, std::clamp((x(first + r, channel + i) - low[i]) / (high[i] - low[i]), -most, most));
      });
    };
    VectorRef<S> squares(out.data() + lag, lag);  // the scratch has room for two parts
    out.setZero();
    squares.setZero();
    for_scaled([&](Index r, S number) { out[r] += number; });
    out /= static_cast<S>((std::max)(Index(1), scaled));
    for_scaled([&](Index r, S number) { squares[r] += (number - out[r]) * (number - out[r]); });
    out = (squares / static_cast<S>((std::max)(Index(1), scaled - 1))).cwiseSqrt();
    softmax(MatrixRef<S>(out.data(), 1, lag));
  }
};

}}  // namespace pith::v0
