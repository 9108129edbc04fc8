#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/text/detail/vocabulary.hpp>

// Merges the symbols of a word.
namespace pith { inline namespace v0 { namespace detail {

/// Buffers of merge_word(), reused between words.
struct WordScratch {
  struct Link {
    std::uint32_t id;
    std::int32_t previous, next;
  };
  std::vector<Link> links;
  std::vector<std::uint64_t> pairs, made;  // rank and place; the word's own pairs in order, and a heap of those that merging makes
};

inline constexpr std::size_t short_word = 32;  // symbols; shorter words try all pairs, which is faster than a heap

/// The symbols still there are the bits of a word, so that nothing moves.
inline void merge_short(const MergeTable& table, std::vector<std::uint32_t>& symbols) {
  const std::size_t n = symbols.size();
  if (n < 2) return;
  std::array<std::uint32_t, short_word> ranks, results;  // [symbol] of its merge with the next
  std::uint32_t live = ~0u >> (short_word - n);
  const auto at = [](int i) { return static_cast<std::size_t>(i); };
  const auto look = [&](std::size_t left, std::size_t right) {
    const Merge merge = table.find(symbols[left], symbols[right]);
    ranks[left] = merge.rank;
    results[left] = merge.id;
  };
  for (std::size_t i = 0; i + 1 < n; ++i) look(i, i + 1);
  ranks[n - 1] = no_id;
  for (;;) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < n; ++i)
      if (ranks[i] < ranks[best]) best = i;
    if (ranks[best] == no_id) break;
    const std::uint32_t after = live & (~0u << best << 1), before = live & ((1u << best) - 1);
    const std::size_t gone = at(std::countr_zero(after));
    symbols[best] = results[best];
    live &= ~(1u << gone);
    ranks[gone] = ranks[best] = no_id;
    if (const std::uint32_t next = after & (after - 1); next != 0) look(best, at(std::countr_zero(next)));
    if (before != 0) look(at(static_cast<int>(std::bit_width(before))) - 1, best);
  }
  std::size_t kept = 0;
  for (; live != 0; live &= live - 1) symbols[kept++] = symbols[at(std::countr_zero(live))];
  symbols.resize(kept);
}

inline void merge_long(const MergeTable& table, std::vector<std::uint32_t>& symbols, WordScratch& scratch) {
  constexpr auto longest = static_cast<std::size_t>((std::numeric_limits<std::int32_t>::max)());
  if (symbols.size() > longest) raise<CapacityError>("pith::Tokenizer: a word has ", symbols.size(), " symbols, expected ", longest);
  auto& links = scratch.links;
  auto &pairs = scratch.pairs, &made = scratch.made;
  links.clear();
  pairs.clear();
  made.clear();
  const auto n = static_cast<std::int32_t>(symbols.size());
  links.reserve(symbols.size());
  for (std::int32_t i = 0; i < n; ++i) links.push_back({symbols[static_cast<std::size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1});
  const auto link = [&](std::int32_t i) -> WordScratch::Link& { return links[static_cast<std::size_t>(i)]; };
  const auto offer = [&](std::int32_t i, std::int32_t next, auto&& put) {
    if (i < 0 || next < 0) return;
    if (const Merge merge = table.find(link(i).id, link(next).id); merge.rank != no_id)
      put(std::uint64_t{merge.rank} << 32 | static_cast<std::uint32_t>(i));
  };
  const auto push = [&](std::uint64_t pair) {
    made.push_back(~pair);  // the heap's largest is the least pair
    std::push_heap(made.begin(), made.end());
  };
  for (std::int32_t i = 0; i + 1 < n; ++i) offer(i, i + 1, [&](std::uint64_t pair) { pairs.push_back(pair); });
  std::sort(pairs.begin(), pairs.end());
  for (auto own = pairs.cbegin(); own != pairs.cend() || !made.empty();) {
    std::uint64_t least;
    if (made.empty() || (own != pairs.cend() && *own < ~made.front())) {
      least = *own++;
    } else {
      least = ~made.front();
      std::pop_heap(made.begin(), made.end());
      made.pop_back();
    }
    const auto at = static_cast<std::int32_t>(least & 0xFFFFFFFF);
    const std::uint32_t id = table.result(static_cast<std::uint32_t>(least >> 32));
    WordScratch::Link& left = link(at);
    if (left.id == no_id || left.next < 0) continue;
    WordScratch::Link& right = link(left.next);
    if (table.find(left.id, right.id).id != id) continue;  // left or right has changed since
    left.id = id;
    left.next = right.next;
    right.id = no_id;
    if (left.next >= 0) link(left.next).previous = at;
    offer(left.previous, at, push);
    offer(at, left.next, push);
  }
  symbols.clear();
  for (const WordScratch::Link& l : links)
    if (l.id != no_id) symbols.push_back(l.id);
}

/// Merges the pair of lowest rank (leftmost of equals) until no pair merges.
///
/// Cost     n log n for n symbols
inline void merge_word(const MergeTable& table, std::vector<std::uint32_t>& symbols, WordScratch& scratch) {
  if (symbols.size() <= short_word) return merge_short(table, symbols);
  merge_long(table, symbols, scratch);
}

}}}  // namespace pith::v0::detail
