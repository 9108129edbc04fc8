#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <pith/core/check.hpp>
#include <pith/kv/policy.hpp>
#include <pith/nn/softmax.hpp>

namespace pith::inline v0 {

/// Small keys stay: what is looked at much tends to have a key of small norm. Rotation changes no norm.
///
/// Keeps    `keep` rows of smallest key norm, and the newest row
/// Needs    keys, once each
/// Cost     one norm per appended row, one look at every score when evicting
/// Paper    KNorm: arXiv:2406.11430
struct KeyNorm {
  Index keep = 1024;  ///< rows kept
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { detail::check_count("KeyNorm", "keep", keep, 1); }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const {
    for (Index r = 0; r < fresh.size(); ++r) stats(0, r) = -fresh.keys.row(r).norm();
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
};

namespace detail {

inline constexpr Index channels_together = 64;
/// f(first, count) for the channels of a head, block by block: sums over rows need room for one block only.
template <class F> void for_channels(Index d, F&& f) {
  for (Index first = 0; first < d; first += channels_together) f(first, (std::min)(channels_together, d - first));
}

}  // namespace detail

/// Keys unlike the average stay: -cos(k, mean of the unit keys).
///
/// Keeps    `keep` rows least like the others, and the newest row
/// Needs    keys
/// Cost     two sweeps of the keys when evicting, which happens every `bite` tokens
/// Paper    KeyDiff: arXiv:2504.15364
struct KeyDiff {
  Index keep = 1024;  ///< rows kept at most
  Index bite = 1;     ///< rows that leave at once: as many sweeps less
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    detail::check_count("KeyDiff", "keep", keep, 1);
    detail::check_count("KeyDiff", "bite", bite, 1, keep);
  }
  Index retain() const { return keep + 1 - bite; }
  PolicyTraits traits() const { return {.reads_rows = true}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index d = rows.shape.head_dim;
    for (Index r = 0; r < rows.size(); ++r) rows.scratch[r] = S(1) / (std::max)(rows.keys.row(r).norm(), (std::numeric_limits<S>::min)());
    out.setZero();
    S anchor_norm = 0;
    detail::for_channels(d, [&](Index first, Index count) {
      S anchor[detail::channels_together] = {};
      for (Index r = 0; r < rows.size(); ++r)
        for (Index i = 0; i < count; ++i) anchor[i] += rows.keys(r, first + i) * rows.scratch[r];
      for (Index i = 0; i < count; ++i) anchor_norm += anchor[i] * anchor[i];
      for (Index r = 0; r < rows.size(); ++r)
        for (Index i = 0; i < count; ++i) out[r] -= anchor[i] * rows.keys(r, first + i);
    });
    anchor_norm = (std::max)(std::sqrt(anchor_norm), (std::numeric_limits<S>::min)());
    for (Index r = 0; r < rows.size(); ++r) out[r] *= rows.scratch[r] / anchor_norm;
  }
};

/// CUR: keys and values that weigh much among their neighbours stay.
///
/// ‖k‖²·‖v‖², each factor over its sum in the block of `block` rows around it.
///
/// Keeps    `keep` rows by leverage, the first `sinks` among them, when a prompt ends
/// Needs    keys and values
/// Cost     one sweep of both, once
/// Paper    CurDKV: arXiv:2509.15038
struct Cur {
  Index keep = 1024;  ///< rows kept
  Index sinks = 4;    ///< initial tokens, always kept
  Index block = 16;   ///< rows compared with each other
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    detail::check_count("Cur", "keep", keep, 1);
    detail::check_count("Cur", "sinks", sinks, 0, keep - 1, "the newest row stays besides");
    detail::check_count("Cur", "block", block, 1);
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .reads_rows = true}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index n = rows.size();
    for (Index first = 0; first < n; first += block) {
      const Index size = (std::min)(block, n - first);
      S keys = 0, values = 0;
      for (Index r = first; r < first + size; ++r) {
        keys += rows.keys.row(r).squaredNorm();
        values += rows.values.row(r).squaredNorm();
      }
      const S scale = S(1) / (std::max)(keys * values, (std::numeric_limits<S>::min)());
      for (Index r = first; r < first + size; ++r) out[r] = rows.keys.row(r).squaredNorm() * rows.values.row(r).squaredNorm() * scale;
    }
    for (Index r = 0; r < n; ++r)
      if (rows.positions[static_cast<std::size_t>(r)] - rows.first < sinks) out[r] = std::numeric_limits<S>::infinity();
  }
};

/// LagKV: tokens that spread more than the ones after them stay.
///
/// Behind the sinks the prompt is cut into parts of `lag`; each is judged by the smallest and largest number per channel of the next part,
/// and its rows are ranked, of equals the later higher. The last part and what is left over outrank them all. A prompt too short for two
/// parts keeps its newest rows. A channel that is constant in the next part has no scale: it is left out.
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
    detail::check_count("LagKv", "keep", keep, 1);
    detail::check_count("LagKv", "sinks", sinks, 0, keep - 1, "the newest row stays besides");
    detail::check_count("LagKv", "lag", lag, 1, detail::most_rows / 2);
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
  /// How many of the rows, which are in order, are sinks.
  template <class S> Index sinks_held(const KvRows<S>& rows) const {
    Index held = 0;
    while (held < rows.size() && rows.positions[static_cast<std::size_t>(held)] - rows.first < sinks) ++held;
    return held;
  }

  /// softmax over a part of the standard deviation over channels of its rows, each channel scaled by the range of the next part.
  template <class S> void spreads(const ConstMatrixRef<S>& x, Index first, VectorRef<S> out) const {
    constexpr S most = S(1 << 30);  // where a range is next to nothing: squares of this are finite, and its softmax is 0 or 1
    Index scaled = 0;
    // f(row, scaled number) for every number of the part in a channel that has a range.
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
    out /= static_cast<S>(std::max(Index(1), scaled));
    for_scaled([&](Index r, S number) { squares[r] += (number - out[r]) * (number - out[r]); });
    out = (squares / static_cast<S>(std::max(Index(1), scaled - 1))).cwiseSqrt();
    detail::softmax_row<S>(out.data(), out.data(), lag);
  }
};

/// A fixed number drawn for each token and head: what any other policy must beat.
///
/// Keeps    `keep` rows drawn at random, and the newest row
/// Needs    nothing
/// Cost     one hash per appended row, one look at every score when evicting
struct Random {
  Index keep = 1024;       ///< rows kept
  std::uint64_t seed = 1;  ///< the same numbers for the same seed, everywhere
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { detail::check_count("Random", "keep", keep, 1); }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const {
    for (Index r = 0; r < fresh.size(); ++r) {
      const auto token = static_cast<std::uint64_t>(fresh.positions[static_cast<std::size_t>(r)]);
      const std::uint64_t bits = mixed(seed + mixed(token + mixed(static_cast<std::uint64_t>(fresh.kv_head))));
      stats(0, r) = static_cast<S>(bits >> 41);  // 23 bits: exact in a float
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }

 private:
  static std::uint64_t mixed(std::uint64_t x) {  // every bit of x changes half of the result
    x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 30)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
};

}  // namespace pith::inline v0
