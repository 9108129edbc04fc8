#pragma once

#include <cstdint>
#include <span>

#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/prefix.hpp>

namespace pith { inline namespace v0 {

/// Options of a KvCache, besides its policy: sizes, prefix, merging.
struct KvCacheOptions {
  Index max_chunk = 1;            ///< tokens appended between two evictions, unless a prompt buffer is lent
  Index max_draft = 0;            ///< a checkpoint can undo max_draft + 1 tokens; 0: no checkpoints and no memory for them
  Index max_tokens = 4096;        ///< rows of a policy without a budget (Dense)
  Index max_generated = 512;      ///< rows of a prompt-only policy for tokens decoded after the prompt
  Index window = 0;               ///< sliding-window models: rows that no query can see any more are evicted first; 0: none
  bool keep_masses = false;       ///< a merged row counts as all its tokens: attention adds the logarithm of their number to its logit
  ExecutorRef executor = serial;  ///< threads for merging; must outlive the cache
  double skip_below = 0;          ///< sessions and attend(q, cache) pass it on to attention: AttendOptions::skip_below
  bool scout_keys = false;        ///< under skip_below, decoding reads only keys that 8-bit copies beside them cannot exclude; see attend()
  KvPrefix prefix = {};           ///< rows before the first token, shared with other caches
  Index layer = 0;                ///< index of this cache's layer in the prefix
};

/// The largest number of tokens that an appended row can stand for: sums up to this are exact in a float.
inline constexpr Index max_mass = Index(1) << 24;

/// Whether a prompt is read (prefill) or an answer written (decode). Only prompt-only policies distinguish: they evict when a prompt ends.
enum class Phase : std::uint8_t { decode, prefill };

/// Options of KvCache::append().
struct AppendOptions {
  Phase phase = Phase::decode;
  bool more = false;                         ///< prefill: another piece of the prompt follows; under a prompt-only policy evict() waits
  std::span<const TokenKind> kinds = {};     ///< [tokens]; empty: text
  std::span<const Position> positions = {};  ///< [tokens] increasing, from next_position() on; empty: consecutive
  std::span<const float> masses = {};        ///< [tokens] number of tokens each row stands for, if merged before; empty: 1 each
};

}}  // namespace pith::v0
