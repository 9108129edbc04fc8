#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/peft_kind.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/nn/int4.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/linear_adapter.hpp>

// A module of a PEFT folder as the change of a projection.
namespace pith { inline namespace v0 { namespace detail {

/// Whether a base has these rows; copy(first, rows) fills rows of the base. A base in int8 or int4 is compared after rounding.
template <class S, class Copy> bool same_rows(const Matrix<S>& rows, const Copy& copy) {
  constexpr Index together = 32;
  Matrix<S> own;
  for (Index first = 0; first < rows.rows(); first += together) {
    const Index n = (std::min)(together, rows.rows() - first);
    own.resize(n, rows.cols());
    copy(first, MatrixRef<S>(own));
    if (own == rows.middleRows(first, n)) continue;
    if constexpr (std::is_same_v<S, float>) {
      const ConstMatrixRef<S> saved = rows.middleRows(first, n);
      Matrix<S> rounded(n, rows.cols());
      Int8Weight(saved).copy_rows(0, MatrixRef<S>(rounded));
      if (own == rounded) continue;
      Int4Weight(saved).copy_rows(0, MatrixRef<S>(rounded));
      if (own == rounded) continue;
    }
    return false;
  }
  return true;
}

/// Throws   FormatError if a table or head saved by PEFT has another vocabulary than the decoder
template <class S>
void check_saved_along(const PeftFolder& folder, std::string_view module, const Matrix<S>& weight, Index rows, Index cols) {
  if (weight.rows() == rows && weight.cols() == cols) return;
  folder.refuse(text("saves module ", in_quotes(module), " along as ", shape_text(weight.rows(), weight.cols()), ", expected ",
                     shape_text(rows, cols), " by the decoder",
                     weight.cols() == cols ? text(": the vocabulary was resized in training; in transformers, resize_token_embeddings(",
                                                  weight.rows(), ") of the base, load the adapter, merge_and_unload() and save that model")
                                           : std::string()));
}

/// Throws   UnsupportedError where factors are to be rounded that the folder does not have
inline void check_factors(const PeftFolder& folder, FactorType factors) {
  const PeftType type = folder.config().type;
  if (factors != FactorType::bf16 || type == PeftType::lora || type == PeftType::adalora) return;
  raise<UnsupportedError>("pith: ", in_quotes(folder.folder().string()),
                          " is no LoRA or AdaLoRA, whose factors alone are kept in bfloat16: load it with FactorType::as_stored");
}

/// Refuses a module of a folder that does not fit a base of this shape; `bias`: features of its bias.
template <class S>
void check_module(const PeftFolder& folder, std::string_view module, const PeftModule<S>& tensors, Index out, Index in, Index bias) {
  const auto check = [&](std::string_view what, Index rows, Index cols) {
    if (rows != out || cols != in)
      folder.refuse(
          text(what, " module ", in_quotes(module), " as ", shape_text(rows, cols), ", expected ", shape_text(out, in), " by the decoder"));
  };
  if (tensors.bias.size() > 0 && tensors.bias.size() != bias)
    folder.refuse(text("replaces the bias of module ", in_quotes(module), " by ", tensors.bias.size(), " numbers, expected ", bias,
                       " by the decoder"));
  if (tensors.weight.size() > 0) {
    check("replaces", tensors.weight.rows(), tensors.weight.cols());
    if (tensors.bias.size() != bias) folder.refuse(text("holds no bias of module ", in_quotes(module), ", which the decoder has"));
  }
  if (tensors.base_weight.size() > 0) check_saved_along<S>(folder, module, tensors.base_weight, out, in);
  if (tensors.out() > 0) check("adapts", tensors.out(), tensors.in());
}

/// The change that a module of a folder's kind makes to a projection.
///
/// Throws   FormatError if the module does not fit
template <class S> LinearAdapter<S> kind_overlay(const PeftFolder& folder, std::string_view name, KindPlace<S> place) {
  const PeftKind& kind = *folder.config().kind;
  const KindModule module = folder.kind_module(name);
  const KindShape shape = kind.shape(module);
  const bool fits = (shape.out == any_extent || shape.out == place.module_out) && (shape.in == any_extent || shape.in == place.in());
  if (!fits)
    folder.refuse(text("adapts module ", in_quotes(name), " as ",
                       shape_text(shape.out == any_extent ? place.module_out : shape.out, shape.in == any_extent ? place.in() : shape.in),
                       ", expected ", shape_text(place.module_out, place.in()), " by the decoder"));
  if (place.shared == nullptr && !kind.shared_names().empty() && folder.shared_tensors()[0] == nullptr && folder.modules().size() > 1)
    folder.refuse("shares matrices that are drawn for the largest of its modules: load_adapter() knows them");
  if (place.shared == nullptr)  // of this module alone
    place.shared = kind_shared<S>(kind, folder.file(), folder.shared_tensors(), place.in(), place.module_out);
  return kind_change(kind, module, place);
}

/// Features of the bias of a base, if the module needs to know: other changes leave the bias alone, and a base need not show it.
template <class S> Index bias_under(const PeftModule<S>& tensors, const AnyLinear<S>& base) {
  const bool asks = tensors.bias.size() > 0 || tensors.magnitude.size() > 0 || tensors.weight.size() > 0 || tensors.base_weight.size() > 0;
  return asks ? base.bias().size() : 0;
}

/// What a module changes in some of its outputs, of which one of several projections is made.
template <class S> PeftModule<S> rows_of(const PeftModule<S>& whole, Index first, Index rows) {
  const auto matrix = [&]<class T>(const Matrix<T>& m) { return m.rows() == 0 ? Matrix<T>() : Matrix<T>(m.middleRows(first, rows)); };
  const auto vector = [&](const Vector<S>& v) { return v.size() == 0 ? Vector<S>() : Vector<S>(v.segment(first, rows)); };
  return {.down = whole.down,
          .up = matrix(whole.up),
          .narrow_down = whole.narrow_down,
          .narrow_up = matrix(whole.narrow_up),
          .gain = whole.gain,
          .up_bias = vector(whole.up_bias),
          .magnitude = vector(whole.magnitude),
          .weight = matrix(whole.weight),
          .bias = vector(whole.bias),
          .base_weight = matrix(whole.base_weight)};
}

/// The change of a module that was checked, as an overlay of its base.
template <class S> LinearAdapter<S> overlay_of(PeftModule<S> tensors, const AnyLinear<S>& base) {
  LinearAdapter<S> out;
  const Vector<S> old_bias = bias_under(tensors, base) > 0 ? Vector<S>(base.bias()) : Vector<S>();
  if (tensors.weight.size() > 0) {
    out.replacement = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(tensors.weight), tensors.bias));
    return out;
  }
  if (tensors.base_weight.size() > 0 &&
      !same_rows<S>(tensors.base_weight, [&](Index first, MatrixRef<S> rows) { base.copy_weight(first, rows); }))
    out.replacement = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(tensors.base_weight), old_bias));
  const AnyLinear<S>& under = out.replacement.empty() ? base : out.replacement;
  if (tensors.down.rows() > 0) out.terms.push_back({std::move(tensors.down), tensors.up.transpose(), std::move(tensors.gain)});
  if (tensors.narrow_down.rows() > 0)
    out.narrow_terms.push_back({std::move(tensors.narrow_down), tensors.narrow_up.transpose(), std::move(tensors.gain)});
  if (tensors.magnitude.size() > 0)
    out.for_each_term([&](const auto& term) { out.out_scale = dora_scale(under, term, ConstVectorRef<S>(tensors.magnitude)); });
  if (old_bias.size() > 0) {
    out.bias = tensors.bias.size() > 0 ? tensors.bias : old_bias;
    if (out.out_scale.size() > 0)
      out.bias -= out.out_scale.cwiseProduct(old_bias);
    else
      out.bias -= old_bias;
  }
  if (tensors.up_bias.size() > 0) {
    if (out.bias.size() == 0) out.bias.setZero(base.out());
    out.bias += tensors.up_bias;
  }
  return out;
}

}}}  // namespace pith::v0::detail
