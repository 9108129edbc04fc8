#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/wrapped_policy.hpp>
#include <pith/merge/gates.hpp>

namespace pith_test {

// What only the published reference code does.

/// P, which may drop the newest row as well.
template <class P> struct AsPublished : pith::WrappedPolicy<P> {
  explicit AsPublished(P policy) : pith::WrappedPolicy<P>{std::move(policy)} {}
  pith::PolicyTraits traits() const {
    pith::PolicyTraits traits = pith::WrappedPolicy<P>::traits();
    traits.keeps_newest = false;
    return traits;
  }
};

/// P, when a prompt ends, by what the prompt's last queries looked at.
template <class P> struct LastQueries : pith::WrappedPolicy<P> {
  pith::Index queries;
  LastQueries(P policy, pith::Index count) : pith::WrappedPolicy<P>{std::move(policy)}, queries(count) {}
  pith::PolicyTraits traits() const {
    pith::PolicyTraits traits = pith::WrappedPolicy<P>::traits();
    traits.prompt_only = true;
    traits.watches = queries;
    return traits;
  }
};

/// Keeps the rows it was told, head by head.
struct Chosen {
  std::vector<std::set<pith::Position>> kept;
  pith::Index budget() const { return static_cast<pith::Index>(kept.front().size()); }
  pith::PolicyTraits traits() const { return {.keeps_newest = false}; }
  template <class S> void score(const pith::KvRows<S>& rows, pith::VectorRef<S> out) const {
    const auto& mine = kept[static_cast<std::size_t>(rows.kv_head)];
    for (pith::Index r = 0; r < rows.size(); ++r) out[r] = S(mine.count(rows.positions[static_cast<std::size_t>(r)]));
  }
};

/// LOOK-M's gate, as released: evicted rows are numbered by age in every head, and number i is merged if the mean of its cosines over heads
/// reaches the mean of all. Misaligned: the passing rows say where to, but rows 0, 1, … of the whole list go there.
template <class M> struct SlotGate : pith::WrappedRule<M> {
  bool misaligned;
  explicit SlotGate(M rule, bool is_misaligned = false) : pith::WrappedRule<M>{std::move(rule)}, misaligned(is_misaligned) {}
  template <class S> void gate(pith::LayerMatches<S>& matches, pith::VectorRef<S>) const {
    const pith::Index heads = matches.num_heads(), slots = matches.size(0);
    pith::Vector<S> mean = pith::Vector<S>::Zero(slots);
    for (pith::Index h = 0; h < heads; ++h) mean += matches.head(h).cosines;
    for (pith::Index h = 0; h < heads; ++h) {
      pith::Index passed = 0;
      for (pith::Index e = 0; e < slots; ++e) {
        const std::int32_t to = matches.row(h, e);
        if (!misaligned || mean[e] < mean.mean()) matches.row(h, e) = -1;
        if (mean[e] >= mean.mean()) matches.row(h, misaligned ? passed++ : e) = to;
      }
      for (pith::Index e = passed; misaligned && e < slots; ++e) matches.row(h, e) = -1;
    }
  }
};

/// H2O as a mask: every row stays, and the next query is told which it may look at.
class MaskedHeavyHitters {
 public:
  MaskedHeavyHitters(const pith::AttentionShape& shape, pith::Index heavy, pith::Index recent, pith::Index tokens)
      : shape_(shape),
        heavy_(heavy),
        recent_(recent),
        heads_(static_cast<std::size_t>(shape.num_kv_heads)),
        positions_(static_cast<std::size_t>(tokens) + 1) {
    for (std::size_t t = 0; t < positions_.size(); ++t) positions_[t] = static_cast<pith::Position>(t);
    for (Head& head : heads_) {
      head.score.assign(positions_.size(), 0);
      head.log_mass.assign(positions_.size(), 0);
    }
  }

  /// A call of queries q behind the rows of k and v, which hold all tokens so far, its own included.
  pith::Matrix<float> call(pith::ConstMatrixRef<float> q, pith::ConstMatrixRef<float> k, pith::ConstMatrixRef<float> v) {
    const pith::Index seen = k.rows(), d = shape_.head_dim;
    std::vector<pith::KvRun<float>> runs;
    for (pith::Index h = 0; h < shape_.num_kv_heads; ++h)
      runs.push_back({.keys = k.data() + h * d,
                      .values = v.data() + h * d,
                      .rows = seen,
                      .stride = k.outerStride(),
                      .positions = positions_.data(),
                      .log_mass = head(h).log_mass.data()});
    pith::Matrix<float> out(q.rows(), q.cols());
    pith::Workspace ws(pith::attend_workspace_bytes<float>(shape_, seen, 1, q.rows()));
    pith::attend(q, pith::KvView<float>{shape_, static_cast<pith::Position>(seen), runs}, out, ws,
                 [this](const pith::AttentionTile<float>& tile) {
                   for (pith::Index r = 0; r < tile.weights.cols(); ++r)
                     head(tile.kv_head).score[static_cast<std::size_t>(r)] += tile.weights.col(r).sum();
                 });
    for (Head& head : heads_) mask(head, seen);
    return out;
  }

  float score(pith::Index h, pith::Index token) { return head(h).score[static_cast<std::size_t>(token)]; }
  /// … to the next query; the token to come is one of them.
  bool visible(pith::Index h, pith::Index token) { return head(h).log_mass[static_cast<std::size_t>(token)] == 0; }

 private:
  struct Head {
    std::vector<float> score, log_mass;
  };
  Head& head(pith::Index h) { return heads_[static_cast<std::size_t>(h)]; }

  /// The newest `recent` are counted with the token to come. The oldest of those present belongs to neither group: hidden for one step, it
  /// keeps its score.
  void mask(Head& head, pith::Index seen) const {
    if (seen <= heavy_ + recent_) return;
    std::vector<std::int32_t> order(static_cast<std::size_t>(seen - recent_));
    for (std::size_t t = 0; t < order.size(); ++t) order[t] = static_cast<std::int32_t>(t);
    const auto better = [&](std::int32_t a, std::int32_t b) { return head.score[std::size_t(a)] > head.score[std::size_t(b)]; };
    std::stable_sort(order.begin(), order.end(), better);
    std::fill_n(head.log_mass.begin(), seen - recent_ + 1, -std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < order.size(); ++i) {
      const auto token = static_cast<std::size_t>(order[i]);
      (static_cast<pith::Index>(i) < heavy_ ? head.log_mass : head.score)[token] = 0;
    }
  }

  pith::AttentionShape shape_;
  pith::Index heavy_, recent_;
  std::vector<Head> heads_;
  std::vector<pith::Position> positions_;
};

/// ggml's q4_0: 32 numbers in 18 bytes, a scale as a half and two codes a byte, number i beside number i + 16.
struct Q4Block {
  static constexpr std::size_t numbers = 32;
  std::array<std::byte, 18> bytes;

  static Q4Block encode(const float* x) {
    float extreme = 0;
    for (std::size_t i = 0; i < numbers; ++i)
      if (std::abs(x[i]) > std::abs(extreme)) extreme = x[i];
    const float d = extreme / -8, inverse = d != 0 ? 1 / d : 0;
    const pith::half scale(d);
    Q4Block block;
    std::memcpy(block.bytes.data(), &scale, sizeof(scale));
    const auto code = [&](std::size_t i) { return std::min(15, static_cast<int>(x[i] * inverse + 8.5f)); };
    for (std::size_t i = 0; i < numbers / 2; ++i)
      block.bytes[sizeof(scale) + i] = static_cast<std::byte>(code(i) | code(i + numbers / 2) << 4);
    return block;
  }
  float number(std::size_t i) const {
    pith::half scale;
    std::memcpy(&scale, bytes.data(), sizeof(scale));
    const auto pair = std::to_integer<int>(bytes[sizeof(scale) + i % (numbers / 2)]);
    return static_cast<float>((i < numbers / 2 ? pair & 15 : pair >> 4) - 8) * static_cast<float>(scale);
  }
};

}  // namespace pith_test
