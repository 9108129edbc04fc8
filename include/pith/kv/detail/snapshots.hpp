#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/cache_state.hpp>
#include <pith/kv/snapshot.hpp>

// Snapshots of a cache: taking, validating and restoring them.

namespace pith { inline namespace v0 { namespace detail {

/// What files and messages call a storage: "q8", "rotated q4", "q8 keys, rotated q4 values".
template <class T> std::string storage_name() {
  if constexpr (is_kv<T>)
    return storage_name<typename KvParts<T>::Key>() + " keys, " + storage_name<typename KvParts<T>::Value>() + " values";
  if constexpr (!is_kv<T> && Coded<T>::rotated) return "rotated " + storage_name<coded_t<T>>();
  if constexpr (std::is_same_v<T, Q8>) return "q8";
  if constexpr (std::is_same_v<T, Q4>) return "q4";
  if constexpr (std::is_same_v<T, bfloat16>) return "bf16";
  if constexpr (std::is_same_v<T, half>) return "f16";
  if constexpr (std::is_same_v<T, float>) return "f32";
  return "f64";
}

/// Describes everything that two caches must share so that one can restore the rows of the other.
template <KvStorage T> std::string layout_text(const CacheRules& rules) {
  const PolicyFacts& f = rules.facts;
  const auto number = [](Index n) { return n == unlimited ? std::string("all") : text(n); };
  std::string out = text(rules.shape.num_heads, ":", rules.shape.num_kv_heads, " heads of ", rules.shape.head_dim, ", ", storage_name<T>());
  if (rules.never_evicts()) {
    out += ", dense";
  } else {
    out += text(rules.by_age() ? ", by age" : ", by score", ", budget ", number(f.budget), ", retain ", number(f.retain), ", initial ",
                f.initial, ", stats ", f.stats, ", memory ", f.memory);
    if (f.observes) out += text(", watching ", number(f.traits.watches));
    if (f.admits) out += ", admitting";
    if (f.combines) out += ", combining";
    if (!f.traits.keeps_newest) out += ", newest not kept";
  }
  if (f.traits.positions == RopePositions::cache) out += ", cache positions";
  if (f.traits.prompt_only) out += ", prompt only";
  if (f.traits.ragged) out += ", shared rows";
  if (f.traits.ordered) out += ", ordered";
  if (rules.masses()) out += text(rules.merge.merges ? ", merging" : "", ", masses", rules.options.keep_masses ? " counted" : "");
  if (rules.merge.memory > 0) out += text(", gate ", rules.merge.memory);
  if (rules.options.prefix) out += text(", behind prefix ", rules.options.prefix.fingerprint());
  return out;
}

/// Takes, checks and restores snapshots of one cache.
template <KvStorage T> class Snapshots {
 public:
  using S = arithmetic_t<T>;
  explicit Snapshots(const CacheState<T>& state)
      : state_(state), key_units_(key_units<T>(state.rules.shape.head_dim)), value_units_(value_units<T>(state.rules.shape.head_dim)) {}

  KvSnapshot<T> take() const {
    const KvSlab<T>& home = state_.home;
    KvSnapshot<T> out{.layout = layout_text<T>(state_.rules),
                      .next = state_.next,
                      .next_rope_position = state_.next_rope_position,
                      .unevicted = state_.unevicted,
                      .lost_initial = state_.lost_initial,
                      .prefill = state_.last.phase == Phase::prefill,
                      .more = state_.last.more};
    const auto append = [](auto& to, const auto* from, Index n) { to.insert(to.end(), from, from + n); };
    for (Index h = 0; h < state_.heads(); ++h) {
      const HeadState& head = state_.head(h);
      for (const Index n : {head.size, head.cursor, head.observed}) out.heads.push_back(n);
      append(out.keys, home.keys(h), head.size * key_units_);
      append(out.values, home.values(h), head.size * value_units_);
      append(out.positions, home.positions(h), head.size);
      if (home.shape().angles) append(out.rope_positions, home.angles(h), head.size);
      append(out.kinds, home.kinds(h), head.size);
      if (home.shape().masses) append(out.masses, home.masses(h), head.size);
    }
    out.stats.resize(home.shape().stats, out.rows());
    for (Index h = 0, first = 0; out.stats.size() > 0 && h < state_.heads(); first += state_.size(h++))
      out.stats.middleCols(first, state_.size(h)) = home.stats(h, 0, state_.size(h));
    out.memory = state_.memory;
    append(out.gate, state_.merging.gate.data(), state_.merging.gate.size());
    return out;
  }

  /// The reason why restore() would refuse a snapshot; empty if it would not.
  std::string problem(const KvSnapshot<T>& s) const {
    const CacheRules& rules = state_.rules;
    if (const std::string ours = layout_text<T>(rules); s.layout != ours)
      return text("of a cache with ", s.layout, "; this one has ", ours);
    const Index rows = s.rows(), heads = state_.heads();
    const auto count = [&](std::string_view what, Index found, Index expected) {
      return found == expected ? std::string() : text(found, " ", what, ", expected ", expected);
    };
    for (const std::string& wrong :
         {count("numbers of heads", static_cast<Index>(s.heads.size()), 3 * heads),
          count("kinds", static_cast<Index>(s.kinds.size()), rows),
          count("rope positions", static_cast<Index>(s.rope_positions.size()), rules.angles() ? rows : 0),
          count("numbers of keys", static_cast<Index>(s.keys.size()), rows * key_units_),
          count("numbers of values", static_cast<Index>(s.values.size()), rows * value_units_),
          count("columns of stats", s.stats.cols(), rows), count("stats a row", s.stats.rows(), state_.home.shape().stats),
          count("rows of memory", s.memory.rows(), heads), count("numbers of memory a head", s.memory.cols(), rules.facts.memory),
          count("masses", static_cast<Index>(s.masses.size()), rules.masses() ? rows : 0),
          count("numbers of the merge's gate", static_cast<Index>(s.gate.size()), rules.merge.memory)})
      if (!wrong.empty()) return wrong;
    if (s.next < rules.first() || s.next_rope_position < rules.first() || s.next_rope_position > s.next || s.unevicted < 0 ||
        s.unevicted > s.next - rules.first())
      return text("next position ", s.next, ", rope position ", s.next_rope_position, ", ", s.unevicted, " tokens since the last eviction");
    if (s.lost_initial < 0 || s.lost_initial > rules.facts.initial)
      return text(s.lost_initial, " sinks taken out, expected 0 .. ", rules.facts.initial);
    if (s.more && !s.prefill) return text("between two pieces of a prompt, but its newest tokens were decoded");
    for (const Position a : s.rope_positions)
      if (a < rules.first() || a >= s.next_rope_position)
        return text("rope position ", a, ", expected ", rules.first(), " .. ", s.next_rope_position - 1);
    for (const S mass : s.masses)
      if (!(mass > S(0) && std::isfinite(mass))) return text("mass ", mass, ", expected a finite number above 0");
    for (const TokenKind kind : s.kinds)
      if (kind > TokenKind::video) return text("kind ", int(kind), ", expected 0 .. ", int(TokenKind::video));
    return heads_problem(s);
  }

  static void restore(CacheState<T>& state, const KvSnapshot<T>& s) {
    KvSlab<T>& home = state.home;
    state.clear();
    Index first = 0;
    for (Index h = 0; h < state.heads(); ++h) {
      HeadState& head = state.head(h);
      head = {.size = head_number(s, h, 0), .cursor = head_number(s, h, 1), .observed = head_number(s, h, 2)};
      if (state.rules.facts.traits.ragged) home.put_head(h, head.size);
      const auto copy = [&](const auto& from, auto* to, Index width) { std::copy_n(from.data() + first * width, head.size * width, to); };
      copy(s.keys, home.keys(h), home.key_stride());
      home.scout(h, 0, head.size);
      copy(s.values, home.values(h), home.value_stride());
      copy(s.positions, home.positions(h), 1);
      if (home.shape().angles) copy(s.rope_positions, home.angles(h), 1);
      copy(s.kinds, home.kinds(h), 1);
      for (Index r = 0; home.shape().masses && r < head.size; ++r) home.set_mass(h, r, s.masses[static_cast<std::size_t>(first + r)]);
      if (s.stats.size() > 0) home.stats(h, 0, head.size) = s.stats.middleCols(first, head.size);
      first += head.size;
    }
    if (state.rules.facts.traits.ragged) home.divide([&](Index h) { return state.size(h); });
    state.memory = s.memory;
    std::copy(s.gate.begin(), s.gate.end(), state.merging.gate.data());
    static_cast<Progress&>(state) = {.next = s.next,
                                     .next_rope_position = s.next_rope_position,
                                     .unevicted = s.unevicted,
                                     .lost_initial = s.lost_initial,
                                     .last = {.phase = s.prefill ? Phase::prefill : Phase::decode, .more = s.more}};
    state.refresh();
  }

 private:
  static Index head_number(const KvSnapshot<T>& s, Index head, Index which) {
    return static_cast<Index>(s.heads[static_cast<std::size_t>(3 * head + which)]);
  }

  std::string heads_problem(const KvSnapshot<T>& s) const {
    const CacheRules& rules = state_.rules;
    const Index initial = rules.facts.initial - s.lost_initial;
    Index first = 0, left = state_.home.total_rows();
    for (Index h = 0; h < state_.heads(); ++h) {
      const Index size = head_number(s, h, 0), cursor = head_number(s, h, 1), observed = head_number(s, h, 2);
      const Index room = (std::min)(s.rows() - first, rules.facts.traits.ragged ? left : rules.home_rows());
      // The cursor of a window's ring moves only if the ring is full and evictions take no more rows than necessary.
      const bool turns = rules.by_age() && rules.facts.retain == rules.facts.budget && size >= rules.facts.budget;
      const Index ring = turns ? rules.facts.budget - 1 : initial;
      if (size < 0 || size > room) return text("head ", h, " has ", size, " rows, expected 0 .. ", room);
      if (cursor < initial || cursor > ring || observed < 0 || observed > (std::numeric_limits<Position>::max)())
        return text("head ", h, " begins at row ", cursor, " and saw ", observed, " queries");
      if (observed > 0 && !rules.facts.observes) return text("head ", h, " saw ", observed, " queries under a policy that watches none");
      if (rules.by_age() && size > rules.facts.budget + s.unevicted)
        return text("head ", h, " has ", size, " rows, expected the budget of ", rules.facts.budget, " after an eviction");
      if (const std::string wrong = together_problem(s, h, first); !wrong.empty()) return wrong;
      if (const std::string wrong = order_problem({s.positions.data() + first, static_cast<std::size_t>(size)}, initial, cursor, s.next);
          !wrong.empty())
        return text("head ", h, ": ", wrong);
      first += size;
      left -= size;
    }
    return first == s.rows() ? std::string() : text(s.rows(), " rows, but the heads have ", first);
  }

  /// Checks the rows of one head against head 0: by age all heads hold the same tokens; at cache positions rope positions ascend.
  std::string together_problem(const KvSnapshot<T>& s, Index h, Index first) const {
    const CacheRules& rules = state_.rules;
    const Index size = head_number(s, h, 0);
    const bool alike = rules.by_age();
    if (alike && size != head_number(s, 0, 0))
      return text("head ", h, " has ", size, " rows, head 0 ", head_number(s, 0, 0), ": expected as many");
    if (alike && (head_number(s, h, 1) != head_number(s, 0, 1) ||
                  !std::equal(s.positions.begin() + first, s.positions.begin() + first + size, s.positions.begin())))
      return text("head ", h, " holds other tokens than head 0, expected the same");
    if (!rules.angles()) return {};
    std::vector<std::pair<Position, Position>> rows;
    for (Index r = first; r < first + size; ++r)
      rows.emplace_back(s.positions[static_cast<std::size_t>(r)], s.rope_positions[static_cast<std::size_t>(r)]);
    std::sort(rows.begin(), rows.end());
    for (std::size_t r = 1; r < rows.size(); ++r)
      if (rows[r].second <= rows[r - 1].second)
        return text("head ", h, ": rope position ", rows[r].second, " at position ", rows[r].first, ", expected more than ",
                    rows[r - 1].second);
    return {};
  }

  /// Checks that no position occurs twice or lies in the future, and that rows are in order if the cache relies on it.
  std::string order_problem(std::span<const Position> positions, Index initial, Index cursor, Position next) const {
    const CacheRules& rules = state_.rules;
    std::vector<Position> in_order(positions.begin(), positions.end());
    if (rules.by_age()) {
      const Index size = static_cast<Index>(in_order.size()), begin = (std::min)(initial, size);
      const auto at = [&](Index i) {
        return in_order.begin() + std::clamp(i, begin, (std::max)(begin, (std::min)(size, rules.facts.budget)));
      };
      std::rotate(at(begin), at(cursor), at(rules.facts.budget));
    } else if (!rules.never_evicts() && !rules.facts.traits.ordered) {
      std::sort(in_order.begin(), in_order.end());
    }
    Index expected = rules.first();
    for (const Position p : in_order) {
      if (p < expected || p >= next) return text("position ", p, ", expected ", expected, " .. ", next - 1, ", each once");
      expected = Index(p) + 1;
    }
    if (rules.by_age() &&
        rules.facts.traits.positions == RopePositions::cache) {  // there is a single gap, between the initial rows and the newest
      const Index size = static_cast<Index>(in_order.size());
      for (Index r = 0; r < size; ++r) {
        const Index held = in_order[static_cast<std::size_t>(r)], right = r < initial ? rules.first() + r : next - size + r;
        if (held != right) return text("position ", held, ", expected ", right, ": the first tokens and the newest, without gaps");
      }
    }
    return {};
  }

  const CacheState<T>& state_;
  Index key_units_, value_units_;
};

}}}  // namespace pith::v0::detail
