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
#include <pith/io/detail/coded_linear.hpp>
#include <pith/io/detail/coded_weight.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/linear_reader.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/weights_layout.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/linear.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Reads planned tensors into weights, one at a time, in order of use.
template <class S> class WeightReader : private LinearReader<S> {
 public:
  WeightReader(const CheckpointPlan& plan, WeightsLayout layout, bool check_finite, ExecutorRef executor, Compute compute)
      : LinearReader<S>(layout, check_finite, executor, compute), plan_(plan) {}

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
    // A module's weight: one tensor of floats, or codes and all that belongs to them.
    const auto weight = [&](const std::string& module, const Vector<S>& bias, std::span<const Part> parts) {
      const CodedWeight* codes = plan_.coded(module);
      if (codes == nullptr) return step(module + ".weight", [&](const Place& place) { linears(place, bias, parts); });
      for (const Place& place : codes->tensors()) {
        start(place.tensor->name);
        if (&place == &codes->tensors().front()) linears(*codes, bias, parts);
        finish(place.bytes().size());
      }
      for (const Place& place : codes->tensors()) place.file->release(*place.tensor);
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
        weight(name, bias, std::span(all).subspan(static_cast<std::size_t>(module.first), module.count));
      });
    }
    vector(plan_.final_norm(), out.norm, plus);
    const Part head{&out.lm_head, config.vocab_size, true};
    if (config.tie_word_embeddings) {
      const Place table = plan_.find(plan_.embedding());
      linears(table, {}, std::span(&head, 1));
      release(table);
    } else {
      weight(plan_.head_module(), {}, std::span(&head, 1));
    }
  }

 private:
  using Place = CheckpointPlan::Place;
  using Base = LinearReader<S>;
  using Base::check_values, Base::linear, Base::mapped, Base::release;
  static constexpr Index rows_together = 32;  ///< rows checked and copied together while they are in cache

  /// A projection to fill, and the rows of the tensor that are its own.
  struct Part {
    AnyLinear<S>* to;
    Index rows;
    bool head = false;
  };

  static Vector<S>& norm_at(LayerWeights<S>& layer, NormPlace place) {
    Vector<S>* const all[num_norms] = {
        &layer.pre_attention_norm, &layer.post_attention_norm, &layer.pre_mlp_norm, &layer.post_mlp_norm, &layer.q_norm, &layer.k_norm};
    return *all[static_cast<std::size_t>(place)];
  }

  /// A head loses more by four bits than its share of the weights is worth.
  WeightsLayout layout_of(const Part& part) const {
    return part.head && this->layout_ == WeightsLayout::int4 ? WeightsLayout::int8 : this->layout_;
  }

  /// Fills projections with the rows of one tensor, one after the other.
  void linears(const Place& place, const Vector<S>& bias, std::span<const Part> parts) const {
    this->template with_rows<Base::template computes_in_s>(place, [&]<class T>(ConstMatrixRef<T> all, bool in_place) {
      Index first = 0;
      for (const Part& part : parts) {
        const auto own_bias = [&] { return bias.size() == 0 ? Vector<S>() : Vector<S>(bias.segment(first, part.rows)); };
        *part.to = linear(place, all, first, part.rows, layout_of(part), in_place, own_bias());
        first += part.rows;
      }
    });
  }

  /// Fills projections with rows of codes.
  void linears(const CodedWeight& codes, const Vector<S>& bias, std::span<const Part> parts) const {
    Index first = 0;
    for (const Part& part : parts) {
      Vector<S> own = bias.size() == 0 ? Vector<S>() : Vector<S>(bias.segment(first, part.rows));
      *part.to = CodedRows<S>(codes, first, part.rows, this->check_finite_, this->executor_, this->int8_compute())
                     .linear(layout_of(part), std::move(own));
      first += part.rows;
    }
  }

  Embedding<S> embedding(const Place& place) const {
    Embedding<S> out;
    this->template with_rows<Base::template widens_to_s>(place, [&]<class T>(ConstMatrixRef<T> rows, bool in_place) {
      if (mapped() && in_place) {
        check_values(place);
        out = Embedding<S>(rows, place.file->keep_alive());
        return;
      }
      Matrix<T> table(rows.rows(), rows.cols());
      for_panels(ceil_div(rows.rows(), rows_together), this->executor_, [&] {
        return [&](Index block) {
          const Index first = block * rows_together, n = (std::min)(rows_together, rows.rows() - first);
          check_values(place, first * rows.cols(), n * rows.cols());
          table.middleRows(first, n) = rows.middleRows(first, n);
        };
      });
      out = Embedding<S>(std::move(table));
    });
    return out;
  }

  const CheckpointPlan& plan_;
};

}}}  // namespace pith::v0::detail
