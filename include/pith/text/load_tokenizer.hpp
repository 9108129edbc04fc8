#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/file_bytes.hpp>
#include <pith/io/json.hpp>
#include <pith/io/text.hpp>
#include <pith/text/detail/tokenizer_json.hpp>
#include <pith/text/tokenizer.hpp>

namespace pith::inline v0 {

/// Loads the tokenizer of a Hugging Face folder: tokenizer.json, and what tokenizer_config.json, special_tokens_map.json,
/// generation_config.json and config.json say besides, where they are.
///
/// Byte-level BPE (GPT-2, Qwen, Llama 3, GPT-4o, Mistral Nemo, SmolLM, Phi-4, OLMo, Granite …) and BPE in sentencepiece's style (Llama 2,
/// Mistral, Gemma, Phi-3, TinyLlama). What a file asks for beyond that is refused by name.
///
/// Heap     twice the tables; no tree of the file
/// Throws   FormatError naming file, place, found and expected; UnsupportedError naming what pith does not do
Tokenizer load_tokenizer(const std::filesystem::path& folder);

namespace detail {

/// The optional files beside a tokenizer.json.
class TokenizerFolder {
 public:
  explicit TokenizerFolder(const std::filesystem::path& folder) : folder_(folder) {
    config_ = read("tokenizer_config.json");
    map_ = read("special_tokens_map.json");
  }

  /// The text of bos_token, eos_token, …: text, or an object with `content`.
  std::optional<std::string> special(const char* key) const {
    for (const nlohmann::json* file : {&config_, &map_}) {
      const auto at = file->find(key);
      if (at == file->end()) continue;
      if (at->is_string()) return at->get<std::string>();
      if (at->is_object() && at->contains("content") && (*at)["content"].is_string()) return (*at)["content"].get<std::string>();
    }
    return std::nullopt;
  }
  bool flag(const char* key) const {
    const auto at = config_.find(key);
    return at != config_.end() && at->is_boolean() && at->get<bool>();
  }
  bool denies(const char* key) const {
    const auto at = config_.find(key);
    return at != config_.end() && at->is_boolean() && !at->get<bool>();
  }

  /// added_tokens_decoder: id → token. Entries that make no sense are left out; tokenizer.json decides.
  std::vector<AddedToken> added() const {
    std::vector<AddedToken> out;
    const auto list = config_.find("added_tokens_decoder");
    if (list == config_.end() || !list->is_object()) return out;
    for (const auto& item : list->items()) {
      const std::string& key = item.key();
      const nlohmann::json& entry = item.value();
      Token id = 0;
      for (const char c : key) {
        if (c < '0' || c > '9' || id > (1 << 24) / 10) id = -1;
        if (id < 0) break;
        id = id * 10 + (c - '0');
      }
      if (id < 0 || key.empty() || !entry.is_object() || !entry.contains("content") || !entry["content"].is_string()) continue;
      const auto flag = [&](const char* name) { return entry.contains(name) && entry[name].is_boolean() && entry[name].get<bool>(); };
      out.push_back({.id = id,
                     .content = entry["content"].get<std::string>(),
                     .single_word = flag("single_word"),
                     .lstrip = flag("lstrip"),
                     .rstrip = flag("rstrip"),
                     .normalized = flag("normalized"),
                     .special = flag("special")});
    }
    return out;
  }

  /// The only, or the default, chat template; chat_template.jinja counts before tokenizer_config.json.
  std::string chat_template() const {
    std::error_code missing;
    const std::filesystem::path own = folder_ / "chat_template.jinja";
    if (std::filesystem::exists(own, missing)) {
      const FileBytes file = FileBytes::read(own);
      return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
    }
    const auto at = config_.find("chat_template");
    if (at == config_.end()) return {};
    if (at->is_string()) return at->get<std::string>();
    if (at->is_array())
      for (const nlohmann::json& entry : *at)
        if (entry.is_object() && entry.contains("name") && entry["name"] == "default" && entry.contains("template") &&
            entry["template"].is_string())
          return entry["template"].get<std::string>();
    return {};
  }

  /// eos_token_id of generation_config.json, else of config.json: a number or a list.
  std::vector<Token> stop_ids() const {
    for (const char* name : {"generation_config.json", "config.json"}) {
      const nlohmann::json file = read(name);
      const auto at = file.find("eos_token_id");
      if (at == file.end() || at->is_null()) continue;
      std::vector<Token> out;
      const auto add = [&](const nlohmann::json& id) {
        if (id.is_number_integer() && id >= 0 && id < (1 << 24)) out.push_back(id.get<Token>());
      };
      if (at->is_array()) {
        for (const nlohmann::json& id : *at) add(id);
      } else {
        add(*at);
      }
      if (!out.empty()) return out;
    }
    return {};
  }

  std::vector<std::string> ignored;

 private:
  // A file that is no JSON object is as good as none: what it would add is a convenience.
  nlohmann::json read(const char* name) const {
    std::error_code missing;
    const std::filesystem::path path = folder_ / name;
    if (!std::filesystem::exists(path, missing)) return nlohmann::json::object();
    return read_json(path);
  }

  std::filesystem::path folder_;
  nlohmann::json config_, map_;
};

}  // namespace detail

inline Tokenizer load_tokenizer(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  std::error_code missing;
  if (!std::filesystem::exists(path, missing))
    raise<FormatError>(
        detail::text("pith: ", detail::in_quotes(folder.string()),
                     " holds no tokenizer.json; tokenizer.model and vocab.txt are not read: let transformers save the tokenizer again"));
  const detail::TokenizerFolder beside(folder);
  const FileBytes file = FileBytes::map(path);
  auto parts = std::make_shared<detail::TokenizerParts>(
      detail::read_tokenizer_json({reinterpret_cast<const char*>(file.bytes().data()), file.size()}, path.string(), beside.added()));
  const auto known = [&](const char* key) -> std::optional<Token> {
    const auto name = beside.special(key);
    return name ? parts->id(*name) : std::nullopt;
  };
  const auto bos = known("bos_token"), eos = known("eos_token");
  if (parts->prefix.empty() && parts->suffix.empty() && beside.flag("add_bos_token") && bos) parts->prefix = {*bos};
  if (beside.denies("add_bos_token") && bos && !parts->prefix.empty() && parts->prefix.front() == *bos)
    parts->ignored.push_back("tokenizer_config.json says add_bos_token false, tokenizer.json adds it: the latter counts");
  parts->chat_template = beside.chat_template();
  parts->stop_tokens = beside.stop_ids();
  if (parts->stop_tokens.empty() && eos) parts->stop_tokens = {*eos};
  return Tokenizer(std::move(parts));
}

}  // namespace pith::inline v0
