#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/options.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// How a session comes from one table of a longrope to the other: RopeSwitch says when.
struct SessionTables {
  /// Decodes tokens, in one part, but under a longrope on both sides of its switch.
  template <class Session> static void decode(Session& s, std::span<const Token> tokens) {
    const Position start = s.next_position();
    const auto part_from = [&](std::size_t done) {
      const auto rest = tokens.subspan(done);
      const auto part = rest.first(static_cast<std::size_t>(s.switch_.run(s.next_position(), static_cast<Index>(rest.size()))));
      const Index n = static_cast<Index>(part.size());
      choose(s, s.next_position() + n);
      s.look_up(part, s.hidden_.topRows(n));
      s.read_next(static_cast<Index>(done), n);
      s.switch_.note(part);
      return done + part.size();
    };
    const std::size_t done = part_from(0);
    if (done == tokens.size()) return;
#if PITH_HAS_EXCEPTIONS
    try {
      part_from(done);
    } catch (...) {
      if (s.whole_) s.crop(start);
      throw;
    }
#else
    part_from(done);
    static_cast<void>(start);
#endif
  }

  /// Chooses the table of a call that brings the text to this length, and recomputes the text so far if its rows were rotated by the other
  /// table.
  template <class Session> static void choose(Session& s, Index length) {
    if (!s.switch_.stale(s.next_position(), length)) return s.switch_.choose(length);
    const bool recording = s.undo_.recording(s.caches_);
    const Index newest = std::exchange(s.newest_, -1);
    struct Unfinished {  // a piece that throws is undone by itself, which leaves only a part of the text
      bool& whole;
      bool done = false;
      ~Unfinished() { whole = done; }
    } all{s.whole_};
    for (auto& cache : s.caches_) cache.clear();
    s.switch_.choose(length);
    for (std::span<const Token> rest = s.switch_.tokens(); !rest.empty();) {
      const Index soft = s.adapter_.prompt_rows(s.next_position());
      const auto part = rest.first((std::min)(rest.size(), static_cast<std::size_t>(s.max_prompt_ - soft)));
      s.look_up(part, s.hidden_.middleRows(soft, static_cast<Index>(part.size())));
      s.read_prompt(static_cast<Index>(part.size()), {.phase = Phase::prefill}, {}, false);
      rest = rest.subspan(part.size());
    }
    s.newest_ = newest;
    all.done = true;
    if (recording)
      for (auto& cache : s.caches_) cache.checkpoint();
  }
};

}}}  // namespace pith::v0::detail
