#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/other_formats.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/safetensors.hpp>

namespace pith { inline namespace v0 {

/// The tensors of a Hugging Face folder, mapped: from model.safetensors if it exists, as in transformers, else from the shards that
/// model.safetensors.index.json lists.
///
/// Throws   FormatError if there is neither, a shard is missing or listed with a path, or the index and the shards disagree about the place
///          of a tensor
class CheckpointFiles {
 public:
  struct Place {
    const Safetensors* file = nullptr;
    const TensorInfo* tensor = nullptr;
    explicit operator bool() const { return tensor != nullptr; }
    std::span<const std::byte> bytes() const { return file->bytes(*tensor); }
  };

  explicit CheckpointFiles(const std::filesystem::path& folder) : folder_(folder) {
    const std::filesystem::path single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
    if (detail::present(single)) {
      files_.push_back(Safetensors::map(single));
      if (detail::present(index))
        ignored_.push_back("model.safetensors.index.json: its shards, because a model.safetensors lies beside it");
    } else if (detail::present(index)) {
      open_shards(index);
    } else {
      raise<FormatError>("pith: ", detail::in_quotes(folder.string()), " holds neither model.safetensors nor ",
                         "model.safetensors.index.json", detail::shown_format(folder, detail::other_checkpoints));
    }
  }

  const std::filesystem::path& folder() const { return folder_; }
  const std::vector<Safetensors>& files() const { return files_; }
  /// Files that also hold tensors and are not used, with the reason.
  const std::vector<std::string>& ignored() const { return ignored_; }

  /// Returns the tensor with this name and its file, or an empty Place.
  Place find(std::string_view name) const {
    for (const Safetensors& file : files_)
      if (const TensorInfo* tensor = file.find(name)) return {&file, tensor};
    return {};
  }

 private:
  static constexpr std::size_t max_shards = 10'000;

  static void check_bare(std::string_view index, std::string_view tensor, std::string_view file) {
    const bool bare = !file.empty() && file.find_first_of("/\\") == std::string_view::npos && file != "." &&
                      file.find("..") == std::string_view::npos && !std::filesystem::path(file).is_absolute() &&
                      file.find('\0') == std::string_view::npos;
    if (!bare)
      raise<FormatError>("pith: ", detail::in_quotes(index), ": weight_map sends tensor ", detail::in_quotes(tensor), " to ",
                         detail::in_quotes(file), ", expected the bare name of a file in the same folder");
  }

  void open_shards(const std::filesystem::path& path) {
    const detail::JsonDocument index = detail::read_json(path, {.bytes = max_index_bytes});
    const std::string name = path.string();
    const detail::Json* map = index.root().find("weight_map");
    if (map == nullptr || !map->is_object() || map->empty())
      raise<FormatError>("pith: ", detail::in_quotes(name), ": expected an object 'weight_map' from tensors to files");
    std::map<std::string, std::size_t, std::less<>> shards;
    for (const auto& [tensor, file] : map->items()) {
      if (!file.is_string())
        raise<FormatError>("pith: ", detail::in_quotes(name), ": weight_map of ", detail::in_quotes(tensor), " is no file name");
      check_bare(name, tensor, file.get<std::string_view>());
      if (shards.find(file.get<std::string_view>()) == shards.end()) shards.emplace(file.get<std::string_view>(), 0);
      if (shards.size() > max_shards)
        raise<FormatError>("pith: ", detail::in_quotes(name), ": weight_map names more than ", max_shards, " files");
    }
    std::size_t held = 0;
    for (auto& [file, number] : shards) {
      if (!detail::present(folder_ / file))
        raise<FormatError>("pith: ", detail::in_quotes(name), ": shard ", detail::in_quotes(file), " is missing: fetch it into the folder");
      number = files_.size();
      files_.push_back(Safetensors::map(folder_ / file));
      held += files_.back().tensors().size();
    }
    for (const auto& [tensor, file] : map->items())
      if (files_[shards.find(file.get<std::string_view>())->second].find(tensor) == nullptr)
        raise<FormatError>("pith: ", detail::in_quotes(name), ": shard ", detail::in_quotes(file.get<std::string_view>()),
                           " does not hold tensor ", detail::in_quotes(tensor));
    if (held == map->size()) return;  // every entry was found in its own shard, so equal counts mean equal sets
    for (const auto& [file, number] : shards)
      for (const TensorInfo& tensor : files_[number].tensors())
        if (const detail::Json* at = map->find(tensor.name); at == nullptr || *at != std::string_view(file))
          raise<FormatError>("pith: ", detail::in_quotes(name), ": shard ", detail::in_quotes(file), " holds tensor ",
                             detail::in_quotes(tensor.name),
                             at == nullptr ? ", which weight_map does not name" : ", which weight_map sends elsewhere");
  }

  std::filesystem::path folder_;
  std::vector<Safetensors> files_;
  std::vector<std::string> ignored_;
};

}}  // namespace pith::v0
