#pragma once

#include <filesystem>
#include <string_view>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/adapter_binder.hpp>
#include <pith/io/detail/peft_overlay.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/load.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/prefix_tuning.hpp>
#include <pith/model/decoder.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

// Loads PEFT adapter folders for a decoder.
namespace pith { inline namespace v0 {

/// The change that a module of a PEFT folder makes to one projection.
///
/// Cost     a copy of the module's numbers; for DoRA, HRA, RandLoRA and MiSS's "bat" one pass over the base weight
/// Throws   FormatError if the two do not match; UnsupportedError if base values are needed that it does not expose
template <class S>
LinearAdapter<S> load_linear_adapter(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base,
                                     AdapterOptions options = {});

/// Loads a PEFT folder for a decoder: any kind that read_peft_config() knows, but prefixes. Modules are named as in the base's own folder:
/// where that keeps several projections in one tensor, a module changes all of them.
///
///   const auto adapter = load_adapter("my-lora", llama);
///   session.use(&adapter);
///
/// Every change in the folder must have a place in the decoder, and everything the config asks for must be in the folder. If PEFT also
/// saved the base's table or head, equal numbers change nothing; different ones under an adapter (base_layer.weight) replace the base's.
///
/// LoRA's factors stay in bfloat16 where the folder has them so: half the memory, the same bits. {.factors = FactorType::bf16} rounds
/// others to it. All other numbers, and LoRA on a table, are widened.
///
/// Cost     a copy of the adapter's numbers; for DoRA and HRA one pass over the weights it adapts, for RandLoRA and MiSS's "bat" a copy of
///          them. Of any folder: memory of a few times the folder's and the adapted weights' size, and a few times as many
///          multiply-adds as their numbers times the decoder's width
/// Throws   what PeftFolder throws; FormatError naming the module if folder and decoder do not match, or the tensor if a factor does not
///          fit bfloat16; UnsupportedError for FactorType::bf16 and a kind that has no factors
template <class S> ModelAdapter<S> load_adapter(const PeftFolder& folder, const Decoder<S>& decoder, AdapterOptions options = {});
template <class S> ModelAdapter<S> load_adapter(const std::filesystem::path& folder, const Decoder<S>& decoder, AdapterOptions options) {
  return load_adapter(PeftFolder(folder), decoder, options);
}

/// Loads a prefix-tuning folder: keys and values that a session starts with, {.prefix = load_prefix(…)}. Every token sees them, and
/// they are never rotated; tokens start at position num_virtual_tokens.
///
/// Throws   as load_adapter()
template <KvStorage T = float> KvPrefix load_prefix(const PeftFolder& folder, const Decoder<arithmetic_t<T>>& decoder);
template <KvStorage T> KvPrefix load_prefix(const std::filesystem::path& folder, const Decoder<arithmetic_t<T>>& decoder) {
  return load_prefix<T>(PeftFolder(folder), decoder);
}

template <class S>
LinearAdapter<S> load_linear_adapter(const PeftFolder& folder, std::string_view module, const AnyLinear<S>& base, AdapterOptions options) {
  detail::check_factors(folder, options.factors);
  if (folder.has_kind(module)) return detail::kind_overlay<S>(folder, module, {.base = base, .module_out = base.out()});
  PeftModule<S> tensors = folder.load<S>(module, options.factors);
  detail::check_module<S>(folder, module, tensors, base.out(), base.in(), detail::bias_under(tensors, base));
  return detail::overlay_of(std::move(tensors), base);
}

template <class S> ModelAdapter<S> load_adapter(const PeftFolder& folder, const Decoder<S>& decoder, AdapterOptions options) {
  detail::check_factors(folder, options.factors);
  return ModelAdapter<S>(decoder.adapter_target(), detail::AdapterBinder<S>(folder, decoder, options.factors).bind());
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
