#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <pith/attention/shape.hpp>
#include <pith/core/random.hpp>
#include <pith/kv/attend.hpp>
#include <pith/kv/kv_cache.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Random tokens for the laws of policies, and a loop that reads them, over gaps in their positions too.
template <KvStorage T> class LawTokens {
 protected:
  using S = arithmetic_t<T>;
  using Cache = KvCache<T>;

  struct Tokens {
    Matrix<S> q, k, v;
    std::vector<TokenKind> kinds;
    std::vector<Position> skips;  ///< positions left out before each token
  };

  LawTokens(const AttentionShape& shape, bool gaps) : shape_(shape), gaps_(gaps) {}

  Matrix<S> random(Index rows, Index cols) {
    Matrix<S> m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = normal<S>(rng_);
    return m;
  }
  Tokens random_tokens(Index n) {
    const Index width = shape_.num_kv_heads * shape_.head_dim;
    Tokens tokens{random(n, shape_.num_heads * shape_.head_dim), random(n, width), random(n, width), {}, {}};
    for (Index t = 0; t < n; ++t) {
      tokens.kinds.push_back(rng_() % 3 == 0 ? TokenKind::image : TokenKind::text);
      tokens.skips.push_back(gaps_ && rng_() % 6 == 0 ? static_cast<Position>(1 + rng_() % 3) : Position(0));
    }
    return tokens;
  }
  static std::vector<Position> places(Position next, std::span<const Position> skips) {
    std::vector<Position> positions;
    for (const Position skip : skips) {
      next = static_cast<Position>(next + skip);
      positions.push_back(next++);
    }
    return positions;
  }

  /// Attends as every loop does. Nothing is rotated here, so the sinks' queries are the same.
  static Matrix<S> look(Cache& cache, const Matrix<S>& q) { return attend(q, cache, {.q_sinks = q, .gap = cache.gap()}); }

  /// Shows the attention of tokens between which positions are left out, in a loop of its own: attend() takes neighbours.
  void show(Cache& cache, const Matrix<S>& q, std::span<const Position> asking) const {
    const Index n = q.rows(), group = shape_.group(), d = shape_.head_dim;
    for (Index h = 0; cache.watching() && h < shape_.num_kv_heads; ++h) {
      const Index rows = cache.size(h);
      Matrix<S> keys(rows, d), queries(n * group, d), weights = Matrix<S>::Zero(n * group, rows);
      Vector<S> log_sum(n * group);
      cache.copy_keys(h, keys, cache.rope_positions());
      for (Index i = 0; i < n * group; ++i) {
        queries.row(i) = q.row(i / group).segment((h * group + i % group) * d, d);
        S total = 0;
        for (Index r = 0; r < rows; ++r) {
          if (cache.positions(h)[static_cast<std::size_t>(r)] > asking[static_cast<std::size_t>(i / group)]) continue;
          weights(i, r) = std::exp(queries.row(i).dot(keys.row(r)) / std::sqrt(static_cast<S>(d)));
          total += weights(i, r);
        }
        weights.row(i) /= total;
        log_sum[i] = std::log(total);
      }
      cache.observe({.kv_head = h, .weights = weights, .log_sum = log_sum, .queries = queries});
    }
  }

  /// Reads a prompt in pieces, with one evict() at the end or one after each.
  void read(Cache& cache, const Tokens& text, const std::vector<Index>& pieces, bool says_more, bool evicts_each) {
    const Index tokens = text.k.rows();
    const bool gaps = std::any_of(text.skips.begin() + 1, text.skips.end(), [](Position skip) { return skip > 0; });
    Index at = 0;
    for (const Index n : pieces) {
      const auto first = static_cast<std::size_t>(at), count = static_cast<std::size_t>(n);
      const std::vector<Position> positions = places(cache.next_position(), std::span(text.skips).subspan(first, count));
      cache.append(text.k.middleRows(at, n), text.v.middleRows(at, n),
                   {.phase = Phase::prefill,
                    .more = says_more && at + n < tokens,
                    .kinds = std::span(text.kinds).subspan(first, count),
                    .positions = positions});
      const Matrix<S> q = text.q.middleRows(at, n);
      gaps ? show(cache, q, positions) : static_cast<void>(look(cache, q));
      at += n;
      if (evicts_each || at == tokens) cache.evict();
    }
  }

  AttentionShape shape_;
  bool gaps_;  ///< positions may be left out
  std::mt19937_64 rng_;
};

}}}  // namespace pith::v0::detail
