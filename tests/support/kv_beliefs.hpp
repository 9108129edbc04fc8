#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/policy.hpp>

#include "seen_cache.hpp"

namespace pith_test {

/// The rows believed held, every token ever appended, and what may be said of both.
class KvBeliefs {
 public:
  using Index = pith::Index;
  using Position = pith::Position;

  explicit KvBeliefs(KvSetting setting) : s_(std::move(setting)) {}

  bool angles() const { return s_.facts.traits.positions == pith::RopePositions::cache && s_.facts.eviction == pith::Eviction::by_score; }
  Index rows(Index h) const { return static_cast<Index>(held(h).size()); }

 protected:
  friend class KvMerges;
  struct Token {
    pith::TokenKind kind;
    pith::Matrix<float> plain;                      ///< [1, num_kv_heads*head_dim] the keys before rotation
    std::vector<pith::Matrix<float>> keys, values;  ///< a head's row each, as stored
  };
  /// What merging has made of a row.
  struct Blend {
    pith::Matrix<float> plain, key, value;  ///< [1, head_dim] the key before rotation; both as stored
  };
  struct Row {
    Position position;
    Position angle;                 ///< where its key is rotated, at cache positions
    double slack;                   ///< what the turns of its key may have rounded away, of its norm
    double weight = 0;              ///< H2O: the attention it got
    std::vector<float> stats = {};  ///< as last seen to change; none: zeros
    double mass = 1;                ///< tokens merged into it, its own included
    std::shared_ptr<const Blend> blend = {};
  };
  struct State {
    std::vector<std::vector<Row>> held;  ///< by age
    std::vector<Index> rooms;            ///< rows each head can hold
    Position next = 0, angle = 0;
    Index unevicted = 0, seen = 0, unobserved = 0;  ///< seen: as many of the unevicted, or all up to there
    Index lost = 0;                                 ///< first tokens, of those that a policy by age keeps, that drop() took
    pith::AppendOptions last;
    pith::Vector<double> gate;  ///< what the merge's gate remembers
  };
  Index heads() const { return s_.shape.num_kv_heads; }
  Index dim() const { return s_.shape.head_dim; }
  Index initial() const { return s_.facts.initial - now_.lost; }
  bool by_h2o() const { return s_.policy.starts_with("h2o"); }
  std::vector<Row>& held(Index h) { return now_.held[static_cast<std::size_t>(h)]; }
  const std::vector<Row>& held(Index h) const { return now_.held[static_cast<std::size_t>(h)]; }
  /// An angle is rounded to its own size, sine, cosine, products and sums to that of the key.
  static double turn_error(Position angle) { return (4 + std::abs(double(angle))) * std::numeric_limits<float>::epsilon(); }

  void divide_rooms() {
    Index free = heads() * s_.capacity;
    for (Index h = 0; h < heads(); ++h) free -= rows(h);
    for (Index h = 0; h < heads(); ++h) {
      const Index share = free / heads() + (h == heads() - 1 ? free % heads() : 0);
      now_.rooms[static_cast<std::size_t>(h)] = rows(h) + share;
    }
  }

  /// Takes over what a policy noted beside the newest rows.
  void adopt_stats(const SeenCache& seen, Index newest) {
    for (Index h = 0; h < heads(); ++h) {
      const auto& head = seen.heads[static_cast<std::size_t>(h)];
      const std::size_t n = head.positions.size();
      for (Row& row : held(h)) {
        if (newest < now_.next && row.position < now_.next - newest) continue;
        const auto at = std::find(head.positions.begin(), head.positions.end(), row.position);
        if (at == head.positions.end()) continue;
        const auto r = static_cast<std::size_t>(at - head.positions.begin());
        row.stats.resize(head.stats.size() / n);
        for (std::size_t i = 0; i < row.stats.size(); ++i) row.stats[i] = head.stats[i * n + r];
      }
    }
  }

  /// The most rows a head may keep of an eviction to `retained`: more only for what its policy protects, in the words of its documentation.
  Index most_kept(Index h, Index retained) const {
    const std::string& name = s_.policy;
    const auto count = [&](auto&& stays) { return static_cast<Index>(std::count_if(held(h).begin(), held(h).end(), stays)); };
    const auto newest = [&](Index n) { return count([&](const Row& row) { return row.position >= now_.next - n; }); };
    Index stay = s_.facts.traits.keeps_newest ? newest(1) : 0;
    if (name == "scissorhands") stay = newest(std::max<Index>(1, s_.rows / 4));
    if (name == "snapkv" || name == "adakv" || name == "critical") stay = std::min(rows(h), std::max<Index>(1, s_.rows / 2));  // the window
    if (name == "rkv") stay = std::min(rows(h), std::min<Index>(8, std::max<Index>(1, s_.rows / 2)));
    if (name == "csp") stay = s_.rows;                       // both lists, for any next token
    if (name == "chunkkv") stay = std::max<Index>(stay, 2);  // one whole chunk
    const Index sinks = std::min<Index>(4, s_.rows / 2);
    const auto is_sink = [&](const Row& row) { return row.position < sinks; };
    for (const char* one : {"cur", "expected", "lagkv", "leverage", "non-causal", "capkv"})
      if (name == one) stay += count(is_sink);
    if (name == "compactor")
      stay = count([&](const Row& row) { return is_sink(row) || row.position >= now_.next - std::min<Index>(4, s_.rows - sinks); });
    if (name == "text-prior")
      stay = count([&](const Row& row) {
        return row.position >= now_.next - (s_.rows - s_.rows / 2) ||
               history_[static_cast<std::size_t>(row.position)].kind == pith::TokenKind::text;
      });
    return std::max(retained, stay);
  }

  void check_survivors(Index h, const std::vector<Row>& kept, Index retained) const {
    const Index n = rows(h), stay = static_cast<Index>(kept.size()), window = s_.options.window;
    const auto same_rows = [&](const std::vector<Row>& expected) {
      return std::equal(kept.begin(), kept.end(), expected.begin(), expected.end(),
                        [](const Row& a, const Row& b) { return a.position == b.position; });
    };
    if (s_.facts.eviction == pith::Eviction::by_age) {
      const Index first = std::min(n, initial());
      std::vector<Row> expected(held(h).begin(), held(h).begin() + first);
      expected.insert(expected.end(), held(h).begin() + std::max(first, n - (retained - first)), held(h).end());
      return demand(same_rows(expected), "policies by age keep the initial rows and the newest");
    }
    const bool had_newest = n > 0 && held(h).back().position == now_.next - 1;
    if (s_.facts.traits.keeps_newest && had_newest)
      demand(!kept.empty() && kept.back().position == now_.next - 1, "the newest token stays");
    if (window > 0)
      for (const Row& row : kept)
        demand(now_.next - row.position < window || row.position == now_.next - 1, "rows that no query can see leave first");
    if (by_h2o()) return demand(same_rows(heavy_hitters(h, retained)), "H2O keeps the most attended and the newest");
    const bool fewer = window > 0 || s_.policy == "csp" || s_.policy == "adakv" || s_.policy == "chunkkv";
    demand(fewer || stay >= std::min(n, retained), "no more rows leave than must");
    demand(s_.facts.traits.ragged || stay <= most_kept(h, retained), "a head exceeds its budget only by protected rows");
  }

  std::vector<Row> heavy_hitters(Index h, Index retained) const {
    constexpr double inf = std::numeric_limits<double>::infinity();
    const Index recent = s_.rows - s_.rows / 2;
    std::vector<std::pair<double, Row>> ranked;
    for (const Row& row : held(h)) {
      const Index age = now_.next - row.position;
      const bool unseen = s_.options.window > 0 && age >= s_.options.window;
      ranked.emplace_back(age == 1 ? inf : unseen ? -inf : age <= recent ? inf : row.weight, row);
    }
    std::stable_sort(ranked.begin(), ranked.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });  // of equals the older first
    const Index n = rows(h);
    const auto at = [&](double score) {
      return std::count_if(ranked.begin(), ranked.end(), [&](const auto& r) { return r.first == score; });
    };
    ranked.erase(ranked.begin(), ranked.begin() + std::min<Index>(std::max<Index>(n - retained, at(-inf)), n - at(inf)));
    std::vector<Row> kept;
    for (const auto& [score, row] : ranked) kept.push_back(row);
    std::sort(kept.begin(), kept.end(), [](const Row& a, const Row& b) { return a.position < b.position; });
    return kept;
  }

  void check_head(Index h, const SeenCache::Head& seen) const {
    const std::size_t n = seen.positions.size(), d = static_cast<std::size_t>(dim());
    demand(n == held(h).size(), "a head holds as many rows as are left of those appended");
    demand(!s_.facts.traits.ordered || std::is_sorted(seen.positions.begin(), seen.positions.end()), "ordered rows stay in order");
    std::set<Position> once;
    for (std::size_t r = 0; r < n; ++r) {
      const Position p = seen.positions[r];
      demand(once.insert(p).second && p < now_.next, "a token is held once");
      const auto row = std::lower_bound(held(h).begin(), held(h).end(), p, [](const Row& a, Position at) { return a.position < at; });
      demand(row != held(h).end() && row->position == p, "what has left stays away");
      const Token& token = history_[static_cast<std::size_t>(p)];
      const auto of_head = [&](const auto& rows) { return rows[static_cast<std::size_t>(h)].data(); };
      demand(seen.kinds[r] == token.kind, "a row keeps its kind");
      const float* const value = row->blend ? row->blend->value.data() : of_head(token.values);
      demand(std::memcmp(&seen.values[r * d], value, d * sizeof(float)) == 0, "a value is the one appended or merged, rounded once");
      demand(seen.masses.empty() || double(seen.masses[r]) == row->mass, "a row knows how many tokens it stands for");
      demand(seen.log_masses.empty() || seen.log_masses[r] == std::log(seen.masses[r]), "attention adds the logarithm of the mass");
      for (std::size_t i = 0; i * n < seen.stats.size(); ++i)
        demand(seen.stats[i * n + r] == (i < row->stats.size() ? row->stats[i] : 0), "stats follow their row");
      if (!angles()) {
        const float* const key = row->blend ? row->blend->key.data() : of_head(token.keys);
        demand(std::memcmp(&seen.keys[r * d], key, d * sizeof(float)) == 0, "a key is the one appended or merged, rounded once");
        continue;
      }
      pith::Matrix<float> fresh = row->blend ? row->blend->plain : pith::Matrix<float>(token.plain.middleCols(h * dim(), dim()));
      s_.rope->rotate(fresh, {&row->angle, 1});
      const Eigen::Map<const pith::Matrix<float>> key(&seen.keys[r * d], 1, dim());
      demand((key - fresh).norm() <= row->slack * fresh.norm(), "a key is turned to its row's place");
    }
  }

  KvSetting s_;
  State now_;
  std::vector<Token> history_;  ///< by position, evicted tokens included
};

}  // namespace pith_test
