#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <pith/merge/any_merge.hpp>

#include "kv_beliefs.hpp"

namespace pith_test {

/// What an eviction must have made of the rows it kept, in double and the simplest way: each row that left goes to the kept one of largest
/// cosine. What it did make of them is then believed, as it was rounded. Where a rounding of cosines could turn a decision, the decision is
/// believed too.
class KvMerges {
 public:
  using Index = pith::Index;

  KvMerges(KvBeliefs& beliefs, const SeenCache& before, const SeenCache& after) : b_(beliefs), before_(before), after_(after) {}

  /// gone: the rows of each head that left, by age.
  void check(const std::vector<std::vector<KvBeliefs::Row>>& gone) {
    const std::size_t heads = gone.size();
    std::vector<std::vector<std::int32_t>> rows(heads);
    std::vector<pith::Vector<double>> cosines(heads);
    std::vector<pith::LayerMatches<double>::Head> matched;
    for (std::size_t h = 0; h < heads; ++h) {
      rows[h].assign(gone[h].size(), -1);
      cosines[h] = pith::Vector<double>::Constant(static_cast<Index>(gone[h].size()), -std::numeric_limits<double>::infinity());
      for (std::size_t e = 0; e < gone[h].size(); ++e)
        match(static_cast<Index>(h), gone[h][e], rows[h][e], cosines[h][static_cast<Index>(e)]);
      matched.push_back({rows[h], cosines[h], b_.rows(static_cast<Index>(h))});
    }
    gate(matched, rows, cosines);
    for (std::size_t h = 0; h < heads; ++h) {
      double merged = 0;
      for (const KvBeliefs::Row& row : gone[h]) merged += row.mass;
      if (close_) believe(static_cast<Index>(h), merged);
      for (std::size_t c = 0; !close_ && c < b_.now_.held[h].size(); ++c) update(static_cast<Index>(h), c, gone[h], rows[h], cosines[h]);
    }
  }

 private:
  using Numbers = pith::Matrix<double>;

  /// A row's key or value in a picture of the cache.
  Numbers row_in(const SeenCache& seen, const std::vector<float> SeenCache::Head::*what, Index h, pith::Position p) const {
    const SeenCache::Head& head = seen.heads[static_cast<std::size_t>(h)];
    const auto at = std::find(head.positions.begin(), head.positions.end(), p) - head.positions.begin();
    return Eigen::Map<const pith::Matrix<float>>((head.*what).data() + at * b_.dim(), 1, b_.dim()).cast<double>();
  }
  Numbers key(Index h, pith::Position p) const { return row_in(before_, &SeenCache::Head::keys, h, p); }
  Numbers value(Index h, pith::Position p) const { return row_in(before_, &SeenCache::Head::values, h, p); }

  void match(Index h, const KvBeliefs::Row& row, std::int32_t& to, double& cosine) {
    if (b_.s_.options.window > 0 && b_.now_.next - row.position >= b_.s_.options.window) return;
    const Numbers k = key(h, row.position);
    double second = cosine;
    for (std::size_t c = 0; c < b_.held(h).size(); ++c) {
      const Numbers other = key(h, b_.held(h)[c].position);
      const double norms = k.norm() * other.norm(), here = norms == 0 ? 0 : k.row(0).dot(other.row(0)) / norms;
      second = std::max(second, std::min(cosine, here));
      if (!(here > cosine)) continue;
      cosine = here;
      to = static_cast<std::int32_t>(c);
    }
    close_ |= cosine - second <= rounding();
  }

  /// What a cosine in float may be away from the one in double.
  double rounding() const { return (8 + double(b_.dim())) * std::numeric_limits<float>::epsilon(); }

  /// The gate's decisions, and whether other roundings of the cosines would have given others.
  void gate(std::vector<pith::LayerMatches<double>::Head>& matched, std::vector<std::vector<std::int32_t>>& rows,
            std::vector<pith::Vector<double>>& cosines) {
    const auto decide = [&](pith::Vector<double>& memory) {
      pith::LayerMatches<double> layer(matched);
      b_.s_.merge.gate(layer, memory);
    };
    const auto nearest = rows;
    auto memory = b_.now_.gate;
    decide(memory);
    const auto decided = rows;
    std::size_t all = 0;
    for (const auto& of_head : cosines) all += static_cast<std::size_t>(of_head.size());
    // Cosine number i moves up or down by one bit of i: any two move apart, and towards each other, under some bit.
    for (std::size_t bit = 1; bit < 2 * all; bit *= 2)
      for (const double sign : {1.0, -1.0}) {
        const auto move = [&](double by) {
          std::size_t i = 0;
          for (auto& of_head : cosines)
            for (double& cosine : of_head) cosine += (i++ & bit) != 0 ? by : -by;
        };
        move(sign * rounding());
        for (std::size_t h = 0; h < rows.size(); ++h) std::copy(nearest[h].begin(), nearest[h].end(), rows[h].begin());
        auto other = b_.now_.gate;
        decide(other);
        close_ |= rows != decided;
        move(-sign * rounding());
      }
    for (std::size_t h = 0; h < rows.size(); ++h) std::copy(decided[h].begin(), decided[h].end(), rows[h].begin());
    b_.now_.gate = memory;
  }

  /// What became of a head's rows, into which rows of these many tokens may have been merged.
  void believe(Index h, double merged) {
    double old_mass = 0, new_mass = 0;
    for (KvBeliefs::Row& row : b_.held(h)) {
      const auto& of_head = after_.heads[static_cast<std::size_t>(h)];
      const auto at = std::find(of_head.positions.begin(), of_head.positions.end(), row.position) - of_head.positions.begin();
      old_mass += row.mass;
      if (!of_head.masses.empty()) row.mass = double(of_head.masses[static_cast<std::size_t>(at)]);
      new_mass += row.mass;
      KvBeliefs::Blend blend{.plain = {},
                             .key = row_in(after_, &SeenCache::Head::keys, h, row.position).cast<float>(),
                             .value = row_in(after_, &SeenCache::Head::values, h, row.position).cast<float>()};
      if (blend.key.cast<double>() == key(h, row.position) && blend.value.cast<double>() == value(h, row.position)) continue;
      if (b_.angles()) {
        blend.plain = turned_back(blend.key, row.angle);
        row.slack = 2 * KvBeliefs::turn_error(row.angle);
      }
      row.blend = std::make_shared<const KvBeliefs::Blend>(std::move(blend));
    }
    demand(new_mass >= old_mass && new_mass <= old_mass + merged, "a row stands for more tokens only for those that left");
  }

  void update(Index h, std::size_t c, const std::vector<KvBeliefs::Row>& gone, const std::vector<std::int32_t>& to,
              const pith::Vector<double>& cosines) {
    KvBeliefs::Row& row = b_.held(h)[c];
    const Numbers old_key = key(h, row.position), old_value = value(h, row.position);
    Numbers keys = Numbers::Zero(1, b_.dim()), values = keys, key_sizes = keys, value_sizes = keys;
    double count = 0, sum = 0, mass = row.mass;
    for (std::size_t e = 0; e < gone.size(); ++e) {
      if (to[e] != static_cast<std::int32_t>(c)) continue;
      const Numbers k = key(h, gone[e].position), v = value(h, gone[e].position);
      const double weight = b_.s_.merge.weight({cosines[static_cast<Index>(e)], row.mass, gone[e].mass, old_value.norm(), v.norm()});
      keys += weight * k;
      values += weight * v;
      key_sizes += (1 + std::abs(weight)) * k.cwiseAbs();  // a weight of any size may have the rounding of a cosine near 1
      value_sizes += (1 + std::abs(weight)) * v.cwiseAbs();
      count += 1;
      sum += weight;
      mass += gone[e].mass;
    }
    if (count == 0) return;
    const pith::MergeMix<double> mix = b_.s_.merge.mix(row.mass, count, sum);
    // Sums carry the rounding of their terms; then comes the one rounding of what is stored.
    const double eps = (8 + count + double(b_.dim())) * std::numeric_limits<float>::epsilon();
    const auto adopted = [&](const Numbers& old, const Numbers& added, const Numbers& sizes,
                             const std::vector<float> SeenCache::Head::*what, KvSetting::AsStored as_stored) {
      const Numbers expected = (mix.a * old + added) / mix.z, slack = eps / std::abs(mix.z) * (std::abs(mix.a) * old.cwiseAbs() + sizes);
      const Numbers seen = row_in(after_, what, h, row.position);
      const double step = stored_step(as_stored, expected.cast<float>());
      for (Index i = 0; i < b_.dim(); ++i)
        demand(std::abs(seen(0, i) - expected(0, i)) <= slack(0, i) + step, "evicted rows are merged into those nearest to them");
      return pith::Matrix<float>(seen.cast<float>());
    };
    KvBeliefs::Blend blend;
    const bool turned = b_.s_.merge.merges_keys();
    blend.key = turned ? adopted(old_key, keys, key_sizes, &SeenCache::Head::keys, b_.s_.key_as_stored)
                       : pith::Matrix<float>(old_key.cast<float>());
    blend.value = adopted(old_value, values, value_sizes, &SeenCache::Head::values, b_.s_.value_as_stored);
    if (b_.angles()) {
      blend.plain = turned_back(blend.key, row.angle);
      row.slack = 2 * KvBeliefs::turn_error(row.angle);
    }
    row.blend = std::make_shared<const KvBeliefs::Blend>(std::move(blend));
    row.mass = mass;
  }

  /// How far the storage may move a number of such a row: twice what it does to this one, and of Q8, whose steps jump, twice its block's.
  static double stored_step(KvSetting::AsStored as_stored, const pith::Matrix<float>& row) {
    const double moved = (as_stored(row.data(), row.cols()) - row).cwiseAbs().maxCoeff();
    return moved == 0 ? 0 : 2 * moved + double(row.cwiseAbs().maxCoeff()) / 127;
  }

  /// The key that, rotated at this angle, is this one.
  pith::Matrix<float> turned_back(const pith::Matrix<float>& key, pith::Position angle) const {
    const Index half = b_.dim() / 2;
    pith::Matrix<float> unit = pith::Matrix<float>::Zero(1, b_.dim());
    unit.leftCols(half).setOnes();
    b_.s_.rope->rotate(unit, {&angle, 1});  // cosines, then sines
    pith::Matrix<float> plain(1, b_.dim());
    for (Index i = 0; i < half; ++i) {
      const double c = unit(0, i), s = unit(0, half + i), x = key(0, i), y = key(0, half + i);
      plain(0, i) = static_cast<float>(c * x + s * y);
      plain(0, half + i) = static_cast<float>(c * y - s * x);
    }
    return plain;
  }

  KvBeliefs& b_;
  const SeenCache& before_;
  const SeenCache& after_;
  bool close_ = false;  ///< a rounding could have turned a decision
};

}  // namespace pith_test
