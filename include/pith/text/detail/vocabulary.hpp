#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

// Hash tables of a tokenizer: strings to ids, and pairs of ids to merges.
namespace pith { inline namespace v0 { namespace detail {

inline constexpr std::uint32_t no_id = 0xFFFFFFFF;

/// Many strings in one block of memory.
class StringList {
 public:
  void push_back(std::string_view s) {
    text_.append(s);
    ends_.push_back(text_.size());
  }
  std::size_t size() const { return ends_.size(); }
  std::string_view operator[](std::size_t i) const {
    const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(text_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string text_;
  std::vector<std::size_t> ends_;
};

/// A hash with a random seed per run, so that no file can contain keys chosen to collide.
class SeededHash {
 public:
  SeededHash() : seed_(mix(static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(this)) ^ secret)) {}
  std::uint64_t operator()(std::uint64_t key) const { return mix(key ^ seed_); }
  std::uint64_t operator()(std::string_view s) const {
    std::uint64_t h = seed_ ^ s.size();
    for (; s.size() > 8; s.remove_prefix(8)) h = mix(h ^ word(s, 8));
    return mix(h ^ word(s, s.size()));
  }

 private:
  static constexpr std::uint64_t secret = 0x9E3779B97F4A7C15u;
  static std::uint64_t word(std::string_view s, std::size_t n) {
    std::uint64_t w = 0;
    std::memcpy(&w, s.data(), n);
    return w;
  }
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
  }
  std::uint64_t seed_;
};

/// Keys ↔ ids. Ids need not be contiguous; every key and id is unique.
class Vocabulary {
 public:
  Vocabulary() = default;
  /// Reserves `count` keys with ids below `ids`.
  Vocabulary(std::size_t count, std::size_t ids) : entry_of_(ids, no_id), slots_(std::bit_ceil(2 * count + 2)) { keys_id_.reserve(count); }

  /// Adds a key; returns false, and adds nothing, if the key or the id exists.
  bool add(std::string_view key, std::uint32_t id) {
    Slot& slot = slots_[place(key)];
    if (slot.entry != no_id || entry_of_[id] != no_id) return false;
    slot = {tag(key), static_cast<std::uint32_t>(keys_.size())};
    entry_of_[id] = slot.entry;
    keys_.push_back(key);
    keys_id_.push_back(id);
    return true;
  }

  std::uint32_t find(std::string_view key) const {
    const std::uint32_t entry = slots_[place(key)].entry;
    return entry == no_id ? no_id : keys_id_[entry];
  }
  bool has(std::uint32_t id) const { return id < entry_of_.size() && entry_of_[id] != no_id; }
  std::string_view key(std::uint32_t id) const { return keys_[entry_of_[id]]; }  ///< has(id) must hold
  std::size_t size() const { return keys_.size(); }
  std::size_t id_limit() const { return entry_of_.size(); }  ///< the largest id + 1

 private:
  struct Slot {
    std::uint32_t tag = 0;
    std::uint32_t entry = no_id;
  };
  std::uint32_t tag(std::string_view key) const { return static_cast<std::uint32_t>(hash_(key) >> 32); }
  std::size_t place(std::string_view key) const {
    const std::uint64_t h = hash_(key);
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = static_cast<std::size_t>(h) & mask;
    while (slots_[at].entry != no_id && (slots_[at].tag != static_cast<std::uint32_t>(h >> 32) || keys_[slots_[at].entry] != key))
      at = (at + 1) & mask;
    return at;
  }

  SeededHash hash_;
  StringList keys_;
  std::vector<std::uint32_t> keys_id_;   // [entry]
  std::vector<std::uint32_t> entry_of_;  // [id]
  std::vector<Slot> slots_ = std::vector<Slot>(2);
};

/// The result of merging two neighbouring symbols.
struct Merge {
  std::uint32_t rank = no_id;  ///< no_id: they do not merge
  std::uint32_t id = no_id;
};

/// (left, right) → rank and result; lower ranks merge first.
class MergeTable {
 public:
  MergeTable() = default;
  explicit MergeTable(std::size_t count) : slots_(std::bit_ceil(2 * count + 2)), results_(count, no_id) {}

  /// A repeated pair takes the later rank.
  void set(std::uint32_t left, std::uint32_t right, Merge merge) {
    slots_[place(pair(left, right))] = {pair(left, right), merge};
    results_[merge.rank] = merge.id;
  }
  std::uint32_t result(std::uint32_t rank) const { return results_[rank]; }
  Merge find(std::uint32_t left, std::uint32_t right) const { return slots_[place(pair(left, right))].merge; }

 private:
  struct Slot {
    std::uint64_t pair = 0;
    Merge merge;
  };
  static std::uint64_t pair(std::uint32_t left, std::uint32_t right) { return std::uint64_t{left} << 32 | right; }
  std::size_t place(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = static_cast<std::size_t>(hash_(key)) & mask;
    while (slots_[at].merge.rank != no_id && slots_[at].pair != key) at = (at + 1) & mask;
    return at;
  }

  SeededHash hash_;
  std::vector<Slot> slots_ = std::vector<Slot>(2);
  std::vector<std::uint32_t> results_;  // [rank]
};

}}}  // namespace pith::v0::detail
