#pragma once
// Every merge strategy by name.

#include <span>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/merge/any_merge.hpp>
#include <pith/merge/averaged.hpp>
#include <pith/merge/gates.hpp>
#include <pith/merge/mass_weighted.hpp>
#include <pith/merge/merge_rule.hpp>
#include <pith/merge/normalized.hpp>
#include <pith/merge/pivotal.hpp>
#include <pith/merge/values_only.hpp>
#include <pith/merge/weighted.hpp>

namespace pith { inline namespace v0 {

/// An entry of the catalogue.
template <class S = float> struct MergeEntry {
  std::string_view name;          ///< as make_merge() takes it
  std::string_view makes, paper;  ///< one line each; x: the kept row, e: the n evicted rows nearest to it, s: their cosines
  AnyMerge<S> (*make)();
};

/// All strategies. Tests, benchmarks, examples and the README read this list: a new strategy is a struct and an entry here.
template <class S = float> std::span<const MergeEntry<S>> merge_catalogue() {
  static const MergeEntry<S> entries[] = {
      {"drop", "x: evicted rows are lost", "", []() -> AnyMerge<S> { return Drop{}; }},
      {"averaged", "the mean, (x + Σ e) / (1 + n)", "2406.18139", []() -> AnyMerge<S> { return Averaged{}; }},
      {"pivotal", "half way from x to that mean, (x + Σ (x + e) / 2) / (1 + n)", "2406.18139", []() -> AnyMerge<S> { return Pivotal{}; }},
      {"weighted", "(x + Σ s e) / (1 + n)", "2406.18139", []() -> AnyMerge<S> { return Weighted{}; }},
      {"normalized", "(x + Σ w e) / (1 + Σ w), w = (1 + s) / 2", "", []() -> AnyMerge<S> { return Normalized{}; }},
      {"mass-weighted", "the mean of all tokens that the rows stand for; meant for `keep_masses`", "2210.09461",
       []() -> AnyMerge<S> { return MassWeighted{}; }},
      {"values-only", "keys: x; values: (x + Σ w e) / (1 + Σ w), w by s and by the share of e in the norm", "",
       []() -> AnyMerge<S> { return ValuesOnly{}; }},
      {"d2o", "weighted, where similarity reaches a moving threshold", "2406.13035",
       []() -> AnyMerge<S> { return MovingThreshold(Weighted{}); }},
      {"values-only-half", "values-only, of the evicted rows whose s is at least the median; the others are lost", "",
       []() -> AnyMerge<S> { return BestShare(ValuesOnly{}, .5); }},
  };
  return entries;
}

/// Makes the strategy of this name.
///
/// Throws   UnsupportedError, which lists every strategy, if no strategy has this name
template <class S = float> AnyMerge<S> make_merge(std::string_view name) {
  if (name == "size-weighted") name = "mass-weighted";  // its name in 0.1
  std::string known;
  for (const MergeEntry<S>& entry : merge_catalogue<S>()) {
    known += known.empty() ? detail::text(entry.name) : detail::text(", ", entry.name);
    if (entry.name == name) return entry.make();
  }
  raise<UnsupportedError>("pith::make_merge: no strategy '", name, "': ", known);
}

}}  // namespace pith::v0
