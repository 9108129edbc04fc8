#pragma once

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/options.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/policy_facts.hpp>
#include <pith/model/config.hpp>
#include <pith/model/look.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Stands in for a cache while a LayerPass reads a proxy's tokens: their rows are kept here, and the cache is only read.
///
/// Heap     the rows of the tokens in one layer, at construction; the layers use them in turn
template <KvStorage T, class See> class LookCache {
 public:
  using S = arithmetic_t<T>;

  LookCache(const AttentionShape& shape, Index tokens, See& see)
      : shape_(shape), tokens_(tokens), key_units_(key_units<T>(shape.head_dim)), value_units_(value_units<T>(shape.head_dim)), see_(see) {
    const Index rows = checked_product("Session::look", shape.num_kv_heads, tokens);
    keys_.resize(static_cast<std::size_t>(checked_product("Session::look", rows, key_units_)));
    values_.resize(static_cast<std::size_t>(checked_product("Session::look", rows, value_units_)));
    positions_.resize(static_cast<std::size_t>(tokens));
    runs_.reserve(3 * static_cast<std::size_t>(shape.num_kv_heads));
    facts_.traits.watches = all_queries;
  }

  /// Turns to the next layer and its cache.
  void begin(const KvCache<T>& cache, Index layer, const LayerSpec& spec) {
    cache_ = &cache;
    seen_.layer = layer;
    seen_.scale = static_cast<S>(spec.attention_scale > 0 ? spec.attention_scale : 1 / std::sqrt(static_cast<double>(shape_.head_dim)));
    seen_.softcap = static_cast<S>(spec.attention_softcap);
    seen_.window = spec.window;
    size_ = 0;
  }

  // What LayerPass::prefill() asks of a cache.
  Position next_position() const { return cache_->next_position(); }
  Position query_position() const { return cache_->query_position(); }
  Position gap() const { return cache_->gap(); }
  bool reindexes() const { return false; }  // its rows have no gaps
  bool watching() const { return true; }
  const PolicyFacts& facts() const { return facts_; }
  void append(ConstMatrixRef<S> k, ConstMatrixRef<S> v, const AppendOptions&) {
    const Index d = shape_.head_dim;
    for (Index t = 0; t < k.rows(); ++t, ++size_) {
      positions_[static_cast<std::size_t>(size_)] = static_cast<Position>(next_position() + size_);
      for (Index h = 0; h < shape_.num_kv_heads; ++h) {
        narrow_key<T>(&k.coeffRef(t, h * d), keys_.data() + at(h, size_) * key_units_, d);
        narrow_value<T>(&v.coeffRef(t, h * d), values_.data() + at(h, size_) * value_units_, d);
      }
    }
  }
  KvView<T> view() {
    const KvView<T> theirs = cache_->view();
    const std::size_t heads = static_cast<std::size_t>(shape_.num_kv_heads), a_head = theirs.runs.size() / heads;
    runs_.clear();
    for (std::size_t h = 0; h < heads; ++h) {
      if (a_head > 1) runs_.push_back(theirs.runs[h * a_head]);
      runs_.push_back(own(static_cast<Index>(h)));
      runs_.push_back(theirs.runs[h * a_head + a_head - 1]);
    }
    return {shape_, static_cast<Position>(next_position() + size_), runs_};
  }
  void see_inputs(const MatrixRef<S>& x) { inputs_ = x; }
  auto observer() {
    return [this](const AttentionTile<S>& tile) {
      const std::size_t a_head = runs_.size() / static_cast<std::size_t>(shape_.num_kv_heads);
      const KvRun<T>* const runs = runs_.data() + static_cast<std::size_t>(tile.kv_head) * a_head;
      LookTile<T> seen = seen_;
      seen.attention = tile;
      seen.rows = runs[a_head - 1];
      seen.proxy = runs[a_head - 2];
      if (a_head > 2) seen.prefix = runs[0];
      seen.inputs = inputs_.middleRows(tile.first_query_index, tile.num_queries);
      see_(std::as_const(seen));
    };
  }

 private:
  Index at(Index head, Index row) const { return head * tokens_ + row; }
  KvRun<T> own(Index head) const {
    return {.keys = keys_.data() + at(head, 0) * key_units_,
            .values = values_.data() + at(head, 0) * value_units_,
            .rows = size_,
            .stride = key_units_,
            .positions = positions_.data(),
            .value_stride = value_units_};
  }

  AttentionShape shape_;
  Index tokens_, key_units_, value_units_, size_ = 0;
  See& see_;
  const KvCache<T>* cache_ = nullptr;
  PolicyFacts facts_;
  LookTile<T> seen_;  ///< what all tiles of the layer have in common
  ConstMatrixRef<S> inputs_ = {};
  std::vector<T> keys_, values_;
  std::vector<Position> positions_;
  std::vector<KvRun<T>> runs_;
};

}}}  // namespace pith::v0::detail
