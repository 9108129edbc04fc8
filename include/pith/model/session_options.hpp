#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/reference_queries.hpp>
#include <pith/kv/snapshot.hpp>

namespace pith { inline namespace v0 {

/// The sizes that a session allocates for, and the rows it starts with.
struct SessionOptions {
  Index max_prompt = 512;         ///< the most tokens of one prefill()
  Index max_tokens = 4096;        ///< rows of a Dense cache: the longest text it can hold
  Index max_generated = 512;      ///< the most tokens decoded after a prompt under a prompt-only policy
  Index max_draft = 8;            ///< decode() takes, and crop() takes back, up to max_draft + 1 tokens; 0: one token, no checkpoints
  Index text_length = 0;          ///< longrope models: the longest text the session will read, if its first prompt does not show it
  bool keep_masses = false;       ///< merged rows count as several tokens in attention (KvCacheOptions::keep_masses)
  double skip_below = 0;          ///< values whose weights sum to at most this share of a softmax are not read (AttendOptions); 0: all are
  bool scout_keys = false;        ///< keys are not read either where 8-bit copies exclude them (KvCacheOptions::scout_keys)
  KvPrefix prefix = {};           ///< rows every layer starts with: freeze() of a session, or a learned prefix
  ExecutorRef executor = serial;  ///< threads to use; must outlive the session

  void check() const {
    const auto at_least = [](std::string_view name, Index value, Index least) {
      if (value < least) raise<ShapeError>("pith::SessionOptions: ", name, " is ", value, ", expected ", least, " or more");
    };
    at_least("max_prompt", max_prompt, 1);
    at_least("max_tokens", max_tokens, 1);
    at_least("max_draft", max_draft, 0);
    at_least("text_length", text_length, 0);
    if (!(skip_below >= 0 && skip_below < 1))
      raise<ShapeError>("pith::SessionOptions: skip_below is ", skip_below, ", expected 0 or more, less than 1");
    constexpr Index most = (std::numeric_limits<std::int32_t>::max)() / 2;
    if (max_prompt > most || max_draft > most)
      raise<CapacityError>("pith::SessionOptions: max_prompt ", max_prompt, " or max_draft ", max_draft, " is more than ", most);
  }
};

/// Progress of a prefill(), reported after each layer.
struct PrefillProgress {
  Index layers_done = 0, layers_total = 0;
};

/// Holds any function bool(const PrefillProgress&), or none.
///
/// Heap     one allocation when it is made from a function
class PrefillCallback {
 public:
  PrefillCallback() = default;
  template <class F>
  requires(!std::same_as<F, PrefillCallback> && std::is_invocable_r_v<bool, F&, const PrefillProgress&>) PrefillCallback(F f)
      : held_(std::make_shared<F>(std::move(f))),
        call_([](void* held, const PrefillProgress& progress) -> bool { return (*static_cast<F*>(held))(progress); }) {}

  explicit operator bool() const { return call_ != nullptr; }
  /// Calls the function; there must be one.
  bool operator()(const PrefillProgress& progress) const { return call_(held_.get(), progress); }

 private:
  std::shared_ptr<void> held_;
  bool (*call_)(void*, const PrefillProgress&) = nullptr;
};

/// Holds any function void(const LayerQueries<S>&) of float, double or both, or none.
///
/// Heap     one allocation when it is made from a function
class QueryCallback {
 public:
  QueryCallback() = default;
  template <class F>
  requires(!std::same_as<F, QueryCallback> &&
           (std::is_invocable_v<F&, const LayerQueries<float>&> || std::is_invocable_v<F&, const LayerQueries<double>&>)) QueryCallback(F f)
      : held_(std::make_shared<F>(std::move(f))), float_(call<F, float>()), double_(call<F, double>()) {}

  explicit operator bool() const { return held_ != nullptr; }
  /// Throws   ShapeError if the function takes queries of the other type
  template <class S> void check() const {
    if (held_ && !chosen<S>()) raise<ShapeError>("pith::PrefillOptions: queries takes another number type than the session's");
  }
  template <class S> void operator()(const LayerQueries<S>& seen) const { chosen<S>()(held_.get(), seen); }

 private:
  template <class S> using Call = void (*)(void*, const LayerQueries<S>&);
  template <class F, class S> static Call<S> call() {
    if constexpr (std::is_invocable_v<F&, const LayerQueries<S>&>) {
      return [](void* held, const LayerQueries<S>& seen) { (*static_cast<F*>(held))(seen); };
    } else {
      return nullptr;
    }
  }
  template <class S> Call<S> chosen() const {
    if constexpr (std::same_as<S, float>) {
      return float_;
    } else {
      return double_;
    }
  }

  std::shared_ptr<void> held_;
  Call<float> float_ = nullptr;
  Call<double> double_ = nullptr;
};

/// FastV: tokens of a prompt that later layers leave out. The others keep their positions, but where a policy reads at cache positions they
/// close up; the caches of those layers hold no row of them. Rows of an adapter's prompt stay. Of a prompt in pieces only the last one,
/// which has the token that ranks, may be pruned.
///
/// Paper    arXiv:2403.06764
struct PrefillPruning {
  Index after = 0;  ///< layers that read all tokens, the published number is 2; 0: nothing is left out
  Index keep = 0;   ///< tokens of `kind` that stay: those the last token attends to most in layer after - 1, over all heads
  TokenKind kind = TokenKind::image;
};

/// Options of one prefill().
struct PrefillOptions {
  /// Another piece of the same prompt follows: prompt-only policies evict after the last one. Others evict after each piece either way.
  bool more = false;
  std::span<const float> masses = {};  ///< [tokens] number of tokens merged into each (SplicedPrompt::masses); empty: 1 each
  /// [tokens] the last token of this prompt that each one sees, itself or a later one: images that see each other (VisionPrompt::sight).
  /// Empty: itself.
  std::span<const Position> sight = {};
  PrefillPruning prune = {};  ///< tokens that later layers leave out; not for a piece that another one follows
  /// Activated LoRA: the first of these tokens that the adapter changes, instead of the last occurrence of its invocation among them; -1:
  /// that occurrence; the number of tokens: none. For prompts in pieces and of embeddings.
  Index adapted_from = -1;
  /// Returns false to cancel: prefill() then throws Cancelled, and the session is as before. It must not use the session.
  PrefillCallback progress = {};
  /// Is shown the queries of every token and layer, tile by tile, while the prompt is read; it must not use the session.
  QueryCallback queries = {};
};

/// The whole state of a session: snapshot() returns one, restore() returns to it, io/session_file.hpp stores it in a file.
template <class S, KvStorage T = S> struct SessionSnapshot {
  std::uint64_t fingerprint = 0;           ///< the decoder's
  std::uint64_t adapter = 0;               ///< the fingerprint of the adapter that changed its rows; 0: none did
  Position adapter_start = -1;             ///< the first row that an activated LoRA changed
  std::vector<KvSnapshot<T>> layers = {};  ///< the cache of each layer
  Matrix<S> logits = {};                   ///< [1 or 0, vocab_size] Session::logits()
};

namespace detail {

/// The reason why the caches of a model refuse a snapshot; empty: they accept it.
template <class S, KvStorage T, class Cache>
std::string snapshot_problem(const SessionSnapshot<S, T>& s, std::uint64_t model, Index vocab_size, std::span<const Cache> caches) {
  if (s.fingerprint != model) return text("of model ", s.fingerprint, "; this one is ", model);
  if (s.layers.size() != caches.size()) return text("of ", s.layers.size(), " layers, expected ", caches.size());
  if (s.logits.rows() > 1 || s.logits.cols() != vocab_size)
    return text("with logits ", shape_text(s.logits.rows(), s.logits.cols()), ", expected [1, ", vocab_size, "]");
  for (std::size_t layer = 0; layer < caches.size(); ++layer) {
    if (const std::string wrong = caches[layer].problem(s.layers[layer]); !wrong.empty()) return text("with layer ", layer, " ", wrong);
    const KvSnapshot<T>& held = s.layers[layer];
    if (held.unevicted != 0)
      return text("with layer ", layer, " in the middle of a call: ", held.unevicted, " tokens since the last eviction, expected 0");
    for (std::size_t h = 2; h < held.heads.size(); h += 3)
      if (held.heads[h] != 0)
        return text("with layer ", layer, " in the middle of a call: head ", h / 3, " saw ", held.heads[h], " queries, expected 0");
    for (std::size_t h = 0; caches[layer].reindexes() && h < held.heads.size(); h += 3)  // such a cache has no gaps in any head
      if (held.next_rope_position - caches[layer].first_position() != held.heads[h])
        return text("with layer ", layer, " at rope position ", held.next_rope_position, ", expected ",
                    caches[layer].first_position() + held.heads[h]);
    if (s.layers[layer].next != s.layers[0].next)
      return text("with layer ", layer, " at position ", s.layers[layer].next, ", layer 0 at ", s.layers[0].next);
  }
  if (s.logits.rows() > 0 && s.layers[0].next == caches[0].first_position()) return "with logits, but without a token";
  return {};
}

}  // namespace detail

}}  // namespace pith::v0
