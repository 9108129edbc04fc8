#pragma once

#include <pith/model/detail/decoder_model.hpp>
#include <pith/model/detail/layer_pass.hpp>

// From token ids to embedding rows, and from hidden states to logits.
namespace pith { inline namespace v0 { namespace detail {

/// The embedding table: the adapter's own if it has one, else the model's.
template <class S> const Embedding<S>& table_of(const DecoderModel<S>& model, const ModelAdapter<S>* adapter) {
  return adapter != nullptr && adapter->parts().embed_tokens.rows() > 0 ? adapter->parts().embed_tokens : model.weights.embed_tokens;
}

/// logits = lm_head(norm(hidden)): hidden, normed [tokens, hidden_size] · logits [tokens, vocab_size].
template <class S>
void read_head(const DecoderModel<S>& model, const RowsByAdapter<S>& adapters, std::type_identity_t<ConstMatrixRef<S>> hidden,
               std::type_identity_t<MatrixRef<S>> normed, std::type_identity_t<MatrixRef<S>> logits, Workspace& ws) {
  norm_runs(
      model.norm, adapters, [](const ModelAdapter<S>& adapter) { return &adapter.parts().norm; }, hidden, normed);
  if (adapters.empty()) return model.weights.lm_head.forward(normed, logits, ws);
  forward_runs(
      model.weights.lm_head, adapters, [](const ModelAdapter<S>& adapter) { return adapter.lm_head(); }, normed, logits, ws);
}

}}}  // namespace pith::v0::detail
