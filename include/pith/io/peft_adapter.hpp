#pragma once

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/peft_overlay.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/prefix_tuning.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

// Loads PEFT adapter folders for a decoder: LoRA and its variants, prompt tuning, prefix tuning.
namespace pith { inline namespace v0 {

/// The change that a module of a PEFT folder makes to one projection.
///
/// Cost     a copy of the module's numbers; for DoRA one pass over the base weight
/// Throws   FormatError if the two do not match; UnsupportedError if base values are needed that it does not expose
template <class S> LinearAdapter<S> make_overlay(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base);

/// Loads a PEFT folder for a decoder: LoRA, rsLoRA, DoRA or AdaLoRA, with biases and saved modules, or prompt tuning. Modules are named as
/// in the base's own folder: where that keeps several projections in one tensor, a module changes all of them.
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

/// Where the modules of a folder lie in the model that it was trained on; a plain decoder where none tells.
inline const DecoderPlace& place_in(const PeftFolder& folder) {
  const std::vector<std::string> modules = folder.modules();
  for (const DecoderPlace& place : decoder_places)
    for (const std::string& module : modules)
      if (module.starts_with(place.prefix) || (module == place.head && module != "lm_head")) return place;
  return *std::prev(std::end(decoder_places));
}

/// Assigns every module of a folder to its place in a decoder, and checks that every place named by the config has a module.
template <class S> class AdapterBinder {
 public:
  AdapterBinder(const PeftFolder& folder, const Decoder<S>& decoder)
      : folder_(folder), decoder_(decoder), steps_(folder.steps_left()), place_(place_in(folder)) {}

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
    const Family* known = find_family(c.model_type);
    const Family& family = known != nullptr ? *known : families[0];  // decoders made by hand may have any name
    parts_.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
    for (std::size_t l = 0; l < parts_.layers.size(); ++l) {
      const std::string prefix = text(place_.prefix, "layers.", l, ".");
      for (std::size_t n = 0; n < num_norms; ++n)
        if (const Index width = norm_width(c, c.layer(static_cast<Index>(l)), NormPlace(n)); width > 0 && family.norms[n] != nullptr)
          norm(prefix + family.norms[n], width, parts_.layers[l].norms[n]);
      for_each_module(family, [&](const LayerModule& module) { projections(prefix + module.name, l, module); });
    }
    norm(text(place_.prefix, "norm"), c.hidden_size, parts_.norm);
    table();
    head();
    for (const std::string& module : folder_.modules())
      if (!bound_.contains(module)) folder_.refuse(text("changes module ", in_quotes(module), ", which the decoder does not have"));
    return std::move(parts_);
  }

 private:
  bool found(const std::string& module) { return folder_.contains(module) && bound_.insert(module).second; }

  /// The tensors of a module, empty if the folder has none, after everything that the config promises of it was found.
  PeftModule<S> promised(const std::string& module, const AnyLinear<S>& base) {
    const PeftConfig& config = folder_.config();
    const bool there = found(module), wanted = config.targets.said && config.targets.match(module, steps_);
    const bool bias_wanted = config.bias == PeftBias::all || (config.bias == PeftBias::lora_only && wanted);
    PeftModule<S> tensors = there ? folder_.load<S>(module) : PeftModule<S>();
    if (wanted && tensors.up.rows() == 0)
      folder_.refuse(text("holds no lora_A of module ", in_quotes(module), ", which its target_modules name"));
    if (bias_wanted && base.bias().size() > 0 && tensors.bias.size() == 0)
      folder_.refuse(text("holds no bias of module ", in_quotes(module), ", which its bias mode promises"));
    return tensors;
  }

  void projection(const std::string& module, const AnyLinear<S>& base, LinearAdapter<S>& to) {
    PeftModule<S> tensors = promised(module, base);
    if (!folder_.contains(module)) return;
    check_module<S>(folder_, module, tensors, base.out(), base.in(), bias_under(tensors, base));
    to = overlay_of(std::move(tensors), base);
  }

  /// A module of a layer. Its outputs are those of its projections, one after the other.
  void projections(const std::string& name, std::size_t layer, const LayerModule& module) {
    const LayerWeights<S>& weights = decoder_.weights().layers[layer];
    const auto base = [&](std::size_t i) -> const AnyLinear<S>& { return projection_of(weights, module[i]); };
    LayerAdapter<S>& to = parts_.layers[layer];
    if (module.count == 1) return projection(name, base(0), to[module.first]);
    const PeftModule<S> tensors = promised(name, base(0));
    if (!folder_.contains(name)) return;
    Index out = 0, bias = 0;
    for (std::size_t i = 0; i < module.count; ++i) out += base(i).out(), bias += bias_under(tensors, base(i));
    check_module<S>(folder_, name, tensors, out, base(0).in(), bias);
    Index first = 0;
    for (std::size_t i = 0; i < module.count; ++i) {
      to[module[i]] = overlay_of(rows_of(tensors, first, base(i).out()), base(i));
      first += base(i).out();
    }
  }

  PeftModule<S> whole(const std::string& module, Index rows, Index cols) const {
    PeftModule<S> tensors = folder_.load<S>(module);
    if (tensors.weight.rows() != rows || tensors.weight.cols() != cols || tensors.bias.size() > 0)
      folder_.refuse(text("replaces module ", in_quotes(module), " by ", shape_text(tensors.weight.rows(), tensors.weight.cols()),
                          tensors.bias.size() > 0 ? " with a bias" : "", ", expected ", shape_text(rows, cols),
                          " without one by the decoder"));
    return tensors;
  }

  void norm(const std::string& module, Index width, AnyNorm<S>& to) {
    const DecoderConfig& c = decoder_.config();
    if (!found(module)) return;
    Vector<S> weight = whole(module, width, 1).weight.col(0);
    if (c.norm_plus_one) weight.array() += S(1);
    to = AnyNorm<S>(c.norm, std::move(weight), S(c.norm_eps));
  }

  void table() {
    const DecoderConfig& c = decoder_.config();
    if (!found(table_)) return;
    Matrix<S> along = folder_.load<S>(table_).base_weight;
    if (along.size() == 0) {
      parts_.embed_tokens = Embedding<S>(whole(table_, c.vocab_size, c.hidden_size).weight);
      return;
    }
    check_saved_along<S>(folder_, table_, along, c.vocab_size, c.hidden_size);
    if (!same_rows<S>(along, [&](Index first, MatrixRef<S> rows) { decoder_.weights().embed_tokens.copy_rows(first, rows); }))
      parts_.embed_tokens = Embedding<S>(std::move(along));
  }

  /// In a tied base, PEFT treats table and head as one parameter: a saved copy of one is a copy of both, and ensure_weight_tying also ties
  /// their replacements.
  void head() {
    const AnyLinear<S>& base = decoder_.weights().lm_head;
    if (!decoder_.config().tie_word_embeddings) return projection(head_, base, parts_.lm_head);
    const auto load = [&](const std::string& module) { return folder_.contains(module) ? folder_.load<S>(module) : PeftModule<S>(); };
    const PeftModule<S> of_table = load(table_), of_head = load(head_);
    const Matrix<S>&table_along = of_table.base_weight, &head_along = of_head.base_weight;
    if (table_along.size() > 0 && head_along.size() > 0 && !(table_along.rows() == head_along.rows() && table_along == head_along))
      folder_.refuse(text("saves other numbers of ", in_quotes(head_), " along than of ", in_quotes(table_), ", which the decoder ties"));

    const bool follows = table_along.size() > 0
                             ? parts_.embed_tokens.rows() > 0
                             : folder_.config().ensure_weight_tying && of_table.weight.size() > 0 && head_along.size() == 0;
    AnyLinear<S> tied;
    if (follows && of_head.weight.size() == 0)
      tied = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(table_along.size() > 0 ? table_along : of_table.weight), Vector<S>()));
    projection(head_, tied.empty() ? base : tied, parts_.lm_head);
    const bool replaced = !parts_.lm_head.replacement.empty();
    if (!tied.empty() && !replaced) parts_.lm_head.replacement = std::move(tied);
    if (replaced && head_along.size() > 0 && !folder_.contains(table_)) parts_.embed_tokens = Embedding<S>(head_along);
  }

  const PeftFolder& folder_;
  const Decoder<S>& decoder_;
  AdapterParts<S> parts_;
  std::set<std::string> bound_;
  std::size_t steps_;
  const DecoderPlace& place_;
  const std::string table_ = text(place_.prefix, "embed_tokens"), head_ = place_.head;
};

}  // namespace detail

template <class S> LinearAdapter<S> make_overlay(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base) {
  PeftModule<S> tensors = folder.load<S>(module);
  detail::check_module<S>(folder, module, tensors, base.out(), base.in(), detail::bias_under(tensors, base));
  return detail::overlay_of(std::move(tensors), base);
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
