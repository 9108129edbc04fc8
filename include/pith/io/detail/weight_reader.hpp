#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/checkpoint_plan.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/weights_layout.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Reads planned tensors into weights, one at a time, in order of use.
template <class S> class WeightReader {
 public:
  WeightReader(const CheckpointPlan& plan, WeightsLayout layout, bool check_finite)
      : plan_(plan), layout_(layout), check_finite_(check_finite) {}

  /// Calls start(name) before each tensor and finish(bytes) after it.
  template <class Start, class Finish>
  void read_all(const DecoderConfig& config, DecoderWeights<S>& out, const Start& start, const Finish& finish) {
    const auto step = [&](const std::string& name, auto&& read) {
      start(name);
      const Place place = plan_.find(name);
      read(place);
      release(place);
      finish(place.bytes().size());
    };
    const auto vector = [&](const std::string& name, Vector<S>& to, S plus = S(0)) {
      step(name, [&](const Place& place) {
        check_values(place);
        to = place.file->template load_vector<S>(name);
        if (plus != S(0)) to.array() += plus;
      });
    };
    const S plus = config.norm_plus_one ? S(1) : S(0);
    const Family& family = plan_.family();
    step(plan_.embedding(), [&](const Place& place) { out.embed_tokens = embedding(place); });
    out.layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
    for (std::size_t l = 0; l < out.layers.size(); ++l) {
      const std::string prefix = plan_.layer_prefix(static_cast<Index>(l));
      for (std::size_t n = 0; n < num_norms; ++n)
        if (norm_width(config, config.layer(static_cast<Index>(l)), NormPlace(n)) > 0)
          vector(prefix + family.norms[n] + ".weight", norm_at(out.layers[l], NormPlace(n)), plus);
      std::array<Part, num_projections> all{};
      std::size_t filled = 0;
      for_each_projection(out.layers[l], config, [&](const char*, AnyLinear<S>& to, Index rows, Index) { all[filled++] = {&to, rows}; });
      for_each_module(family, [&](const LayerModule& module) {
        Vector<S> bias;
        const std::string name = prefix + module.name;
        if (plan_.find(name + ".bias")) vector(name + ".bias", bias);
        const std::span<const Part> parts = std::span(all).subspan(static_cast<std::size_t>(module.first), module.count);
        step(name + ".weight", [&](const Place& place) { linears(place, bias, parts); });
      });
    }
    vector(plan_.final_norm(), out.norm, plus);
    const Part head{&out.lm_head, config.vocab_size};
    if (config.tie_word_embeddings) {
      const Place table = plan_.find(plan_.embedding());
      linears(table, {}, std::span(&head, 1));
      release(table);
    } else {
      step(plan_.head(), [&](const Place& place) { linears(place, {}, std::span(&head, 1)); });
    }
  }

 private:
  using Place = CheckpointPlan::Place;
  static constexpr Index rows_together = 32;  ///< rows checked and copied together while they are in cache

  /// A projection to fill, and the rows of the tensor that are its own.
  struct Part {
    AnyLinear<S>* to;
    Index rows;
  };

  static Vector<S>& norm_at(LayerWeights<S>& layer, NormPlace place) {
    Vector<S>* const all[num_norms] = {
        &layer.pre_attention_norm, &layer.post_attention_norm, &layer.pre_mlp_norm, &layer.post_mlp_norm, &layer.q_norm, &layer.k_norm};
    return *all[static_cast<std::size_t>(place)];
  }

  /// Memory that a mapped projection needs.
  struct Alive {
    std::shared_ptr<const void> file;
    Vector<S> bias;
  };

  /// Checks elements [first, first + count) of a tensor.
  void check_values(const Place& place, Index first, Index count) const {
    if (!check_finite_) return;
    const TensorInfo& tensor = *place.tensor;
    const std::size_t size = dtype_bits(tensor.dtype) / 8;
    const Index bad = first_non_finite<S>(tensor.dtype, place.bytes().data() + static_cast<std::size_t>(first) * size, count);
    if (bad < 0) return;
    raise<FormatError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(tensor.name), ": value ", first + bad,
                       " is NaN or infinite, expected finite weights; set LoadOptions::check_finite to false to load it all the same");
  }
  void check_values(const Place& place) const { check_values(place, 0, place.tensor->elements()); }

  /// Calls use(rows, in_place) with rows of T if Usable<T>, else converted to S. If not in place, the rows are valid only during the call.
  template <template <class> class Usable, class Use> static void with_rows(const Place& place, Use&& use) {
    const std::string& name = place.tensor->name;
    with_type(place.tensor->dtype, [&]<class T>(T) {
      if constexpr (!std::is_integral_v<T> && Usable<T>::value) {
        if (place.file->template aligned<T>(*place.tensor)) return use(place.file->template matrix<T>(name), true);
        const Matrix<T> copy = place.file->template load_matrix<T>(name);
        use(ConstMatrixRef<T>(copy), false);
      } else {
        const Matrix<S> converted = place.file->template load_matrix<S>(name);
        use(ConstMatrixRef<S>(converted), false);
      }
    });
  }

  template <class T> using computes_in_s = std::is_same<arithmetic_t<T>, S>;
  template <class T> using widens_to_s = std::bool_constant<sizeof(T) <= sizeof(S)>;

  /// Fills projections with the rows of one tensor, one after the other.
  void linears(const Place& place, const Vector<S>& bias, std::span<const Part> parts) const {
    with_rows<computes_in_s>(place, [&]<class T>(ConstMatrixRef<T> all, bool in_place) {
      Index first = 0;
      for (const Part& part : parts) {
        const auto own_bias = [&] { return bias.size() == 0 ? Vector<S>() : Vector<S>(bias.segment(first, part.rows)); };
        *part.to = linear<T>(place, all, first, part.rows, in_place, own_bias());
        first += part.rows;
      }
    });
  }

  template <class T>
  AnyLinear<S> linear(const Place& place, const ConstMatrixRef<T>& all, Index start, Index rows, bool in_place, Vector<S> bias) const {
    const Index cols = all.cols();
    if (mapped() && in_place) {
      check_values(place, start * cols, rows * cols);
      auto alive = std::make_shared<const Alive>(Alive{place.file->keep_alive(), std::move(bias)});
      return AnyLinear<S>(LinearView<S, T>(all.middleRows(start, rows), alive->bias), alive);
    }
    // Checking the source of each copy reads every value from memory once.
    const auto checked_rows = [&](Index first, Index n) {
      check_values(place, (start + first) * cols, n * cols);
      return all.middleRows(start + first, n);
    };
    if constexpr (std::is_same_v<S, float>) {
      if (layout_ == WeightsLayout::int8) return AnyLinear<S>(Int8Linear(Int8Weight(rows, cols, checked_rows), std::move(bias)));
    }
    return AnyLinear<S>(PackedLinear<S, T>(PackedWeight<T>(rows, cols, checked_rows), std::move(bias)));
  }

  Embedding<S> embedding(const Place& place) const {
    Embedding<S> out;
    with_rows<widens_to_s>(place, [&]<class T>(ConstMatrixRef<T> rows, bool in_place) {
      if (mapped() && in_place) {
        check_values(place);
        out = Embedding<S>(rows, place.file->keep_alive());
        return;
      }
      Matrix<T> table(rows.rows(), rows.cols());
      for (Index first = 0; first < rows.rows(); first += rows_together) {
        const Index n = (std::min)(rows_together, rows.rows() - first);
        check_values(place, first * rows.cols(), n * rows.cols());
        table.middleRows(first, n) = rows.middleRows(first, n);
      }
      out = Embedding<S>(std::move(table));
    });
    return out;
  }

  bool mapped() const { return layout_ == WeightsLayout::mapped; }
  /// Frees the file's pages; otherwise file and weights would both stay in memory.
  void release(const Place& place) const {
    if (!mapped()) place.file->release(*place.tensor);
  }

  const CheckpointPlan& plan_;
  WeightsLayout layout_;
  bool check_finite_;
};

}}}  // namespace pith::v0::detail
