#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include <pith/pith.hpp>

namespace example {

/// The longest distance that rope sees at the next token: in the text, or among the kept rows at cache positions.
inline pith::Position longest_distance(const pith::Session<float>& session) {
  pith::Position longest = 0;
  for (const auto& cache : session.caches()) {
    if (cache.reindexes()) {
      longest = std::max(longest, cache.query_position());
      continue;
    }
    for (pith::Index h = 0; h < cache.shape().num_kv_heads; ++h)
      for (const pith::Position row : cache.positions(h)) longest = std::max(longest, cache.next_position() - cache.gap() - row);
  }
  return longest;
}

/// Warns once, on stderr, when the text exceeds the trained length.
class TrainedLength {
 public:
  TrainedLength(const pith::Session<float>& session, pith::Index trained, std::string policy)
      : session_(session), trained_(trained), policy_(std::move(policy)) {}
  void look() {
    if (said_ || session_.next_position() < trained_ || longest_distance(session_) < trained_) return;
    said_ = true;
    std::fflush(stdout);
    std::fprintf(stderr,
                 "\nnote: the text leaves the %td positions that the model was trained on, as %s keeps rows at their positions in the "
                 "text: expect it to fall apart; --policy h2o-cache:%td or sinks:%td, read at cache positions, stay within them\n",
                 trained_, policy_.c_str(), rows(), rows());
  }

 private:
  /// Rows that a policy may hold without reaching the trained length by itself.
  pith::Index rows() const { return std::min(session_.caches()[0].budget(), std::max<pith::Index>(1, trained_ / 2)); }

  const pith::Session<float>& session_;
  pith::Index trained_;
  std::string policy_;
  bool said_ = false;
};

}  // namespace example
