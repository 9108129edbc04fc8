#pragma once
// ModelAdapter: the changes that one adapter makes to a whole decoder.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>
#include <pith/peft/embedding_change.hpp>
#include <pith/peft/linear_adapter.hpp>

namespace pith { inline namespace v0 {

/// The projections of a decoder layer, in the order of computation.
enum class Projection : std::uint8_t { q, k, v, o, gate, up, down };
inline constexpr std::size_t num_projections = 7;
/// The paths of the projections inside a layer, as in checkpoints and adapter files.
inline constexpr std::array<const char*, num_projections> projection_names{
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};

/// The norms of a decoder layer, by place. Files name them differently in every family.
enum class NormPlace : std::uint8_t { pre_attention, post_attention, pre_mlp, post_mlp, q, k };
inline constexpr std::size_t num_norms = 6;
inline constexpr std::array<const char*, num_norms> norm_names{
    "pre_attention_norm", "post_attention_norm", "pre_mlp_norm", "post_mlp_norm", "q_norm", "k_norm"};

/// Identifies the decoder that an adapter is made for: Decoder::adapter_target().
struct AdapterTarget {
  std::uint64_t fingerprint = 0;
  Index num_layers = 0, hidden = 0, intermediate = 0, q = 0, kv = 0, vocab = 0;
  std::vector<std::array<Index, num_norms>> norms = {};  ///< [layers] features of each norm; 0: the layer has none there
  NormKind norm = NormKind::rms;                         ///< of every norm
  double embedding_scale = 1;                            ///< multiplies the rows of an embedding table

  friend bool operator==(const AdapterTarget&, const AdapterTarget&) = default;
  Index out(Projection p) const {
    return p == Projection::q                             ? q
           : p == Projection::k || p == Projection::v     ? kv
           : p == Projection::gate || p == Projection::up ? intermediate
                                                          : hidden;
  }
  Index in(Projection p) const { return p == Projection::o ? q : p == Projection::down ? intermediate : hidden; }
};

/// The changes to one layer. A norm without features leaves the base's norm in place; it holds the factor itself, as LayerWeights does.
template <class S = float> struct LayerAdapter {
  std::array<LinearAdapter<S>, num_projections> projections = {};
  std::array<AnyNorm<S>, num_norms> norms = {};
  LinearAdapter<S>& operator[](Projection p) { return projections[static_cast<std::size_t>(p)]; }
  const LinearAdapter<S>& operator[](Projection p) const { return projections[static_cast<std::size_t>(p)]; }
  AnyNorm<S>& operator[](NormPlace p) { return norms[static_cast<std::size_t>(p)]; }
  const AnyNorm<S>& operator[](NormPlace p) const { return norms[static_cast<std::size_t>(p)]; }
};

/// The changes to a decoder; empty parts leave the base in place.
template <class S = float> struct AdapterParts {
  std::vector<LayerAdapter<S>> layers = {};  ///< [layers], or empty
  LinearAdapter<S> lm_head = {};
  Embedding<S> embed_tokens = {};
  EmbeddingChange<S> embedding = {};  ///< of the rows that embed_tokens, or else the base's table, gives
  AnyNorm<S> norm = {};
  Matrix<S> prompt = {};  ///< [rows, hidden] soft prompt, before the first token
  /// Activated LoRA: only rows from the last occurrence of these tokens in a prompt on are changed; empty: all rows.
  std::vector<Token> invocation = {};
};

/// The index of the last occurrence of an invocation in a prompt, where an activated LoRA begins; occurrences may overlap; -1: none.
inline Index last_invocation(std::span<const Token> prompt, std::span<const Token> invocation) {
  if (invocation.empty()) return -1;
  const auto found = std::find_end(prompt.begin(), prompt.end(), invocation.begin(), invocation.end());
  return found == prompt.end() ? Index(-1) : static_cast<Index>(found - prompt.begin());
}

/// One adapter of a decoder, immutable and shareable. Session::use(&adapter) switches to it.
///
///   const ModelAdapter<float> polite = load_adapter("polite-lora", llama);
///   session.use(&polite);
///
/// Throws   ShapeError if a part does not fit the target
template <class S = float> class ModelAdapter {
 public:
  using Scalar = S;

  ModelAdapter(const AdapterTarget& target, AdapterParts<S> parts) : target_(target), parts_(std::move(parts)) {
    check();
    parts_.embed_tokens = parts_.embed_tokens.scaled(static_cast<S>(target_.embedding_scale));
    if (!parts_.embedding.empty()) parts_.embedding = parts_.embedding.scaled(static_cast<S>(target_.embedding_scale));
    for_each_projection([&](const std::string&, const LinearAdapter<S>& overlay, Index, Index) {
      plain_ = plain_ && overlay.turns.empty() && overlay.more.empty();
    });
    fingerprint_ = compute_fingerprint();
  }

  const AdapterTarget& target() const { return target_; }
  const AdapterParts<S>& parts() const { return parts_; }
  /// A hash of all numbers, never 0. It tells apart cached rows of different adapters, or of another scale of the same adapter. The type
  /// that factors are stored as does not count.
  std::uint64_t fingerprint() const { return fingerprint_; }
  std::size_t bytes() const;
  /// Workspace that a pass over `tokens` rows needs beyond linear_adapter_workspace_bytes(); 0 for LoRA and its nearest relatives.
  std::size_t more_workspace_bytes(Index tokens, Index workers = 1) const {
    std::size_t most = 0;
    if (plain_) return most;
    const auto see = [&](const LinearAdapter<S>& overlay) { most = (std::max)(most, overlay.more_workspace_bytes(tokens, workers)); };
    for (const LayerAdapter<S>& layer : parts_.layers)
      for (const LinearAdapter<S>& overlay : layer.projections) see(overlay);
    see(parts_.lm_head);
    return most;
  }

  /// The changes to a projection; nullptr: none.
  const LinearAdapter<S>* projection(Index layer, Projection p) const {
    if (parts_.layers.empty()) return nullptr;
    const LinearAdapter<S>& overlay = parts_.layers[static_cast<std::size_t>(layer)][p];
    return overlay.empty() ? nullptr : &overlay;
  }
  const LinearAdapter<S>* lm_head() const { return parts_.lm_head.empty() ? nullptr : &parts_.lm_head; }

 private:
  /// Calls visit(name, overlay, out, in) for every projection and the head.
  template <class Visit> void for_each_projection(Visit&& visit) const {
    for (std::size_t l = 0; l < parts_.layers.size(); ++l)
      for (std::size_t p = 0; p < num_projections; ++p)
        visit(detail::text("layers[", l, "].", projection_names[p]), parts_.layers[l].projections[p], target_.out(Projection(p)),
              target_.in(Projection(p)));
    visit(std::string("lm_head"), parts_.lm_head, target_.vocab, target_.hidden);
  }
  /// Calls visit(name, norm, features of the base's norm; 0: it has none) for every norm.
  template <class Visit> void for_each_norm(Visit&& visit) const {
    for (std::size_t l = 0; l < parts_.layers.size(); ++l)
      for (std::size_t n = 0; n < num_norms; ++n)
        visit(detail::text("layers[", l, "].", norm_names[n]), parts_.layers[l].norms[n],
              l < target_.norms.size() ? target_.norms[l][n] : 0);
    visit(std::string("norm"), parts_.norm, target_.hidden);
  }

  void check() const {
    if (!parts_.layers.empty() && static_cast<Index>(parts_.layers.size()) != target_.num_layers)
      raise<ShapeError>("pith::ModelAdapter: ", parts_.layers.size(), " layers, expected ", target_.num_layers, ", or none at all");
    for_each_projection([](const std::string& name, const LinearAdapter<S>& overlay, Index out, Index in) {
      overlay.check("ModelAdapter: " + name, out, in);
    });
    for_each_norm([&](const std::string& name, const AnyNorm<S>& norm, Index features) {
      if (norm.size() == 0) return;
      if (features == 0) raise<ShapeError>("pith::ModelAdapter: ", name, " is given, but the decoder has no such norm");
      check_shape("ModelAdapter", name, norm.weight(), features, 1);
      if (norm.kind() != target_.norm)
        raise<ShapeError>("pith::ModelAdapter: ", name, " is ", target_.norm == NormKind::rms ? "a LayerNorm" : "an RmsNorm",
                          ", expected the kind of the decoder's norms");
    });
    if (parts_.embed_tokens.rows() > 0) check_shape("ModelAdapter", "embed_tokens", parts_.embed_tokens, target_.vocab, target_.hidden);
    for (const Token token : parts_.invocation)
      if (token < 0 || token >= target_.vocab)
        raise<ShapeError>("pith::ModelAdapter: token ", token, " of the invocation is outside the vocabulary of ", target_.vocab);
    if (!parts_.invocation.empty() && (parts_.embed_tokens.rows() > 0 || !parts_.embedding.empty() || parts_.prompt.rows() > 0))
      raise<UnsupportedError>("pith::ModelAdapter: an invocation beside a table of embeddings or a prompt, which change rows before it");
    parts_.embedding.check(target_.vocab, target_.hidden);
    if (parts_.prompt.rows() > 0) check_shape("ModelAdapter", "prompt", parts_.prompt, any_extent, target_.hidden);
  }

  std::uint64_t compute_fingerprint() const {
    detail::Fingerprint f;
    const auto numbers = [&](const auto& m) { detail::hash_numbers(f, m); };
    for_each_projection([&](const std::string&, const LinearAdapter<S>& overlay, Index out, Index in) {
      f.number(overlay.terms.size() + overlay.narrow_terms.size());
      overlay.for_each_term([&](const auto& term) {  // the same numbers are the same adapter in any type
        detail::hash_widened<S>(f, term.a_rows);
        detail::hash_widened<S>(f, term.b_rows);
        numbers(term.gains);
      });
      for (const BlockTurn<S>& turn : overlay.turns) {
        numbers(turn.blocks);
        for (const Index place : turn.place) f.number(place);
      }
      for (const auto& change : overlay.more) change->hash(f);
      numbers(overlay.out_scale);
      numbers(overlay.bias);
      f.number(overlay.replacement.empty());
      Matrix<S> row(1, in);
      for (Index i = 0; i < out && !overlay.replacement.empty(); ++i) {
        overlay.replacement.copy_weight(i, row);
        numbers(row);
      }
      if (!overlay.replacement.empty()) numbers(Vector<S>(overlay.replacement.bias()));
    });
    for_each_norm([&](const std::string&, const AnyNorm<S>& norm, Index) {
      numbers(norm.weight());
      f.number(double(norm.eps()));
    });
    Matrix<S> row(1, parts_.embed_tokens.cols());
    for (Index i = 0; i < parts_.embed_tokens.rows(); ++i) {
      parts_.embed_tokens.copy_rows(i, row);
      numbers(row);
    }
    numbers(parts_.prompt);
    if (!parts_.embedding.empty()) parts_.embedding.hash(f);
    for (const Token token : parts_.invocation) f.number(token);
    return (std::max)(f.value(), std::uint64_t{1});
  }

  AdapterTarget target_;
  AdapterParts<S> parts_;
  std::uint64_t fingerprint_ = 0;
  bool plain_ = true;  ///< no overlay has turns or other changes than low-rank terms
};

template <class S> std::size_t ModelAdapter<S>::bytes() const {
  std::size_t sum = parts_.embed_tokens.bytes() + parts_.embedding.bytes() + static_cast<std::size_t>(parts_.prompt.size()) * sizeof(S);
  for_each_projection([&](const std::string&, const LinearAdapter<S>& overlay, Index, Index) { sum += overlay.bytes(); });
  for_each_norm([&](const std::string&, const AnyNorm<S>& norm, Index) { sum += norm.bytes(); });
  return sum;
}

}}  // namespace pith::v0
