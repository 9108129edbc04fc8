#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/io/detail/image_fields.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/limits.hpp>
#include <pith/vision/image_recipe.hpp>

namespace pith { inline namespace v0 {

/// Reads the rules for images of a folder: its preprocessor_config.json, or `image_processor` in processor_config.json, as transformers 5
/// writes it. Absent keys have the defaults of the named processor.
///
/// Throws   FormatError naming file, key, found and expected; UnsupportedError for another processor or filter
inline ImageRecipe read_image_recipe(const std::filesystem::path& path) {
  const detail::FileBytes file = detail::FileBytes::read(path, max_config_bytes);
  const detail::JsonDocument document = detail::parse_json(file.text(), file.name());
  const detail::JsonFields outer(file.name(), document.root());
  const detail::Json* inside = outer.find("image_processor");
  return detail::ImageFields(inside == nullptr ? outer : detail::JsonFields(file.name(), *inside, "image_processor.")).recipe();
}

}}  // namespace pith::v0
