#pragma once
// Merges evicted rows into the kept rows nearest to them.

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// The kept row that each evicted row is merged into, as nearest_rows() finds it.
template <class S> struct MergeMatch {
  std::span<const std::int32_t> row;  ///< [evicted] its kept row; -1: dropped
  ConstVectorRef<S> cosine;           ///< [evicted]
};

/// The kept rows: keys and values, or any two matrices with a row for each token. Values follow the match and the weights of the keys.
template <class S> struct MergedRows {
  MatrixRef<S> keys, values;  ///< [kept, dim], changed in place; keys may be [0, 0] if there are none
  VectorRef<S> mass = {};     ///< [kept] number of tokens each row stands for, updated; empty: 1 each
};
/// The evicted rows.
template <class S> struct LeavingRows {
  ConstMatrixRef<S> keys, values;  ///< [evicted, dim]
  ConstVectorRef<S> mass = {};     ///< [evicted], or empty: 1 each
};

namespace detail {

/// x' = (a x + Σ b_e x_e) / z, after the checks. Work and memory touched grow with the evicted rows, not with the kept rows.
template <class S, MergeRule<S> Rule>
void mix_rows(MergedRows<S> kept, const LeavingRows<S>& evicted, const MergeMatch<S>& match, const Rule& rule, Workspace& ws) {
  const Index m = kept.values.rows(), n = evicted.values.rows();
  const Workspace::Scope scope(ws);
  std::int32_t* const count = ws.take<std::int32_t>(m);  // rows matched to each kept row; kept rows without a match are never set
  std::int32_t* const left = ws.take<std::int32_t>(m);   // … of these, the rows still to be added
  S* const z = ws.take<S>(m);                            // the sum of their weights, later z of the update
  S* const weight = ws.take<S>(n);
  const auto mass = [](const auto& masses, Index i) { return masses.size() == 0 ? S(1) : S(masses[i]); };
  const auto for_matched = [&](auto&& f) {
    for (Index e = 0; e < n; ++e)
      if (const Index c = match.row[static_cast<std::size_t>(e)]; c >= 0) f(e, c);
  };
  for_matched([&](Index, Index c) {
    count[c] = 0;
    z[c] = 0;
  });
  for_matched([&](Index e, Index c) {
    weight[e] = rule.weight(
        MergePair<S>{match.cosine[e], mass(kept.mass, c), mass(evicted.mass, e), kept.values.row(c).norm(), evicted.values.row(e).norm()});
    left[c] = ++count[c];
    z[c] += weight[e];
  });
  const bool keys = kept.keys.size() > 0 && merges_keys(rule);
  for_matched([&](Index e, Index c) {
    if (left[c] == count[c]) {
      const MergeMix<S> mix = rule.mix(mass(kept.mass, c), static_cast<S>(count[c]), z[c]);
      if (keys) kept.keys.row(c) *= mix.a;
      kept.values.row(c) *= mix.a;
      z[c] = mix.z;
    }
    if (keys) kept.keys.row(c) += weight[e] * evicted.keys.row(e);
    kept.values.row(c) += weight[e] * evicted.values.row(e);
    if (kept.mass.size() > 0) kept.mass[c] += mass(evicted.mass, e);
    if (--left[c] > 0) return;
    if (keys) kept.keys.row(c) /= z[c];
    kept.values.row(c) /= z[c];
  });
}

template <class S> void check_merge(const MergedRows<S>& kept, const LeavingRows<S>& evicted, const MergeMatch<S>& match) {
  const Index n = evicted.values.rows(), m = kept.values.rows();
  check_shape("merge_rows", "evicted values", evicted.values, any_extent, kept.values.cols());
  if (kept.keys.size() > 0 || evicted.keys.size() > 0) {
    check_shape("merge_rows", "kept keys", kept.keys, m, any_extent);
    check_shape("merge_rows", "evicted keys", evicted.keys, n, kept.keys.cols());
  }
  const auto count = [](const char* what, Index found, Index expected) {
    if (found != expected) raise<ShapeError>("pith::merge_rows: ", found, " ", what, ", expected ", expected);
  };
  count("matches", static_cast<Index>(match.row.size()), n);
  count("cosines", match.cosine.size(), n);
  if (kept.mass.size() > 0) count("masses of kept rows", kept.mass.size(), m);
  if (evicted.mass.size() > 0) count("masses of evicted rows", evicted.mass.size(), n);
  if (!(kept.mass.array() > S(0)).all() || !(evicted.mass.array() > S(0)).all())
    raise<ShapeError>("pith::merge_rows: a mass is not above 0: a row stands for one token or more");
  for (const std::int32_t c : match.row)
    if (c < -1 || c >= m) raise<ShapeError>("pith::merge_rows: match ", c, ", expected -1 .. ", m - 1);
}

}  // namespace detail

/// Merges each evicted row e into its kept row x: x' = (a x + Σ b_e x_e) / z for keys and values alike, from the old rows only.
///
/// Shapes   as in MergedRows, LeavingRows and MergeMatch; no evicted row overlaps a kept row
/// Cost     one multiply-add for each number of the evicted rows, and a norm of each value; kept rows without a match are not touched
/// Heap     none, given ws of merge_workspace_bytes<S>(kept, evicted)
/// Throws   ShapeError if shapes or matches disagree, before anything changes; CapacityError if ws is too small
/// Law      a kept row without a match keeps its bits; evicted rows are added in ascending order
template <class S, MergeRule<S> Rule>
void merge_rows(MergedRows<S> kept, const std::type_identity_t<LeavingRows<S>>& evicted, const std::type_identity_t<MergeMatch<S>>& match,
                const Rule& rule, Workspace& ws) {
  detail::check_merge(kept, evicted, match);
  detail::mix_rows<S>(kept, evicted, match, rule, ws);
}

/// Bytes of workspace that merge_rows() needs.
template <class S> std::size_t merge_workspace_bytes(Index kept, Index evicted) {
  return 2 * Workspace::bytes_for<std::int32_t>(kept) + Workspace::bytes_for<S>(kept) + Workspace::bytes_for<S>(evicted);
}

/// The same with a workspace of its own.
template <class S, MergeRule<S> Rule>
void merge_rows(MergedRows<S> kept, const std::type_identity_t<LeavingRows<S>>& evicted, const std::type_identity_t<MergeMatch<S>>& match,
                const Rule& rule) {
  Workspace ws(merge_workspace_bytes<S>(kept.values.rows(), evicted.values.rows()));
  merge_rows<S>(kept, evicted, match, rule, ws);
}

}}  // namespace pith::v0
