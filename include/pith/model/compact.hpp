#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/compact.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/look.hpp>
#include <pith/model/session.hpp>

// Compaction of a session. Needs <Eigen/Cholesky>, so no umbrella includes this header.

namespace pith { inline namespace v0 {

/// How each layer of a decoder turns q·k into a logit.
inline std::vector<LayerScale> layer_scales(const DecoderConfig& config) {
  std::vector<LayerScale> out;
  for (Index l = 0; l < config.num_hidden_layers; ++l) {
    const LayerSpec spec = config.layer(l);
    out.push_back({.scale = spec.attention_scale, .softcap = spec.attention_softcap, .window = spec.window});
  }
  return out;
}

/// compact() of all layers of a session: see kv/compact.hpp.
template <class S, KvStorage T>
CompactedRows<T> compact(const Session<S, T>& session, const ReferenceQueries<S>& queries, const CompactOptions& options = {}) {
  const std::vector<LayerScale> scales = layer_scales(session.config());
  CompactedRows<T> rows = compact<T>(session.caches(), scales, queries, options);
  rows.adapter = session.adapter() != nullptr ? session.adapter()->fingerprint() : 0;
  return rows;
}

/// Turns the queries that a prompt's own tokens asked as if they came behind it, at positions next .. next + span - 1.
///
/// Throws   what ReferenceQueries::turn() throws
template <class S> void turn_behind(const Decoder<S>& decoder, Position next, ReferenceQueries<S>& queries, Index span = 64) {
  for (Index l = 0; l < queries.layers(); ++l) {
    const LayerSpec spec = decoder.config().layer(l);
    std::vector<S> was;
    const auto each = [&](auto&& f) {
      for (Index h = 0; spec.query_scale.on() && h < queries.shape().num_kv_heads; ++h) queries.for_each(l, h, f);
    };
    each([&](Position p, MatrixRef<S>) { was.push_back(static_cast<S>(spec.query_scale.at(p))); });
    queries.turn(l, *decoder.rope(l), next, span);
    std::size_t token = 0;
    each([&](Position p, MatrixRef<S> rows) { rows *= static_cast<S>(spec.query_scale.at(p)) / was[token++]; });
  }
}

/// Adds the queries of tokens that look at a session's rows: the context repeated behind itself, or questions. Tokens are read `chunk` at a
/// time, each time from the session's next position on, so that they stay within the length that the model was trained on.
///
/// Cost     a prefill of the tokens
/// Throws   what Session::look() throws
template <class S, KvStorage T>
void add_looking(const Session<S, T>& session, std::span<const Token> tokens, Index chunk, ReferenceQueries<S>& queries,
                 const LookOptions<S>& options = {}) {
  check_count("add_looking", "chunk", chunk, 1);
  for (std::size_t done = 0; done < tokens.size(); done += static_cast<std::size_t>(chunk))
    session.look(
        tokens.subspan(done, (std::min)(static_cast<std::size_t>(chunk), tokens.size() - done)),
        [&](const LookTile<T>& tile) {
          queries.add_head(tile.layer, tile.attention.kv_head, tile.attention.queries, tile.attention.first_query);
        },
        options);
}

}}  // namespace pith::v0
