#pragma once

#include <span>
#include <type_traits>

#include <pith/model/detail/decoder_model.hpp>
#include <pith/model/detail/layer_pass.hpp>
#include <pith/nn/activation.hpp>

// From token ids to what the first layer reads, and from hidden states to logits.
namespace pith { inline namespace v0 { namespace detail {

/// The rows of tokens: from the adapter's own table if it has one, else the model's, with the adapter's changes.
template <class S>
void look_up(const DecoderModel<S>& model, const ModelAdapter<S>* adapter, std::span<const Token> tokens,
             std::type_identity_t<MatrixRef<S>> out) {
  if (adapter == nullptr) return model.weights.embed_tokens.gather(tokens, out);
  const AdapterParts<S>& parts = adapter->parts();
  (parts.embed_tokens.rows() > 0 ? parts.embed_tokens : model.weights.embed_tokens).gather(tokens, out);
  if (!parts.embedding.empty()) parts.embedding.apply(tokens, out);
}

/// Scales what enters the first layer.
template <class S> void enter(const DecoderModel<S>& model, std::type_identity_t<MatrixRef<S>> hidden) {
  if (model.config.input_scale != 1) hidden *= static_cast<S>(model.config.input_scale);
}

/// Scales and caps logits.
template <class S> void finish_logits(const DecoderModel<S>& model, std::type_identity_t<MatrixRef<S>> logits) {
  if (model.config.logits_scale != 1) logits *= static_cast<S>(model.config.logits_scale);
  if (model.config.logits_softcap > 0) soft_cap(static_cast<S>(model.config.logits_softcap), logits);
}

/// logits = lm_head(norm(hidden)), scaled and capped: hidden, normed [tokens, hidden_size] · logits [tokens, vocab_size].
template <class S>
void read_head(const DecoderModel<S>& model, const RowsByAdapter<S>& adapters, std::type_identity_t<ConstMatrixRef<S>> hidden,
               std::type_identity_t<MatrixRef<S>> normed, std::type_identity_t<MatrixRef<S>> logits, Workspace& ws) {
  norm_runs(
      model.norm, adapters, [](const ModelAdapter<S>& adapter) { return &adapter.parts().norm; }, hidden, normed);
  if (adapters.empty())
    model.weights.lm_head.forward(normed, logits, ws);
  else
    forward_runs(
        model.weights.lm_head, adapters, [](const ModelAdapter<S>& adapter) { return adapter.lm_head(); }, normed, logits, ws);
  finish_logits(model, logits);
}

}}}  // namespace pith::v0::detail
