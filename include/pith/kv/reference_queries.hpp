#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// Queries of one layer, as attention uses them: rotated, scaled where the layer scales queries.
template <class S> struct LayerQueries {
  Index layer = 0;
  ConstMatrixRef<S> queries;  ///< [tokens, num_heads*head_dim]
  Position first = 0;         ///< position of the first token
};

/// Queries that compaction asks: how they attend to the rows is what compacted rows imitate. Of all that are added, each kv head keeps a
/// random sample of `most` tokens, drawn by a hash, so that it depends on their order alone.
///
///   ReferenceQueries<float> queries(llama.config().attention(), llama.config().num_hidden_layers);
///   session.prefill(prompt, {.queries = queries.observer()});   // the prompt's own, then turned behind it: turn()
///   queries.add(layer, rows, first);                            // or any others
///
/// Heap     layers · num_heads · most · head_dim numbers, as queries arrive
template <class S> class ReferenceQueries {
 public:
  /// Throws   ShapeError for an invalid shape or numbers
  ReferenceQueries(const AttentionShape& shape, Index layers, Index most = 1024, std::uint64_t seed = 1)
      : shape_(shape), layers_(layers), most_(most), seed_(seed) {
    shape.check("ReferenceQueries");
    if (layers < 1 || most < 1)
      raise<ShapeError>("pith::ReferenceQueries: ", layers, " layers, at most ", most, " tokens: expected 1 or more");
    heads_.resize(static_cast<std::size_t>(detail::checked_product("ReferenceQueries", layers, shape.num_kv_heads)));
  }

  const AttentionShape& shape() const { return shape_; }
  Index layers() const { return layers_; }
  /// Number of tokens whose queries a head keeps.
  Index tokens(Index layer, Index kv_head) const { return static_cast<Index>(head(layer, kv_head).tokens.size()); }
  /// [tokens*group, head_dim] queries of one kv head, token by token.
  ConstMatrixRef<S> of(Index layer, Index kv_head) const {
    const Head& h = head(layer, kv_head);
    return {h.rows.data(), static_cast<Index>(h.tokens.size()) * shape_.group(), shape_.head_dim};
  }

  /// Adds queries [tokens, num_heads*head_dim] of tokens from position `first` on.
  ///
  /// Throws   ShapeError for another width, or no such layer
  void add(Index layer, ConstMatrixRef<S> queries, Position first) {
    check_shape("ReferenceQueries::add", "queries", queries, any_extent, shape_.num_heads * shape_.head_dim);
    const Index width = shape_.group() * shape_.head_dim;
    for (Index h = 0; h < shape_.num_kv_heads; ++h)
      for (Index t = 0; t < queries.rows(); ++t) take(head(layer, h), queries.data() + t * queries.outerStride() + h * width, first + t);
  }
  /// Adds queries of one kv head, [tokens*group, head_dim], token by token. Threads may add to different heads at once.
  void add_head(Index layer, Index kv_head, ConstMatrixRef<S> queries, Position first) {
    check_shape("ReferenceQueries::add_head", "queries", queries, any_extent, shape_.head_dim);
    if (queries.rows() % shape_.group() != 0 || queries.outerStride() != shape_.head_dim)
      raise<ShapeError>("pith::ReferenceQueries::add_head: ", queries.rows(), " rows, expected whole tokens of ", shape_.group(),
                        ", contiguous");
    const Index width = shape_.group() * shape_.head_dim;
    for (Index t = 0; t < queries.rows() / shape_.group(); ++t) take(head(layer, kv_head), queries.data() + t * width, first + t);
  }
  /// The observer to pass to prefill(), in PrefillOptions::queries.
  auto observer() {
    return [this](const LayerQueries<S>& seen) { add(seen.layer, seen.queries, seen.first); };
  }

  /// Turns a layer's queries as if their tokens came behind the text, each at one of the `span` positions from `next` on. Queries that
  /// stand inside the text look at rows that came after them, which no real query does.
  ///
  /// Throws   ShapeError for a rope of another head_dim or no positions; UnsupportedError if angles depend on the length of the text
  void turn(Index layer, const Rope<S>& rope, Position next, Index span = 64) {
    if (rope.options().head_dim != shape_.head_dim || span < 1)
      raise<ShapeError>("pith::ReferenceQueries::turn: a rope for heads of ", rope.options().head_dim, " over ", span,
                        " positions, expected heads of ", shape_.head_dim, " and 1 position or more");
    const Index group = shape_.group();
    std::vector<Position> by(static_cast<std::size_t>(group));
    for (Index h = 0; h < shape_.num_kv_heads; ++h) {
      Head& of = head(layer, h);
      for (std::size_t t = 0; t < of.tokens.size(); ++t) {
        Drawn& token = of.tokens[t];
        const auto to = static_cast<Position>(next + static_cast<Position>(detail::mixed(token.draw) % static_cast<std::uint64_t>(span)));
        std::fill(by.begin(), by.end(), static_cast<Position>(to - token.position));
        token.position = to;
        rope.rotate_by(MatrixRef<S>(of.rows.data() + static_cast<Index>(t) * group * shape_.head_dim, group, shape_.head_dim), by);
      }
    }
  }
  /// Calls f(position, rows [group, head_dim]) for the tokens of a head.
  template <class F> void for_each(Index layer, Index kv_head, F&& f) {
    Head& of = head(layer, kv_head);
    for (std::size_t t = 0; t < of.tokens.size(); ++t)
      f(of.tokens[t].position,
        MatrixRef<S>(of.rows.data() + static_cast<Index>(t) * shape_.group() * shape_.head_dim, shape_.group(), shape_.head_dim));
  }

  void clear() {
    for (Head& h : heads_) h = {};
  }

 private:
  struct Drawn {
    std::uint64_t draw;  ///< the tokens of smallest draw stay
    Position position;
  };
  struct Head {
    std::uint64_t seen = 0;
    std::vector<Drawn> tokens;
    std::vector<S> rows;                                            ///< [tokens][group, head_dim]
    std::vector<std::pair<std::uint64_t, std::size_t>> draws = {};  ///< a heap of draws and tokens, the largest first
  };

  void take(Head& h, const S* queries, Index position) {
    const std::uint64_t draw = detail::mixed(seed_ + detail::mixed(h.seen++));
    const std::size_t width = static_cast<std::size_t>(shape_.group() * shape_.head_dim);
    std::size_t slot = h.tokens.size();
    if (static_cast<Index>(slot) == most_) {
      if (draw >= h.draws.front().first) return;
      std::pop_heap(h.draws.begin(), h.draws.end());
      slot = h.draws.back().second;
      h.draws.pop_back();
    } else {
      h.tokens.emplace_back();
      h.rows.resize(h.rows.size() + width);
    }
    h.tokens[slot] = {draw, static_cast<Position>(position)};
    std::copy_n(queries, width, h.rows.data() + slot * width);
    h.draws.emplace_back(draw, slot);
    std::push_heap(h.draws.begin(), h.draws.end());
  }

  Head& head(Index layer, Index kv_head) { return heads_[at(layer, kv_head)]; }
  const Head& head(Index layer, Index kv_head) const { return heads_[at(layer, kv_head)]; }
  std::size_t at(Index layer, Index kv_head) const {
    if (layer < 0 || layer >= layers_ || kv_head < 0 || kv_head >= shape_.num_kv_heads)
      raise<ShapeError>("pith::ReferenceQueries: kv head ", kv_head, " of layer ", layer, ", expected 0 .. ", shape_.num_kv_heads - 1,
                        " of 0 .. ", layers_ - 1);
    return static_cast<std::size_t>(layer * shape_.num_kv_heads + kv_head);
  }
  AttentionShape shape_;
  Index layers_, most_;
  std::uint64_t seed_;
  std::vector<Head> heads_;
};

}}  // namespace pith::v0
