#pragma once

#include <algorithm>
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
    const auto norm = [&](const std::string& name, Vector<S>& to) {
      step(name, [&](const Place& place) {
        check_values(place);
        to = place.file->template load_vector<S>(name);
      });
    };
    step(CheckpointPlan::embedding, [&](const Place& place) { out.embed_tokens = embedding(place); });
    out.layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
    for (std::size_t l = 0; l < out.layers.size(); ++l) {
      const std::string prefix = text("model.layers.", l, ".");
      norm(prefix + "input_layernorm.weight", out.layers[l].input_layernorm);
      norm(prefix + "post_attention_layernorm.weight", out.layers[l].post_attention_layernorm);
      for_each_projection(out.layers[l], config, [&](const char* name, AnyLinear<S>& to, Index, Index) {
        Vector<S> bias;
        if (plan_.find(prefix + name + ".bias")) norm(prefix + name + ".bias", bias);
        step(prefix + name + ".weight", [&](const Place& place) { to = linear(place, std::move(bias)); });
      });
    }
    norm("model.norm.weight", out.norm);
    if (config.tie_word_embeddings) {
      const Place table = plan_.find(CheckpointPlan::embedding);
      out.lm_head = linear(table, {});
      release(table);
    } else {
      step(CheckpointPlan::head, [&](const Place& place) { out.lm_head = linear(place, {}); });
    }
  }

 private:
  using Place = CheckpointPlan::Place;
  static constexpr Index rows_together = 32;  ///< rows checked and copied together while they are in cache

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

  AnyLinear<S> linear(const Place& place, Vector<S> bias) const {
    AnyLinear<S> out;
    with_rows<computes_in_s>(place, [&]<class T>(ConstMatrixRef<T> rows, bool in_place) {
      if (mapped() && in_place) {
        check_values(place);
        auto alive = std::make_shared<const Alive>(Alive{place.file->keep_alive(), std::move(bias)});
        out = AnyLinear<S>(LinearView<S, T>(rows, alive->bias), alive);
        return;
      }
      // Checking the source of each copy reads every value from memory once.
      const auto checked_rows = [&](Index first, Index n) {
        check_values(place, first * rows.cols(), n * rows.cols());
        return rows.middleRows(first, n);
      };
      if constexpr (std::is_same_v<S, float>) {
        if (layout_ == WeightsLayout::int8) {
          out = AnyLinear<S>(Int8Linear(Int8Weight(rows.rows(), rows.cols(), checked_rows), std::move(bias)));
          return;
        }
      }
      out = AnyLinear<S>(PackedLinear<S, T>(PackedWeight<T>(rows.rows(), rows.cols(), checked_rows), std::move(bias)));
    });
    return out;
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
