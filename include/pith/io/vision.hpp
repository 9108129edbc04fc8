#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/io/checkpoint.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/detail/vision_fields.hpp>
#include <pith/io/detail/vision_plan.hpp>
#include <pith/io/detail/vision_reader.hpp>
#include <pith/io/image_recipe_json.hpp>
#include <pith/io/load.hpp>
#include <pith/vision/vision_model.hpp>

// Loads the vision half of an unconverted Hugging Face folder, beside load_decoder().
namespace pith { inline namespace v0 {

namespace detail {

/// The file of a folder that says how images are prepared.
inline std::filesystem::path recipe_in(const std::filesystem::path& folder, const std::string& given) {
  if (!given.empty()) return folder / given;
  for (const char* name : {"preprocessor_config.json", "processor_config.json"})
    if (present(folder / name)) return folder / name;
  raise<FormatError>("pith: ", in_quotes(folder.string()),
                     " holds neither preprocessor_config.json nor processor_config.json, which say how pictures are prepared");
}

}  // namespace detail

/// Reads the tower, the projector and the rules for images of a vision-language model's folder: LLaVA 1.5, LLaVA-OneVision, SmolVLM,
/// Idefics 3, Gemma 3, PaliGemma. Absent keys have the model's defaults; names of tensors may be those of any version of transformers.
///
/// Of the folder's decoder only the config is read: load_decoder() reads it. int8 and int4 round the layers of tower and projector, all but
/// the patches' and Gemma's.
///
/// Cost     one pass over the weights when packed or int8
/// Throws   FormatError naming file, tensor or key, expected and found; UnsupportedError for other towers and models, by name
template <class S> Vision<S> load_vision(const std::filesystem::path& folder, const VisionLoadOptions& options) {
  if constexpr (!std::is_same_v<S, float>)
    if (const std::string_view rounded = detail::rounding_name(options.weights); !rounded.empty())
      raise<UnsupportedError>("pith::load_vision: ", rounded,
                              " weights are computed in float: load_vision<float>(), or WeightsLayout::packed");
  detail::check_checkpoint_folder(folder, options.config);
  const std::filesystem::path path = folder / options.config;
  const detail::FileBytes file = detail::FileBytes::read(path, max_config_bytes);
  const detail::JsonDocument document = detail::parse_json(file.text(), file.name());
  const detail::VisionFields fields = detail::read_vision_fields(detail::JsonFields(file.name(), document.root()));
  const Index hidden = parse_config(file.text(), file.name()).hidden_size;
  detail::check_config_file(path, [&] { fields.tower.check(); });

  Vision<S> out;
  out.spec = fields.spec;
  const std::filesystem::path recipe = detail::recipe_in(folder, options.recipe);
  out.recipe = read_image_recipe(recipe);
  const CheckpointFiles files(folder);
  detail::VisionPlan plan(files);
  detail::VisionReader<S> reader(plan, options.weights, options.check_finite, options.executor);
  VisionWeights<S> weights = reader.tower(fields);
  out.tower = VisionTower<S>(fields.tower, std::move(weights));
  out.projector = reader.projector(fields, hidden);
  if (out.recipe.tiles == TileRule::pinpoints) out.newline = reader.newline(hidden);
  plan.list_ignored(fields.tower.num_hidden_layers, out.ignored);
  detail::check_config_file(recipe, [&] { out.check(); });
  return out;
}

}}  // namespace pith::v0
