#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/io/text.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/prefix_tuning.hpp>
#include <pith/kv/storage.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/model_adapter.hpp>
#include <pith/peft/overlay.hpp>

namespace pith::inline v0 {

/// What a module of a PEFT folder changes in this projection.
///
/// Cost     a copy of its numbers; for DoRA one pass over the base's weight
/// Throws   FormatError if the two do not fit; UnsupportedError where numbers of the base are needed that it does not show
template <class S> LinearOverlay<S> make_overlay(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base);

/// Binds a PEFT folder to a decoder: LoRA, rsLoRA, DoRA, AdaLoRA with all they bring along, or prompt tuning.
///
///   const auto adapter = load_adapter("my-lora", llama);
///   session.use(&adapter);
///
/// Everything that the folder changes has a place in the decoder, and everything that its config asks for is in the folder.
///
/// Cost     a copy of its numbers, widened; for DoRA one pass over the weights it adapts
/// Throws   what PeftFolder throws; FormatError naming the module if folder and decoder do not fit
template <class S> ModelAdapter<S> load_adapter(const PeftFolder& folder, const Decoder<S>& decoder);
template <class S> ModelAdapter<S> load_adapter(const std::filesystem::path& folder, const Decoder<S>& decoder) {
  return load_adapter(PeftFolder(folder), decoder);
}

/// Binds a folder of prefix tuning: keys and values that a session begins with, {.prefix = load_prefix(…)}. Its rows are seen by every
/// token and never rotated; tokens begin at position num_virtual_tokens.
///
/// Throws   as load_adapter()
template <KvStorage T = float> KvPrefix load_prefix(const PeftFolder& folder, const Decoder<arithmetic_t<T>>& decoder);
template <KvStorage T = float> KvPrefix load_prefix(const std::filesystem::path& folder, const Decoder<arithmetic_t<T>>& decoder) {
  return load_prefix<T>(PeftFolder(folder), decoder);
}

namespace detail {

/// Finds the place of every module of a folder in a decoder, and the module of every place that the config asks for.
template <class S> class AdapterBinder {
 public:
  AdapterBinder(const PeftFolder& folder, const Decoder<S>& decoder) : folder_(folder), decoder_(decoder) {}

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
    table("model.embed_tokens");
    projection("lm_head", decoder_.weights().lm_head, parts_.lm_head);
    for (const std::string& module : folder_.modules())
      if (!bound_.contains(module)) folder_.refuse(text("changes module ", in_quotes(module), ", which the decoder does not have"));
    return std::move(parts_);
  }

 private:
  bool found(const std::string& module) { return folder_.contains(module) && bound_.insert(module).second; }

  void projection(const std::string& module, const AnyLinear<S>& base, LinearOverlay<S>& to) {
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
  void table(const std::string& module) {
    const DecoderConfig& c = decoder_.config();
    if (found(module)) parts_.embed_tokens = Embedding<S>(whole(module, c.vocab_size, c.hidden_size).weight);
  }

  const PeftFolder& folder_;
  const Decoder<S>& decoder_;
  AdapterParts<S> parts_;
  std::set<std::string> bound_;
  std::size_t steps_ = max_pattern_steps;
};

}  // namespace detail

template <class S> LinearOverlay<S> make_overlay(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base) {
  PeftModule<S> tensors = folder.load<S>(module);
  const auto check = [&](std::string_view what, Index out, Index in) {
    if (out != base.out() || in != base.in())
      folder.refuse(detail::text(what, " module ", detail::in_quotes(module), " as ", detail::shape_text(out, in), ", expected ",
                                 detail::shape_text(base.out(), base.in()), " by the decoder"));
  };
  LinearOverlay<S> out;
  const Vector<S> old_bias =
      tensors.bias.size() > 0 || tensors.magnitude.size() > 0 || tensors.weight.size() > 0 ? Vector<S>(base.bias()) : Vector<S>();
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
  if (tensors.up.rows() > 0) check("adapts", tensors.up.rows(), tensors.down.cols());
  if (tensors.down.rows() > 0) out.terms.push_back({std::move(tensors.down), tensors.up.transpose(), std::move(tensors.gain)});
  if (tensors.magnitude.size() > 0) out.out_scale = dora_scale(base, out.terms.front(), ConstVectorRef<S>(tensors.magnitude));
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

}  // namespace pith::inline v0
