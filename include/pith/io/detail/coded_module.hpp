#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/detail/byte_codes.hpp>
#include <pith/io/detail/coded_weight.hpp>
#include <pith/io/detail/float_codes.hpp>
#include <pith/io/detail/module_tensors.hpp>
#include <pith/io/detail/quantisation.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/detail/word_codes.hpp>
#include <pith/io/dtype.hpp>

// Finds out whether a module is quantised, and how.
namespace pith { inline namespace v0 { namespace detail {

/// What the names of tensors end in that only quantised checkpoints have.
inline bool is_quantised_part(std::string_view tensor) {
  constexpr std::string_view marks[] = {".qweight",
                                        ".qzeros",
                                        ".scales",
                                        ".g_idx",
                                        ".SCB",
                                        ".absmax",
                                        ".quant_map",
                                        ".weight_scale",
                                        ".weight_packed",
                                        ".weight_format",
                                        ".weight_scale_inv",
                                        ".weight_zero_point",
                                        ".weight_g_idx",
                                        ".weight_global_scale"};
  return tensor.find(".quant_state.") != std::string_view::npos ||
         std::any_of(std::begin(marks), std::end(marks), [&](std::string_view mark) { return tensor.ends_with(mark); });
}

/// Scales of activations and caches, which a GPU computes with; weights do not depend on them.
inline bool is_activation_scale(std::string_view tensor) {
  constexpr std::string_view marks[] = {".input_scale", ".output_scale", ".activation_scale", ".k_scale",
                                        ".v_scale",     ".q_scale",      ".kv_scale",         ".input_zero_point"};
  return std::any_of(std::begin(marks), std::end(marks), [&](std::string_view mark) { return tensor.ends_with(mark); });
}

/// Whether a folder holds a module's weight, in any form.
inline bool holds_weight(const CheckpointFiles& files, const std::string& module) {
  return files.find(module + ".weight") || files.find(module + ".qweight") || files.find(module + ".weight_packed");
}

/// The weight of a module whose tensors are codes; nullptr: its weight is a float matrix, or missing. The tensors decide; the config says
/// what they mean.
///
/// Throws   FormatError if a tensor is missing or of another shape than the config says, or the config leaves the module in float;
///          UnsupportedError if one is of another type
inline std::unique_ptr<const CodedWeight> find_coded(const CheckpointFiles& files, const Quantisation& how, const std::string& module,
                                                     Index out, Index in, std::size_t& steps) {
  ModuleTensors tensors(files, module, out, in);
  const CheckpointFiles::Place weight = tensors.find(".weight");
  const bool floats = weight && is_floating(weight.tensor->dtype);
  const auto coded = [&](const CheckpointFiles::Place& codes) {
    if (how.skipped.within(module, steps)) ModuleTensors::refuse(codes, text("holds codes, but the config leaves its module in float"));
    return bool(codes);
  };
  switch (how.method) {
    case QuantMethod::none:
      break;
    case QuantMethod::awq:
      if (const auto codes = tensors.find(".qweight"); codes && coded(codes)) return AwqWeight::read(tensors, how);
      break;
    case QuantMethod::gptq:
      if (const auto codes = tensors.find(".qweight"); codes && coded(codes)) return GptqWeight::read(tensors, how, steps);
      break;
    case QuantMethod::fp8:
      if (weight && !floats && coded(weight)) return Fp8Weight::read(tensors, how);
      break;
    case QuantMethod::bitsandbytes:
      if (tensors.has(TableWeight::states[0]) || tensors.has(TableWeight::states[1])) {
        const CheckpointFiles::Place state = tensors.find(TableWeight::states[tensors.has(TableWeight::states[0]) ? 0 : 1]);
        if (how.bits != 4) ModuleTensors::refuse(state, "is of codes of 4 bits, expected load_in_4bit in the config");
        static_cast<void>(coded(state));
        return TableWeight::read(tensors);
      }
      if (weight && !floats && coded(weight)) {
        if (how.bits != 8) ModuleTensors::refuse(weight, "has no quant_state beside it, which load_in_4bit promises");
        return Int8RowsWeight::read(tensors);
      }
      break;
    case QuantMethod::compressed_tensors: {
      const CheckpointFiles::Place packed = tensors.find(".weight_packed"), codes = packed ? packed : weight;
      if (!codes || (!packed && floats)) break;
      const CodeRule* rule = how.rule_of(module, steps);
      if (rule == nullptr) ModuleTensors::refuse(codes, "holds codes, but no target in config_groups names its module, or `ignore` does");
      return rule->floats ? Fp8Weight::read(tensors, *rule) : CompressedWeight::read(tensors, *rule);
    }
  }
  return nullptr;
}

}}}  // namespace pith::v0::detail
