#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/prefix_tuning.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

// Loads PEFT adapter folders for a decoder: LoRA and its variants, prompt tuning, prefix tuning.
namespace pith { inline namespace v0 {

/// The change that a module of a PEFT folder makes to one projection.
///
/// Cost     a copy of the module's numbers; for DoRA one pass over the base weight
/// Throws   FormatError if the two do not match; UnsupportedError if base values are needed that it does not expose
template <class S> LinearAdapter<S> make_overlay(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base);

/// Loads a PEFT folder for a decoder: LoRA, rsLoRA, DoRA or AdaLoRA, with biases and saved modules, or prompt tuning.
///
///   const auto adapter = load_adapter("my-lora", llama);
///   session.use(&adapter);
///
/// Every change in the folder must have a place in the decoder, and everything the config asks for must be in the folder. If PEFT also
/// saved the base's table or head, equal numbers change nothing; different ones replace the base's.
///
/// Cost     a copy of the adapter's numbers, widened; for DoRA one pass over the weights it adapts
/// Throws   what PeftFolder throws; FormatError naming the module if folder and decoder do not match
template <class S> ModelAdapter<S> load_adapter(const PeftFolder& folder, const Decoder<S>& decoder);
template <class S> ModelAdapter<S> load_adapter(const std::filesystem::path& folder, const Decoder<S>& decoder) {
  return load_adapter(PeftFolder(folder), decoder);
}

/// Loads a prefix-tuning folder: keys and values that a session starts with, {.prefix = load_prefix(…)}. Every token sees them, and
/// they are never rotated; tokens start at position num_virtual_tokens.
///
/// Throws   as load_adapter()
template <KvStorage T = float> KvPrefix load_prefix(const PeftFolder& folder, const Decoder<arithmetic_t<T>>& decoder);
template <KvStorage T = float> KvPrefix load_prefix(const std::filesystem::path& folder, const Decoder<arithmetic_t<T>>& decoder) {
  return load_prefix<T>(PeftFolder(folder), decoder);
}

namespace detail {

/// Whether a base has these rows; copy(first, rows) fills rows of the base. An int8 base is compared after rounding.
template <class S, class Copy> bool same_rows(const Matrix<S>& rows, const Copy& copy) {
  constexpr Index together = 32;
  Matrix<S> own;
  for (Index first = 0; first < rows.rows(); first += together) {
    const Index n = std::min(together, rows.rows() - first);
    own.resize(n, rows.cols());
    copy(first, MatrixRef<S>(own));
    if (own == rows.middleRows(first, n)) continue;
    if constexpr (std::is_same_v<S, float>) {
      Matrix<S> rounded(n, rows.cols());
      Int8Weight(ConstMatrixRef<S>(rows.middleRows(first, n))).copy_rows(0, MatrixRef<S>(rounded));
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

/// Assigns every module of a folder to its place in a decoder, and checks that every place named by the config has a module.
template <class S> class AdapterBinder {
 public:
  AdapterBinder(const PeftFolder& folder, const Decoder<S>& decoder) : folder_(folder), decoder_(decoder), steps_(folder.steps_left()) {}

  AdapterParts<S> bind() {
    const PeftConfig& config = folder_.config();
    if (config.type == PeftType::prefix_tuning)
      folder_.refuse("is prefix tuning, which fills caches: start() a session with {.prefix = load_prefix(…)}");
    const DecoderConfig& c = decoder_.config();
    if (config.type == PeftType::prompt_tuning) {
      parts_.prompt = folder_.load_prompt<S>();
      if (parts_.prompt.cols() != c.hidden_size)
        folder_.refuse(text("is a prompt of ", parts_.prompt.cols(), " features, expected the decoder's ", c.hidden_size));
      return std::move(parts_);
    }
    parts_.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
    for (std::size_t l = 0; l < parts_.layers.size(); ++l) {
      const std::string prefix = text("model.layers.", l, ".");
      norm(prefix + "input_layernorm", parts_.layers[l].input_layernorm);
      norm(prefix + "post_attention_layernorm", parts_.layers[l].post_attention_layernorm);
      for (std::size_t p = 0; p < num_projections; ++p)
        projection(prefix + projection_names[p], projection_of(decoder_.weights().layers[l], Projection(p)),
                   parts_.layers[l].projections[p]);
    }
    norm("model.norm", parts_.norm);
    table();
    head();
    for (const std::string& module : folder_.modules())
      if (!bound_.contains(module)) folder_.refuse(text("changes module ", in_quotes(module), ", which the decoder does not have"));
    return std::move(parts_);
  }

 private:
  bool found(const std::string& module) { return folder_.contains(module) && bound_.insert(module).second; }

  void projection(const std::string& module, const AnyLinear<S>& base, LinearAdapter<S>& to) {
    const PeftConfig& config = folder_.config();
    const bool there = found(module), wanted = config.targets.said && config.targets.match(module, steps_);
    const bool bias_wanted = config.bias == PeftBias::all || (config.bias == PeftBias::lora_only && wanted);
    PeftModule<S> tensors;
    if (there) {
      to = make_overlay(folder_, module, base);
      tensors = folder_.load<S>(module);
    }
    if (wanted && tensors.up.rows() == 0)
      folder_.refuse(text("holds no lora_A of module ", in_quotes(module), ", which its target_modules name"));
    if (bias_wanted && base.bias().size() > 0 && tensors.bias.size() == 0)
      folder_.refuse(text("holds no bias of module ", in_quotes(module), ", which its bias mode promises"));
  }

  PeftModule<S> whole(const std::string& module, Index rows, Index cols) const {
    PeftModule<S> tensors = folder_.load<S>(module);
    if (tensors.weight.rows() != rows || tensors.weight.cols() != cols || tensors.bias.size() > 0)
      folder_.refuse(text("replaces module ", in_quotes(module), " by ", shape_text(tensors.weight.rows(), tensors.weight.cols()),
                          tensors.bias.size() > 0 ? " with a bias" : "", ", expected ", shape_text(rows, cols),
                          " without one by the decoder"));
    return tensors;
  }

  void norm(const std::string& module, RmsNorm<S>& to) {
    const DecoderConfig& c = decoder_.config();
    if (found(module)) to = RmsNorm<S>(whole(module, c.hidden_size, 1).weight.col(0), S(c.rms_norm_eps));
  }

  static constexpr const char *table_name = "model.embed_tokens", *head_name = "lm_head";

  void table() {
    const DecoderConfig& c = decoder_.config();
    if (!found(table_name)) return;
    Matrix<S> along = folder_.load<S>(table_name).base_weight;
    if (along.size() == 0) {
      parts_.embed_tokens = Embedding<S>(whole(table_name, c.vocab_size, c.hidden_size).weight);
      return;
    }
    check_saved_along<S>(folder_, table_name, along, c.vocab_size, c.hidden_size);
    if (!same_rows<S>(along, [&](Index first, MatrixRef<S> rows) { decoder_.weights().embed_tokens.copy_rows(first, rows); }))
      parts_.embed_tokens = Embedding<S>(std::move(along));
  }

  /// In a tied base, PEFT treats table and head as one parameter: a saved copy of one is a copy of both, and ensure_weight_tying also ties
  /// their replacements.
  void head() {
    const AnyLinear<S>& base = decoder_.weights().lm_head;
    if (!decoder_.config().tie_word_embeddings) return projection(head_name, base, parts_.lm_head);
    const auto load = [&](const char* module) { return folder_.contains(module) ? folder_.load<S>(module) : PeftModule<S>(); };
    const PeftModule<S> of_table = load(table_name), of_head = load(head_name);
    const Matrix<S>&table_along = of_table.base_weight, &head_along = of_head.base_weight;
    if (table_along.size() > 0 && head_along.size() > 0 && !(table_along.rows() == head_along.rows() && table_along == head_along))
      folder_.refuse("saves other numbers of 'lm_head' along than of 'model.embed_tokens', which the decoder ties");

    const bool follows = table_along.size() > 0
                             ? parts_.embed_tokens.rows() > 0
                             : folder_.config().ensure_weight_tying && of_table.weight.size() > 0 && head_along.size() == 0;
    AnyLinear<S> tied;
    if (follows && of_head.weight.size() == 0)
      tied = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(table_along.size() > 0 ? table_along : of_table.weight), Vector<S>()));
    projection(head_name, tied.empty() ? base : tied, parts_.lm_head);
    const bool replaced = !parts_.lm_head.replacement.empty();
    if (!tied.empty() && !replaced) parts_.lm_head.replacement = std::move(tied);
    if (replaced && head_along.size() > 0 && !folder_.contains(table_name)) parts_.embed_tokens = Embedding<S>(head_along);
  }

  const PeftFolder& folder_;
  const Decoder<S>& decoder_;
  AdapterParts<S> parts_;
  std::set<std::string> bound_;
  std::size_t steps_;
};

}  // namespace detail

template <class S> LinearAdapter<S> make_overlay(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base) {
  PeftModule<S> tensors = folder.load<S>(module);
  const auto check = [&](std::string_view what, Index out, Index in) {
    if (out != base.out() || in != base.in())
      folder.refuse(detail::text(what, " module ", detail::in_quotes(module), " as ", detail::shape_text(out, in), ", expected ",
                                 detail::shape_text(base.out(), base.in()), " by the decoder"));
  };
  LinearAdapter<S> out;
  const bool along = tensors.base_weight.size() > 0;
  const Vector<S> old_bias =
      tensors.bias.size() > 0 || tensors.magnitude.size() > 0 || tensors.weight.size() > 0 || along ? Vector<S>(base.bias()) : Vector<S>();
  if (tensors.bias.size() > 0 && tensors.bias.size() != old_bias.size())
    folder.refuse(detail::text("replaces the bias of module ", detail::in_quotes(module), " by ", tensors.bias.size(),
                               " numbers, expected ", old_bias.size(), " by the decoder"));
  if (tensors.weight.size() > 0) {
    check("replaces", tensors.weight.rows(), tensors.weight.cols());
    if (tensors.bias.size() != old_bias.size())
      folder.refuse(detail::text("holds no bias of module ", detail::in_quotes(module), ", which the decoder has"));
    out.replacement = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(tensors.weight), tensors.bias));
    return out;
  }
  if (along) {
    detail::check_saved_along<S>(folder, module, tensors.base_weight, base.out(), base.in());
    if (!detail::same_rows<S>(tensors.base_weight, [&](Index first, MatrixRef<S> rows) { base.copy_weight(first, rows); }))
      out.replacement = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(tensors.base_weight), old_bias));
  }
  const AnyLinear<S>& under = out.replacement.empty() ? base : out.replacement;
  if (tensors.up.rows() > 0) check("adapts", tensors.up.rows(), tensors.down.cols());
  if (tensors.down.rows() > 0) out.terms.push_back({std::move(tensors.down), tensors.up.transpose(), std::move(tensors.gain)});
  if (tensors.magnitude.size() > 0) out.out_scale = dora_scale(under, out.terms.front(), ConstVectorRef<S>(tensors.magnitude));
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

template <class S> ModelAdapter<S> load_adapter(const PeftFolder& folder, const Decoder<S>& decoder) {
  return ModelAdapter<S>(decoder.adapter_target(), detail::AdapterBinder<S>(folder, decoder).bind());
}

template <KvStorage T> KvPrefix load_prefix(const PeftFolder& folder, const Decoder<arithmetic_t<T>>& decoder) {
  using S = arithmetic_t<T>;
  const PeftConfig& config = folder.config();
  const AttentionShape shape = decoder.config().attention();
  const Index layers = decoder.config().num_hidden_layers, kv = shape.num_kv_heads * shape.head_dim;
  if (config.type != PeftType::prefix_tuning) folder.refuse("is no prefix tuning: use load_adapter()");
  const auto expect = [&](const char* key, Index said, Index expected) {
    if (said != 0 && said != expected) folder.refuse(detail::text("has ", key, " ", said, ", expected ", expected, " by the decoder"));
  };
  expect("num_layers", config.num_layers, layers);
  expect("num_attention_heads", config.num_attention_heads, shape.num_kv_heads);
  expect("token_dim", config.token_dim, kv);
  const Matrix<S> rows = folder.load_prompt<S>();
  if (rows.cols() != 2 * layers * kv)
    folder.refuse(detail::text("is a prefix of ", rows.cols(), " numbers a token, expected ", 2 * layers * kv, " by the decoder"));
  return prefix_tuning<T>(rows, shape, layers);
}

}}  // namespace pith::v0
