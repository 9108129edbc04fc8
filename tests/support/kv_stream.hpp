#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/core/random.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/kv_cache.hpp>

namespace pith_test {

/// An endless stream of random queries, keys and values with everything remembered, to hold a cache against.
template <class T> class KvStream {
 public:
  using S = pith::arithmetic_t<T>;
  pith::AttentionShape shape;
  std::mt19937_64 rng;
  std::vector<pith::Matrix<S>> keys, values;  ///< one [1, num_kv_heads*head_dim] a position, as appended

  KvStream(const pith::AttentionShape& s, std::uint64_t seed) : shape(s), rng(seed) {}

  pith::Matrix<S> random(pith::Index rows, pith::Index cols) {
    pith::Matrix<S> m(rows, cols);
    for (pith::Index i = 0; i < m.size(); ++i) m.data()[i] = pith::normal<S>(rng);
    return m;
  }

  /// One step in the way of anybody's loop: append, attend (watched if the policy asks), evict. Returns the attention's output.
  template <class Cache> pith::Matrix<S> step(Cache& cache, pith::Index tokens, pith::Phase phase = pith::Phase::decode) {
    const pith::Index width = shape.num_kv_heads * shape.head_dim;
    const pith::Matrix<S> k = random(tokens, width), v = random(tokens, width), q = random(tokens, shape.num_heads * shape.head_dim);
    keys.resize(static_cast<std::size_t>(cache.next_position()));
    values.resize(keys.size());
    for (pith::Index t = 0; t < tokens; ++t) {
      keys.push_back(k.row(t));
      values.push_back(v.row(t));
    }
    return feed(cache, q, k, v, phase);
  }

  template <class Cache>
  static pith::Matrix<S> feed(Cache& cache, const pith::Matrix<S>& q, const pith::Matrix<S>& k, const pith::Matrix<S>& v,
                              pith::Phase phase = pith::Phase::decode) {
    cache.append(k, v, {.phase = phase});
    const pith::Matrix<S> out = attend(cache, q);
    cache.evict();
    return out;
  }

  /// The attention of the newest tokens, watched if the policy asks.
  template <class Cache> static pith::Matrix<S> attend(Cache& cache, const pith::Matrix<S>& q) {
    pith::Matrix<S> out(q.rows(), q.cols());
    pith::Index rows = 0;
    for (pith::Index h = 0; h < cache.shape().num_kv_heads; ++h) rows = std::max(rows, cache.size(h));
    pith::Workspace ws(pith::attend_workspace_bytes<S>(cache.shape(), rows, 1));
    const pith::AttendOptions<S> options{.q_sinks = q, .gap = cache.gap()};  // nothing is rotated here: the sinks' queries are the same
    if (cache.watching()) {
      pith::attend(q, cache.view(), out, ws, cache.observer(), options);
    } else {
      pith::attend(q, cache.view(), out, ws, pith::NoObserver{}, options);
    }
    return out;
  }
};

/// The rows of one head, of any storage, widened.
template <class Cache> pith::Matrix<typename Cache::Scalar> keys_of(const Cache& cache, pith::Index h) {
  pith::Matrix<typename Cache::Scalar> rows(cache.size(h), cache.shape().head_dim);
  cache.copy_keys(h, rows, cache.rope_positions());
  return rows;
}
template <class Cache> pith::Matrix<typename Cache::Scalar> values_of(const Cache& cache, pith::Index h) {
  pith::Matrix<typename Cache::Scalar> rows(cache.size(h), cache.shape().head_dim);
  cache.copy_values(h, rows);
  return rows;
}

/// The n numbers of one head's row after the one rounding that a cache of T gives them.
template <class T> pith::Matrix<pith::arithmetic_t<T>> as_stored(const pith::arithmetic_t<T>* row, pith::Index n) {
  std::vector<T> stored(static_cast<std::size_t>(pith::detail::part_units<T>(n)));
  pith::Matrix<pith::arithmetic_t<T>> back(1, n);
  pith::detail::narrow<T>(row, stored.data(), n);
  pith::detail::widen<T>(stored.data(), back.data(), n);
  return back;
}

/// Whether two caches hold the same bits in the same order: everything a snapshot knows.
template <class A, class B> bool same_state(const A& a, const B& b) {
  const auto snapshot = [](const auto& cache) {
    auto copy = cache.clone();
    copy.crop(copy.next_position());  // a copy outside of the journal
    return copy.snapshot();
  };
  return snapshot(a) == snapshot(b);
}

}  // namespace pith_test
