#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

namespace pith { inline namespace v0 {

/// Replaces the stop tokens of config.json by those of generation_config.json, as transformers does when it generates: Llama 3 Instruct
/// lists 128001 in one and [128001, 128009] in the other. Without that file, or without tokens in it, nothing changes.
///
/// Adds to `ignored`: config.json's tokens if the two differ; the file if it cannot be read, which is no reason to refuse the model.
inline void use_generation_config(const std::filesystem::path& folder, DecoderConfig& config, std::vector<std::string>& ignored) {
  const std::filesystem::path path = folder / "generation_config.json";
  std::vector<Token> tokens;
  try {
    if (!detail::present(path)) return;
    const detail::JsonDocument document = detail::read_json(path);
    const detail::JsonFields fields("generation_config.json", document.root());
    tokens = detail::read_eos(fields, {});
  } catch (const FormatError& refusal) {
    ignored.push_back(detail::text("generation_config.json: ", refusal.what()));
    return;
  }
  if (tokens.empty()) return;
  const auto sorted = [](std::vector<Token> list) {
    std::sort(list.begin(), list.end());
    return list;
  };
  const auto listed = [](const std::vector<Token>& list) { return detail::shape_list(std::vector<Index>(list.begin(), list.end())); };
  if (sorted(tokens) != sorted(config.eos_token_id))
    ignored.push_back(
        detail::text("config.json: eos_token_id ", listed(config.eos_token_id), ", where generation_config.json has ", listed(tokens)));
  config.eos_token_id = std::move(tokens);
}

}}  // namespace pith::v0
