#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/model/config.hpp>
#include <pith/model/detail/decode_together.hpp>
#include <pith/model/detail/head.hpp>
#include <pith/model/detail/layer_pass.hpp>
#include <pith/model/session.hpp>
#include <pith/model/weights.hpp>

namespace pith { inline namespace v0 {

/// A decoder of any family that DecoderConfig can describe: configuration and weights, immutable and shared by all its sessions
/// (conversations).
///
///   Decoder<float> llama{config, weights};
///   auto session = llama.start(SinkWindow{.sinks = 4, .window = 1020});
///   auto logits = session.prefill(prompt);
///
/// Const methods are thread-safe. A session keeps the weights it uses alive.
template <class S = float> class Decoder {
 public:
  using Scalar = S;

  /// Throws   ShapeError, UnsupportedError if configuration and weights do not match
  Decoder(DecoderConfig config, DecoderWeights<S> weights)
      : model_(std::make_shared<const detail::DecoderModel<S>>(std::move(config), std::move(weights))) {}
  Decoder(Decoder&&) = default;
  Decoder& operator=(Decoder&&) = default;

  const DecoderConfig& config() const { return model_->config; }
  const DecoderWeights<S>& weights() const { return model_->weights; }
  Index vocab_size() const { return model_->config.vocab_size; }
  std::uint64_t fingerprint() const { return model_->weights.fingerprint; }  ///< hash of config, names, shapes and samples of all tensors

  /// Starts a conversation with this policy in every layer, rows stored as T; evicted rows are merged into kept ones, or dropped.
  ///
  /// Heap     all buffers of the session
  template <KvStorage T = S>
  Session<S, T> start(AnyPolicy<S> policy = Dense{}, const SessionOptions& options = {}, const AnyMerge<S>& merge = {}) const {
    if (policy.traits().needs_queries) check_alike();
    const std::vector<AnyPolicy<S>> per_layer(static_cast<std::size_t>(model_->config.num_hidden_layers), policy);
    return Session<S, T>(model_, per_layer, options, merge);
  }
  /// Overload with one policy per layer, for policies that must know their layer (its rope, its o_proj) and for other mixtures.
  template <KvStorage T = S>
  Session<S, T> start(std::span<const AnyPolicy<S>> per_layer, const SessionOptions& options = {}, const AnyMerge<S>& merge = {}) const {
    return Session<S, T>(model_, per_layer, options, merge);
  }

  /// Decodes one token of each of several sessions at once. Every weight is read once per 64 sessions, every adapter once; sessions may
  /// differ in adapter and policy.
  ///
  /// Shapes   sessions, tokens [n] · logits [n, vocab_size], row i follows token i of session i
  /// Heap     none, given ws of together_workspace_bytes(sessions, workers); the sessions' own threads and buffers are not used
  /// Throws   ShapeError for sessions that are null, given twice or of another decoder, and what decode() of any of them throws, before
  ///          any of them changes; CapacityError if ws is too small. A refusal that depends on a policy's scores is thrown after all
  ///          other sessions have read their token: that session is left as decode() leaves it, its row of logits is NaN
  /// Law      bit-identical to decode() of each session alone, in logits and in state
  template <KvStorage T = S>
  void decode_together(std::type_identity_t<std::span<Session<S, T>* const>> sessions, std::span<const Token> tokens,
                       std::type_identity_t<MatrixRef<S>> logits, Workspace& ws) const {
    detail::TogetherPass<S, T>(*model_, sessions, ws).run(tokens, logits);
  }
  /// Overload for several tokens of each session, up to its max_chunk(): all of a speculative step are verified in one pass.
  ///
  /// Shapes   logits [all tokens, vocab_size], those of session 0 first
  /// Heap     none, given ws of together_workspace_bytes(sessions, all tokens, workers)
  template <KvStorage T = S>
  void decode_together(std::type_identity_t<std::span<Session<S, T>* const>> sessions, std::span<const std::span<const Token>> tokens,
                       std::type_identity_t<MatrixRef<S>> logits, Workspace& ws) const {
    detail::TogetherPass<S, T>(*model_, sessions, ws).run(tokens, logits);
  }
  /// The same two with memory of their own: `decode_together(batch, next)` returns the logits.
  ///
  /// Heap     the logits and a workspace
  template <KvStorage T = S>
  Matrix<S> decode_together(std::type_identity_t<std::span<Session<S, T>* const>> sessions, std::span<const Token> tokens,
                            ExecutorRef executor = serial) const {
    Matrix<S> logits(static_cast<Index>(tokens.size()), vocab_size());
    Workspace ws(together_workspace_bytes<T>(sessions, executor.size()), executor);
    decode_together<T>(sessions, tokens, logits, ws);
    return logits;
  }
  template <KvStorage T = S>
  Matrix<S> decode_together(std::type_identity_t<std::span<Session<S, T>* const>> sessions, std::span<const std::span<const Token>> tokens,
                            ExecutorRef executor = serial) const {
    Index all = 0;
    for (const std::span<const Token> chunk : tokens) all += static_cast<Index>(chunk.size());
    Matrix<S> logits(all, vocab_size());
    Workspace ws(together_workspace_bytes<T>(sessions, all, executor.size()), executor);
    decode_together<T>(sessions, tokens, logits, ws);
    return logits;
  }
  template <KvStorage T = S>
  std::size_t together_workspace_bytes(std::type_identity_t<std::span<Session<S, T>* const>> sessions, Index workers = 1) const {
    return detail::TogetherPass<S, T>::workspace_bytes(*model_, sessions, static_cast<Index>(sessions.size()), workers);
  }
  template <KvStorage T = S>
  std::size_t together_workspace_bytes(std::type_identity_t<std::span<Session<S, T>* const>> sessions, Index tokens, Index workers) const {
    return detail::TogetherPass<S, T>::workspace_bytes(*model_, sessions, tokens, workers);
  }

  /// The rope of a layer, for policies that turn queries themselves; `text_length`: the longest text it is used for, if that matters. A
  /// layer without rope gives one that does not rotate.
  ///
  /// Throws   ShapeError for no layer of the decoder
  std::shared_ptr<const Rope<S>> rope(Index layer = 0, Index text_length = 0) const {
    static_cast<void>(model_->config.layer(layer));
    const auto& own = model_->layers[static_cast<std::size_t>(layer)];
    return model_->switch_length > 0 && text_length > model_->switch_length ? own.rope_beyond : own.rope;
  }

  /// The fingerprint and sizes that a ModelAdapter for this decoder must match.
  AdapterTarget adapter_target() const { return model_->target(); }

  /// Logits of all tokens at once, without a cached conversation: the reference for cached decoding.
  ///
  /// Shapes   returns [tokens, vocab_size]; probe(layer, hidden [tokens, hidden_size]) is called num_hidden_layers + 1 times in the
  ///          convention of Hugging Face's hidden_states: 0 the embeddings, then each layer's output, the last one after the final norm
  /// Heap     all its buffers, one layer's keys and values among them
  template <class Probe = detail::NoProbe>
  Matrix<S> forward(std::span<const Token> tokens, Probe&& probe = {}, ExecutorRef executor = serial) const {
    const DecoderConfig& config = model_->config;
    const Index n = static_cast<Index>(tokens.size()), layers = config.num_hidden_layers;
    Matrix<S> hidden(n, config.hidden_size);
    Matrix<S> logits(n, config.vocab_size);
    if (n == 0) return logits;
    model_->weights.embed_tokens.gather(tokens, hidden);
    detail::enter(*model_, hidden);
    KvCache<S> cache(config.attention(), Dense{}, {.max_draft = 0, .max_tokens = n});
    Workspace ws(detail::layer_workspace_bytes<S>(*model_, detail::prefill_tile, n, executor.size()), executor);
    for (Index layer = 0; layer < layers; ++layer) {
      probe(layer, ConstMatrixRef<S>(hidden));
      cache.clear();
      detail::LayerPass<S>{*model_, layer, ws, {}, model_->switch_length > 0 && n > model_->switch_length}.prefill(
          cache, hidden, {}, static_cast<Position>(n));
    }
    model_->norm.forward(hidden, hidden);
    probe(layers, ConstMatrixRef<S>(hidden));
    for (Index t = 0; t < n; t += detail::prefill_tile) {
      const Index tile = (std::min)(detail::prefill_tile, n - t);
      model_->weights.lm_head.forward(hidden.middleRows(t, tile), logits.middleRows(t, tile), ws);
      detail::finish_logits(*model_, logits.middleRows(t, tile));
    }
    return logits;
  }

 private:
  /// A policy that predicts scores from queries is made for one rope and one scale.
  void check_alike() const {
    const LayerSpec& first = model_->layers.front().spec;
    for (std::size_t l = 1; l < model_->layers.size(); ++l) {
      const LayerSpec& spec = model_->layers[l].spec;
      if (spec.rope != first.rope || spec.attention_scale != first.attention_scale)
        raise<UnsupportedError>("pith::Decoder::start: layers 0 and ", l,
                                " have different ropes or scales, and this policy is made for one: give a "
                                "policy per layer, with rope(layer) and config().layer(layer).attention_scale");
    }
  }

  std::shared_ptr<const detail::DecoderModel<S>> model_;
};

}}  // namespace pith::v0
