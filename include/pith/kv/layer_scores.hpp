#pragma once

#include <algorithm>
#include <span>

#include <pith/core/view.hpp>
#include <pith/kv/detail/select.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// The scores of all kv heads of a layer, for policies whose heads decide together. combine() may rewrite every score: +inf is always kept,
/// even beyond the budget, -inf always evicted.
template <class S> class LayerScores {
 public:
  /// The rows of one head and their scores.
  struct Head {
    Index size = 0;
    const Position* positions = nullptr;
    const TokenKind* kinds = nullptr;
    const S* stats = nullptr;  ///< number s of row r at s*stats_stride + r
    S* scores = nullptr;
    Index count = 0;                 ///< free for combine()
    std::span<const S> memory = {};  ///< numbers from observe()
  };

  /// `candidates` has room for the rows of all heads.
  LayerScores(const AttentionShape& shape, Position first, Position next, Index retain, Index stats, Index stats_stride,
              std::span<Head> heads, RankedRow<S>* candidates)
      : shape_(shape),
        first_(first),
        next_(next),
        retain_(retain),
        stats_(stats),
        stats_stride_(stats_stride),
        heads_(heads),
        candidates_(candidates) {}

  Index num_heads() const { return static_cast<Index>(heads_.size()); }
  Index retain() const { return retain_; }  ///< rows a head should keep
  Index size(Index h) const { return head(h).size; }
  KvRows<S> rows(Index h) const {
    const Head& rows = head(h);
    const auto n = static_cast<std::size_t>(rows.size);
    return {.kv_head = h,
            .shape = shape_,
            .next = next_,
            .positions = {rows.positions, n},
            .kinds = {rows.kinds, n},
            .stats = {rows.stats, stats_, rows.size, stats_stride_},
            .first = first_,
            .memory = ConstVectorRef<S>(rows.memory.data(), static_cast<Index>(rows.memory.size())),
            .candidates = candidates_};
  }
  Index& count(Index h) { return heads_[static_cast<std::size_t>(h)].count; }  ///< free for combine(), 0 at first
  VectorRef<S> scores(Index h) const { return {head(h).scores, head(h).size}; }

  /// Calls take(head, row) for the `count` rows of highest score in all heads together.
  template <class F> void best_of_all(Index count, F&& take) const {
    Index n = 0, offset = 0;
    for (Index h = 0; h < num_heads(); offset += size(h++))
      for (Index r = 0; r < size(h); ++r)
        if (head(h).scores[r] != -std::numeric_limits<S>::infinity())
          candidates_[n++] = {detail::ordered(head(h).scores[r]), head(h).positions[r], static_cast<std::int32_t>(offset + r)};
    count = std::clamp(count, Index(0), n);
    // Only rows of different heads tie; then the lower head wins, regardless of where its rows lie.
    const auto better = [](const auto& a, const auto& b) { return b < a || (!(a < b) && a.row < b.row); };
    if (count > 0 && count < n) std::nth_element(candidates_, candidates_ + count, candidates_ + n, better);
    for (Index i = 0; i < count; ++i) {
      Index h = 0, row = candidates_[i].row;
      while (row >= size(h)) row -= size(h++);
      take(h, row);
    }
  }

 private:
  const Head& head(Index h) const { return heads_[static_cast<std::size_t>(h)]; }

  AttentionShape shape_;
  Position first_, next_;
  Index retain_, stats_, stats_stride_;
  std::span<Head> heads_;
  RankedRow<S>* candidates_;
};

}}  // namespace pith::v0
