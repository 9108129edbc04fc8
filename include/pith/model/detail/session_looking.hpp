#pragma once

#include <concepts>
#include <cstddef>
#include <span>

#include <pith/core/check.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/model/detail/head.hpp>
#include <pith/model/detail/look_cache.hpp>
#include <pith/model/session.hpp>

// The proxy pass of a session.
namespace pith { inline namespace v0 {

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
template <class See> void Session<S, T>::look(std::span<const Token> tokens, See&& see, const LookOptions<S>& options) const {
  const Index n = static_cast<Index>(tokens.size());
  const Position next = next_position();
  if (n == 0) raise<ShapeError>("pith::Session::look: no tokens, expected 1 or more");
  check_whole();
  adapter_.check(next, false);
  detail::CacheInternals::state(caches_.front()).rules.check_range(next, n);
  if (switch_.misplaced(next) || switch_.stale(next, next + n))
    raise<UnsupportedError>("pith::Session::look: ", n, " tokens behind ", next,
                            " need the longrope's other table than the cached rows: start the session with text_length");
  const detail::RowsOfAdapter<S> chosen{options.adapter != nullptr ? options.adapter : adapter_.acting()};
  const ModelAdapter<S>* const adapter = chosen.adapter;
  if (adapter != nullptr && !(adapter->target() == model_->target()))
    raise<ShapeError>("pith::Session::look: an adapter of another decoder: load it for this one");
  Matrix<S> hidden(n, model_->config.hidden_size);
  detail::look_up<S>(*model_, adapter, tokens, hidden);
  detail::enter(*model_, hidden);
  constexpr Index third_run = 32;  // attend() counts the rows of a third run in whole blocks
  const std::size_t more = adapter != nullptr ? adapter->more_workspace_bytes(detail::prefill_tile, ws_.workers()) : 0;
  Workspace ws(more + detail::layer_workspace_bytes<S>(*model_, detail::prefill_tile, rows_ + n + third_run, ws_.workers()),
               ws_.executor());
  detail::LookCache<T, std::remove_reference_t<See>> cache(model_->config.attention(), n, see);
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) {
    cache.begin(caches_[layer], static_cast<Index>(layer), model_->config.layer(static_cast<Index>(layer)));
    detail::LayerPass<S>{*model_, static_cast<Index>(layer), ws, {std::span(&chosen, adapter != nullptr ? 1 : 0)}, switch_.beyond()}
        .prefill(cache, hidden, {}, static_cast<Position>(next + n), layer + 1 == caches_.size());
  }
}

}}  // namespace pith::v0
