#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// The whole state of a cache as plain numbers: KvCache::snapshot() takes it, restore() returns to it, io/session_file.hpp saves it.
template <KvStorage T> struct KvSnapshot {
  using S = arithmetic_t<T>;

  std::string layout = {};                    ///< layout of the cache; restore() accepts no other
  Position next = 0, next_rope_position = 0;  ///< position of the next token, in the text and for rope
  Index unevicted = 0;                        ///< tokens appended since the last eviction
  Index lost_initial = 0;                     ///< sinks that drop() has removed
  bool prefill = false, more = false;         ///< AppendOptions of the newest tokens
  std::vector<std::int64_t> heads = {};       ///< [kv heads][3] rows, the oldest row of a ring, queries seen since the last eviction
  std::vector<T> keys = {}, values = {};      ///< [rows of all heads][head_dim], head by head; codes in bytes
  std::vector<Position> positions = {};       ///< [rows of all heads]
  std::vector<Position> rope_positions = {};  ///< [rows of all heads] rope positions, or empty
  std::vector<TokenKind> kinds = {};          ///< [rows of all heads]
  Matrix<S> stats = {};                       ///< [stats, rows of all heads]
  Matrix<S> memory = {};                      ///< [kv heads, memory]
  std::vector<S> masses = {};                 ///< [rows of all heads] tokens per row, or empty
  std::vector<S> gate = {};                   ///< numbers that the merge's gate keeps for the layer
  Index rows() const { return static_cast<Index>(positions.size()); }

  /// Compares bit for bit: a NaN equals itself, and 0 differs from -0.
  friend bool operator==(const KvSnapshot& a, const KvSnapshot& b) {
    const auto bits = [](const auto& x, const auto& y) {
      return x.size() == y.size() &&
             (x.size() == 0 || std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * sizeof(*x.data())) == 0);
    };
    const auto matrices = [&](const Matrix<S>& x, const Matrix<S>& y) {
      return x.rows() == y.rows() && x.cols() == y.cols() && bits(x, y);
    };
    return a.layout == b.layout && a.next == b.next && a.next_rope_position == b.next_rope_position && a.unevicted == b.unevicted &&
           a.lost_initial == b.lost_initial && a.prefill == b.prefill && a.more == b.more && a.heads == b.heads &&
           a.positions == b.positions && a.rope_positions == b.rope_positions && a.kinds == b.kinds && bits(a.keys, b.keys) &&
           bits(a.values, b.values) && matrices(a.stats, b.stats) && matrices(a.memory, b.memory) && bits(a.masses, b.masses) &&
           bits(a.gate, b.gate);
  }
};

}}  // namespace pith::v0
