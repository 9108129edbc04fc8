#pragma once

#include <cstdint>
#include <span>

#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/prefix.hpp>

namespace pith { inline namespace v0 {

/// What a cache is constructed with, besides its policy.
struct KvCacheOptions {
  Index max_chunk = 1;            ///< tokens appended between two evictions, unless a prompt buffer is lent
  Index max_draft = 0;            ///< a checkpoint can take back one token more than this; 0: no checkpoints and no memory for them
  Index max_tokens = 4096;        ///< rows of a policy without a budget (Dense)
  Index max_generated = 512;      ///< rows of a prompt-only policy for tokens decoded after the prompt
  Index window = 0;               ///< sliding-window models: rows no query can see any more leave first; 0: none
  bool keep_masses = false;       ///< a row that others were merged into counts as all their tokens: attention adds the logarithm of them
  ExecutorRef executor = serial;  ///< threads for merging; must outlive the cache
  KvPrefix prefix = {};           ///< rows before the first token, shared with other caches
  Index layer = 0;                ///< which of the prefix's layers this cache is
};

/// The most tokens that a row can stand for when it is appended: sums up to this are exact in a float.
inline constexpr Index max_mass = Index(1) << 24;

/// Whether a prompt is read or an answer written. Only prompt-only policies tell them apart: they evict when a prompt ends.
enum class Phase : std::uint8_t { decode, prefill };

struct AppendOptions {
  Phase phase = Phase::decode;
  bool more = false;                         ///< prefill: another piece of the prompt follows
  std::span<const TokenKind> kinds = {};     ///< [tokens]; empty: text
  std::span<const Position> positions = {};  ///< [tokens] increasing, from next_position() on; empty: without gaps
  std::span<const float> masses = {};        ///< [tokens] how many each stands for, if some were merged before; empty: 1 each
};

}}  // namespace pith::v0
