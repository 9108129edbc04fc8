#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>

// Finds a tower's tensors under any of the names that versions of transformers give them.
namespace pith { inline namespace v0 { namespace detail {

/// Finds the tensors of tower and projector in a folder, under names that do not depend on the checkpoint: tower.…, projector.…, newline.
class VisionPlan {
 public:
  using Place = CheckpointFiles::Place;

  explicit VisionPlan(const CheckpointFiles& files) : files_(files) {
    for (const Safetensors& file : files.files())
      for (const TensorInfo& tensor : file.tensors()) {
        const std::string name = plain_name(tensor.name);
        if (name.empty()) continue;
        const auto [at, added] = places_.emplace(name, Found{{&file, &tensor}});
        if (!added)
          raise<FormatError>("pith: ", in_quotes(file.name()), ": tensors ", in_quotes(at->second.place.tensor->name), " and ",
                             in_quotes(tensor.name), " are the same part of the model");
      }
  }

  /// A tensor by its name without prefixes; empty: it is none of the vision part's.
  static std::string plain_name(std::string_view name) {
    const auto cut = [&](std::string_view prefix) {
      if (!name.starts_with(prefix)) return false;
      name.remove_prefix(prefix.size());
      return true;
    };
    cut("model.");
    if (name == "image_newline") return "newline";
    if (cut("vision_tower.")) {
      cut("vision_model.");
      return text("tower.", name);
    }
    if (cut("vision_model.")) return text("tower.", name);
    if (cut("multi_modal_projector.") || cut("connector.")) return text("projector.", name);
    return {};
  }

  bool has(const std::string& name) const { return places_.contains(name); }

  /// The tensor of a name and shape.
  ///
  /// Throws   FormatError if it is missing or has another shape; UnsupportedError for quantised numbers
  Place want(const std::string& name, const std::vector<Index>& shape) {
    const auto at = places_.find(name);
    if (at == places_.end())
      raise<FormatError>("pith: ", in_quotes(files_.folder().string()), ": tensor ", in_quotes(shown(name)),
                         " is missing under every name it is given; the config asks for it");
    at->second.used = true;
    const Place place = at->second.place;
    const TensorInfo& tensor = *place.tensor;
    if (!is_floating(tensor.dtype))
      raise<UnsupportedError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(tensor.name), " is ",
                              dtype_name(tensor.dtype), ": quantised towers are not supported; F64, F32, F16 and BF16 are");
    if (tensor.shape != shape)
      raise<FormatError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(tensor.name), " is ", shape_list(tensor.shape),
                         ", expected ", shape_list(shape), " by the config");
    return place;
  }

  /// Lists the tensors that were not read; refuses one that belongs to a layer that is computed.
  void list_ignored(Index layers, std::vector<std::string>& ignored) const {
    for (const auto& [name, found] : places_) {
      const std::string_view plain = name;
      if (found.used || plain.ends_with(".position_ids") || plain.ends_with(".rotary_emb.inv_freq") || plain.starts_with("tower.head.") ||
          plain.starts_with("tower.post_layernorm."))
        continue;
      const std::string& own = found.place.tensor->name;
      if (const Index layer = layer_of(plain); (layer >= 0 && layer < layers) || plain.starts_with("projector."))
        raise<UnsupportedError>("pith: ", in_quotes(found.place.file->name()), ": tensor ", in_quotes(own),
                                " has no place in this tower or projector, but lies in a module that they compute with");
      ignored.push_back(own);
    }
  }

 private:
  struct Found {
    Place place;
    bool used = false;
  };

  static std::string shown(const std::string& name) {
    if (name.starts_with("tower.")) return "vision_tower.vision_model." + name.substr(6);
    return name.starts_with("projector.") ? "multi_modal_projector." + name.substr(10) : "image_newline";
  }
  static Index layer_of(std::string_view name) {
    constexpr std::string_view layers = "tower.encoder.layers.";
    if (!name.starts_with(layers)) return -1;
    Index layer = 0;
    std::size_t at = layers.size();
    for (; at < name.size() && name[at] >= '0' && name[at] <= '9' && layer < 100'000; ++at) layer = 10 * layer + (name[at] - '0');
    return at > layers.size() ? layer : -1;
  }

  const CheckpointFiles& files_;
  std::map<std::string, Found, std::less<>> places_;
};

}}}  // namespace pith::v0::detail
