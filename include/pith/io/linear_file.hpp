#pragma once

#include <filesystem>
#include <string>

#include <pith/core/check.hpp>
#include <pith/io/load.hpp>
#include <pith/io/safetensors.hpp>
#include <pith/nn/linear.hpp>

namespace pith { inline namespace v0 {

/// Loads one linear layer, such as a projector, from a safetensors file: `weight` [out, in] and, if present, `bias` [out].
///
/// Throws   FormatError naming file and tensor if the weight is missing or shapes do not match
template <class S> Linear<S> load_linear(const std::filesystem::path& path, const std::string& prefix) {
  const Safetensors file = Safetensors::map(path);
  const auto refuse = [&](const std::string& name, const std::string& why) {
    raise<FormatError>("pith::load_linear: ", detail::in_quotes(file.name()), ": tensor ", detail::in_quotes(name), " ", why);
  };
  const std::string weight_name = prefix + "weight", bias_name = prefix + "bias";
  const TensorInfo& weight = file.at(weight_name);
  if (weight.shape.size() != 2) refuse(weight_name, detail::text("is ", detail::shape_list(weight.shape), ", expected [out, in]"));
  Vector<S> bias;
  if (const TensorInfo* info = file.find(bias_name)) {
    if (info->shape.size() != 1 || info->shape[0] != weight.shape[0])
      refuse(bias_name, detail::text("is ", detail::shape_list(info->shape), ", expected [", weight.shape[0], "]"));
    bias = file.template load_values<S>(bias_name);
  }
  return Linear<S>(file.template load_matrix<S>(weight_name), std::move(bias));
}

}}  // namespace pith::v0
