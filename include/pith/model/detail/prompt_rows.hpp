#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/options.hpp>
#include <pith/merge/top_rows.hpp>
#include <pith/model/config.hpp>
#include <pith/model/session_options.hpp>

// The rows of a prompt on their way through the layers: all of them, until PrefillPruning leaves some out.
namespace pith { inline namespace v0 { namespace detail {

/// Heap     none without pruning; with it, a few numbers of each token and a row of queries
template <class S> class PromptRows {
 public:
  /// `soft`: rows of an adapter's prompt before the tokens, among the n; they stay.
  PromptRows(Index n, Index soft, const AppendOptions& marks, const PrefillOptions& options)
      : count_(n), soft_(soft), marks_(marks), options_(options) {}

  Index count() const { return count_; }
  AppendOptions marks() const { return pruned() ? AppendOptions{.phase = marks_.phase, .kinds = kinds_, .masses = masses_} : marks_; }
  std::span<const Position> places() const { return places_; }
  std::span<const Position> sight() const { return pruned() ? std::span<const Position>(seen_) : options_.sight; }

  /// Whether tokens are ranked by this layer.
  bool ranks(Index layer) const { return layer + 1 == options_.prune.after; }

  /// What is shown the layer's queries: the caller's function, and where tokens are ranked this, which needs the last one.
  QueryCallback callback(Index layer, const PrefillOptions& options) {
    if (!ranks(layer)) return options.queries;
    return [this, &options](const LayerQueries<S>& seen) {
      last_query_ = seen.queries.bottomRows(1);
      if (options.queries) options.queries(seen);
    };
  }

  /// Ranks tokens by the last query's attention over the rows of this cache, which evicts afterwards; moves the rows of hidden that stay to
  /// its front. `start`: position of the prompt's first token.
  template <class Cache> void leave_out(const Cache& cache, const LayerSpec& spec, Position start, MatrixRef<S> hidden, Workspace& ws) {
    const std::vector<std::int32_t> left_out = unattended(attention(cache, spec, start, ws));
    std::vector<bool> stays(static_cast<std::size_t>(count_), true);
    for (const std::int32_t t : left_out) stays[static_cast<std::size_t>(t)] = false;
    Index row = 0;
    for (Index t = 0; t < count_; ++t) {
      const auto at = static_cast<std::size_t>(t);
      if (!stays[at]) continue;
      if (row != t) hidden.row(row) = hidden.row(t);
      ++row;
      places_.push_back(static_cast<Position>(t));
      const bool own = options_.sight.empty() || t < soft_;
      seen_.push_back(static_cast<Position>(own ? t : soft_ + options_.sight[static_cast<std::size_t>(t - soft_)]));
      if (!marks_.kinds.empty()) kinds_.push_back(marks_.kinds[at]);
      if (!marks_.masses.empty()) masses_.push_back(marks_.masses[at]);
    }
    count_ = row;
  }

 private:
  bool pruned() const { return !places_.empty(); }

  /// The last query's attention to each token of the prompt, summed over the heads.
  template <class Cache> Vector<S> attention(const Cache& cache, const LayerSpec& spec, Position start, Workspace& ws) const {
    Matrix<S> of_heads = Matrix<S>::Zero(cache.shape().num_kv_heads, count_), out(1, last_query_.cols());  // heads run on several threads
    const AttendOptions<S> options{.first_query = static_cast<Position>(start + count_ - 1),
                                   .scale = static_cast<S>(spec.attention_scale),
                                   .softcap = static_cast<S>(spec.attention_softcap),
                                   .window = spec.window};
    attend(
        last_query_, cache.view(), out, ws,
        [&](const AttentionTile<S>& seen) {
          const std::span<const Position> positions = cache.positions(seen.kv_head);
          for (Index r = 0; r < seen.weights.cols(); ++r)
            if (const Index t = positions[static_cast<std::size_t>(r)] - start; t >= 0)
              of_heads(seen.kv_head, t) = seen.weights.col(r).sum();
        },
        options);
    return of_heads.colwise().sum().transpose();
  }

  /// The tokens of the kind that are left out: all but the `keep` that are attended to most; never the last token.
  std::vector<std::int32_t> unattended(const Vector<S>& attention) const {
    std::vector<std::int32_t> tokens;
    std::vector<S> scores;
    for (Index t = soft_; t + 1 < count_; ++t) {
      const TokenKind kind = marks_.kinds.empty() ? TokenKind::text : marks_.kinds[static_cast<std::size_t>(t)];
      if (kind != options_.prune.kind) continue;
      tokens.push_back(static_cast<std::int32_t>(t));
      scores.push_back(attention[t]);
    }
    const Index n = static_cast<Index>(tokens.size()), keep = (std::min)(n, options_.prune.keep);
    std::vector<std::int32_t> order(tokens.size());
    best_first(scores.data(), n, keep, order.data());
    std::vector<std::int32_t> out;
    for (auto at = order.begin() + keep; at != order.end(); ++at) out.push_back(tokens[static_cast<std::size_t>(*at)]);
    return out;
  }

  Index count_, soft_;
  const AppendOptions& marks_;
  const PrefillOptions& options_;
  std::vector<Position> places_, seen_;
  std::vector<TokenKind> kinds_;
  std::vector<float> masses_;
  Matrix<S> last_query_;
};

}}}  // namespace pith::v0::detail
