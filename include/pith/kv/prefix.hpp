#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/attention/scout.hpp>
#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/core/types.hpp>

// A prefix that many caches share: keys and values that stand before the first token.

namespace pith { inline namespace v0 {

/// The rows of one layer of a prefix, head by head.
template <KvStorage T> struct KvPrefixLayer {
  std::vector<Index> sizes;          ///< [kv heads] number of rows
  std::vector<T> keys, values;       ///< [rows of all heads][head_dim], codes in bytes
  std::vector<Position> positions;   ///< [rows of all heads]; empty: visible to every query (a learned prefix)
  std::vector<float> log_mass = {};  ///< [rows of all heads] added to each row's logit; empty: all 0
  bool scouts = false;               ///< scout codes of the keys are kept beside them, for caches with scout_keys
};

/// Keys and values that stand before every conversation: a system prompt that was read once (Session::freeze()), or a learned prefix. A
/// cache is constructed over it (KvCacheOptions::prefix); the cache's rows, budget, weights, journal and files never include it.
///
/// A KvPrefix is a handle to immutable rows: copies share them, and the last copy frees them.
class KvPrefix {
 public:
  KvPrefix() = default;  ///< no prefix

  /// `next`: position of the first token behind the prefix. `adapter`: fingerprint of the adapter that computed its rows; 0: the base
  /// model.
  ///
  /// Throws   ShapeError if sizes, rows and positions disagree
  template <KvStorage T>
  KvPrefix(const AttentionShape& shape, Position next, std::vector<KvPrefixLayer<T>> layers, std::uint64_t adapter = 0)
      : data_(std::make_shared<Typed<T>>(shape, next, std::move(layers), adapter)) {}

  explicit operator bool() const { return data_ != nullptr; }
  Position next_position() const { return data_ ? data_->next : 0; }
  std::size_t bytes() const { return data_ ? data_->bytes : 0; }
  std::uint64_t fingerprint() const { return data_ ? data_->fingerprint : 0; }  ///< hash of every number and position
  std::uint64_t adapter() const { return data_ ? data_->adapter : 0; }
  /// Whether the rows were trained: then they have no positions and belong to no adapter.
  bool learned() const { return data_ && data_->learned; }
  /// The largest number of rows in any head of any layer.
  Index rows() const { return data_ ? data_->rows : 0; }

  /// Throws   ShapeError if a cache of T with this shape cannot start from this prefix
  template <KvStorage T> void check(const AttentionShape& shape, Index layer) const {
    if (!data_) return;
    const AttentionShape& ours = data_->shape;
    if (data_->storage != &storage_tag<T>) raise<ShapeError>("pith::KvPrefix: its rows are stored as another type than the cache's");
    if (ours.num_kv_heads != shape.num_kv_heads || ours.head_dim != shape.head_dim)
      raise<ShapeError>("pith::KvPrefix: ", ours.num_kv_heads, " kv heads of ", ours.head_dim, ", the cache has ", shape.num_kv_heads,
                        " of ", shape.head_dim);
    if (const Index count = static_cast<Index>(layers<T>().size()); layer < 0 || layer >= count)
      raise<ShapeError>("pith::KvPrefix: layer ", layer, " of ", count);
  }

  /// The rows of one head as a run for attention; call check<T>() first.
  template <KvStorage T> KvRun<T> run(Index layer, Index kv_head) const {
    const KvPrefixLayer<T>& rows = layers<T>()[static_cast<std::size_t>(layer)];
    const std::vector<std::byte>& scouts = static_cast<const Typed<T>&>(*data_).scouts[static_cast<std::size_t>(layer)];
    Index first = 0;
    for (Index h = 0; h < kv_head; ++h) first += rows.sizes[static_cast<std::size_t>(h)];
    const Index stride = detail::key_units<T>(data_->shape.head_dim), value_stride = detail::value_units<T>(data_->shape.head_dim);
    return {.keys = rows.keys.data() + first * stride,
            .values = rows.values.data() + first * value_stride,
            .rows = rows.sizes[static_cast<std::size_t>(kv_head)],
            .stride = stride,
            .positions = rows.positions.empty() ? nullptr : rows.positions.data() + first,
            .log_mass = rows.log_mass.empty() ? nullptr : rows.log_mass.data() + first,
            .value_stride = value_stride,
            .scouts = scouts.empty() ? nullptr : scouts.data() + first * scout_row_bytes(data_->shape.head_dim)};
  }

 private:
  template <class T> static constexpr char storage_tag = 0;

  struct Data {
    AttentionShape shape;
    Position next;
    const char* storage;
    std::uint64_t adapter;
    bool learned = true;
    Index rows = 0;
    std::size_t bytes = 0;
    std::uint64_t fingerprint = 0;
  };
  template <KvStorage T> struct Typed : Data {
    Typed(const AttentionShape& s, Position n, std::vector<KvPrefixLayer<T>> l, std::uint64_t a)
        : Data{s, n, &storage_tag<T>, a}, layers(std::move(l)) {
      s.check("KvPrefix");
      if (n < 0) raise<ShapeError>("pith::KvPrefix: next position ", n, ", expected 0 or more");
      detail::Fingerprint f;
      const auto take_in = [&](const auto& values) {
        const std::span<const std::byte> data = std::as_bytes(std::span(values));
        f.bytes(data);
        this->bytes += data.size();
      };
      for (const KvPrefixLayer<T>& layer : layers) {
        check_layer(layer);
        take_in(layer.sizes);
        take_in(layer.keys);
        take_in(layer.values);
        take_in(layer.positions);
        take_in(layer.log_mass);
        scouts.push_back(scouts_of(layer));
        this->bytes += scouts.back().size();
        this->learned = this->learned && layer.positions.empty();
      }
      this->fingerprint = f.value();
    }

    std::vector<std::byte> scouts_of(const KvPrefixLayer<T>& layer) const {
      using Key = typename detail::KvParts<T>::Key;
      std::vector<std::byte> codes;
      if constexpr (PlainStorage<detail::coded_t<Key>> && std::same_as<arithmetic_t<T>, float>) {
        if (!layer.scouts) return codes;
        const Index dim = this->shape.head_dim, units = detail::key_units<T>(dim), width = scout_row_bytes(dim);
        const Index count = static_cast<Index>(layer.keys.size()) / units;
        codes.resize(static_cast<std::size_t>(count * width));
        for (Index r = 0; r < count; ++r)
          scout_encode(reinterpret_cast<const detail::coded_t<Key>*>(layer.keys.data() + r * units), dim, codes.data() + r * width);
      } else if (layer.scouts) {
        raise<UnsupportedError>("pith::KvPrefix: scouts of keys that are stored as codes or doubles");
      }
      return codes;
    }

    void check_layer(const KvPrefixLayer<T>& layer) {
      const auto refuse = [](const std::string& what) { raise<ShapeError>("pith::KvPrefix: " + what); };
      if (static_cast<Index>(layer.sizes.size()) != this->shape.num_kv_heads)
        refuse(detail::text(layer.sizes.size(), " heads, expected ", this->shape.num_kv_heads));
      const Index key = detail::key_units<T>(this->shape.head_dim), value = detail::value_units<T>(this->shape.head_dim);
      const Index held = static_cast<Index>(layer.keys.size()) / key;
      Index total = 0;
      for (const Index size : layer.sizes) {
        if (size < 0 || size > held - total) refuse(detail::text("a head of ", size, " rows where ", held - total, " are left"));
        total += size;
        this->rows = (std::max)(this->rows, size);
      }
      if (static_cast<Index>(layer.keys.size()) != total * key || static_cast<Index>(layer.values.size()) != total * value)
        refuse(detail::text(layer.keys.size(), " numbers of keys and ", layer.values.size(), " of values, expected ", total * key,
                            key == value ? std::string() : detail::text(" and ", total * value)));
      if (!layer.positions.empty() && static_cast<Index>(layer.positions.size()) != total)
        refuse(detail::text(layer.positions.size(), " positions for ", total, " rows"));
      if (!layer.log_mass.empty() && static_cast<Index>(layer.log_mass.size()) != total)
        refuse(detail::text(layer.log_mass.size(), " masses for ", total, " rows"));
      for (const float m : layer.log_mass)
        if (!std::isfinite(m)) refuse("a mass is not a finite number");
      for (const Position p : layer.positions)
        if (p < 0 || p >= this->next) refuse(detail::text("position ", p, ", expected 0 .. ", this->next - 1));
    }

    std::vector<KvPrefixLayer<T>> layers;
    std::vector<std::vector<std::byte>> scouts;  ///< [layers], empty where there are none
  };

  template <KvStorage T> const std::vector<KvPrefixLayer<T>>& layers() const { return static_cast<const Typed<T>&>(*data_).layers; }

  std::shared_ptr<const Data> data_;
};

namespace detail {

/// Copies every row of a view; in a cache over a prefix, the rows of the prefix as well.
template <KvStorage T> KvPrefixLayer<T> frozen(const KvView<T>& view) {
  KvPrefixLayer<T> layer;
  const std::size_t heads = static_cast<std::size_t>(view.shape.num_kv_heads), a_head = view.runs.size() / heads;
  const Index key = key_units<T>(view.shape.head_dim), value = value_units<T>(view.shape.head_dim);
  const bool masses = std::any_of(view.runs.begin(), view.runs.end(), [](const KvRun<T>& run) { return run.log_mass != nullptr; });
  for (std::size_t h = 0; h < heads; ++h) {
    layer.sizes.push_back(0);
    for (const KvRun<T>& run : view.runs.subspan(h * a_head, a_head)) {
      if (run.rows > 0 && run.positions == nullptr)
        raise<StateError>("pith::KvCache: rows behind a learned prefix cannot be frozen: it has no positions");
      layer.sizes.back() += run.rows;
      layer.positions.insert(layer.positions.end(), run.positions, run.positions + run.rows);
      if (masses && run.log_mass != nullptr) {
        layer.log_mass.insert(layer.log_mass.end(), run.log_mass, run.log_mass + run.rows);
      } else if (masses) {
        layer.log_mass.insert(layer.log_mass.end(), static_cast<std::size_t>(run.rows), 0.f);
      }
      for (Index r = 0; r < run.rows; ++r) {
        const T* const k = run.keys + r * run.stride;
        const T* const v = run.values + r * run.steps_of_values();
        layer.keys.insert(layer.keys.end(), k, k + key);
        layer.values.insert(layer.values.end(), v, v + value);
      }
    }
  }
  return layer;
}

}  // namespace detail

}}  // namespace pith::v0
