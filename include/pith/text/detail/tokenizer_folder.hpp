#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/file_bytes.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_text.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/text/detail/tokenizer_json.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The optional files beside tokenizer.json.
class TokenizerFolder {
 public:
  explicit TokenizerFolder(const std::filesystem::path& folder)
      : folder_(folder), config_(read("tokenizer_config.json")), map_(read("special_tokens_map.json")) {}

  /// The text of bos_token, eos_token, …: a string, or an object with `content`.
  std::optional<std::string> special(const char* key) const {
    for (const JsonDocument* file : {&config_, &map_}) {
      const Json* at = file->root().find(key);
      if (at != nullptr && at->is_object()) at = at->find("content");
      if (at != nullptr && at->is_string()) return at->get<std::string>();
    }
    return std::nullopt;
  }
  /// The value of a flag, if present.
  std::optional<bool> flag(const char* key) const {
    const Json* at = config_.root().find(key);
    return at != nullptr && at->is_boolean() ? std::optional(at->get<bool>()) : std::nullopt;
  }

  /// Reads added_tokens_decoder: id → token. Skips invalid entries, since tokenizer.json decides.
  std::vector<AddedToken> added() const {
    std::vector<AddedToken> out;
    const Json* list = config_.root().find("added_tokens_decoder");
    if (list == nullptr || !list->is_object()) return out;
    for (const auto& [key, entry] : list->items()) {
      const Json* content = entry.find("content");
      Token id = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= (1 << 24) || content == nullptr ||
          !content->is_string())
        continue;
      const auto says = [&, of = &entry](const char* name) {
        const Json* value = of->find(name);
        return value != nullptr && value->is_boolean() && value->get<bool>();
      };
      out.push_back({.id = id,
                     .content = content->get<std::string>(),
                     .single_word = says("single_word"),
                     .lstrip = says("lstrip"),
                     .rstrip = says("rstrip"),
                     .normalized = says("normalized"),
                     .special = says("special")});
    }
    return out;
  }

  /// The only or default chat template of chat_template.jinja, else of tokenizer_config.json, else of chat_template.json, where models with
  /// a vision tower have it.
  std::string chat_template() const {
    const std::filesystem::path own = folder_ / "chat_template.jinja";
    if (present(own)) return std::string(FileBytes::read(own, max_config_bytes).text());
    const std::string found = chat_template(config_);
    return found.empty() ? chat_template(read("chat_template.json")) : found;
  }

  /// eos_token_id of generation_config.json, else of config.json, else of its text_config: a number or a list. A file that is not JSON
  /// counts as missing and does not prevent loading.
  std::vector<Token> stop_ids() const {
    for (const char* name : {"generation_config.json", "config.json"}) try {
        const JsonDocument file = read(name);
        if (std::vector<Token> ids = stop_ids(file.root()); !ids.empty()) return ids;
        if (const Json* inner = file.root().find("text_config"))
          if (std::vector<Token> ids = stop_ids(*inner); !ids.empty()) return ids;
      } catch (const FormatError&) {
      }
    return {};
  }

 private:
  static std::string chat_template(const JsonDocument& file) {
    const Json* at = file.root().find("chat_template");
    if (at != nullptr && at->is_array()) {
      const Json* found = nullptr;
      for (const Json& entry : *at)
        if (const Json* name = entry.find("name"); name != nullptr && *name == "default") found = entry.find("template");
      at = found;
    }
    return at != nullptr && at->is_string() ? at->get<std::string>() : std::string();
  }
  static std::vector<Token> stop_ids(const Json& config) {
    std::vector<Token> out;
    const Json* at = config.find("eos_token_id");
    const auto add = [&](const Json& id) {
      if (const double number = id.is_number() ? id.get<double>() : -1; number >= 0 && number < (1 << 24))
        out.push_back(static_cast<Token>(number));
    };
    if (at != nullptr && at->is_array()) {
      for (const Json& id : *at) add(id);
    } else if (at != nullptr) {
      add(*at);
    }
    return out;
  }

  JsonDocument read(const char* name) const {
    const std::filesystem::path path = folder_ / name;
    return present(path) ? read_json(path) : parse_json("{}", name);
  }

  std::filesystem::path folder_;
  JsonDocument config_, map_;
};

/// Implements load_tokenizer().
inline std::shared_ptr<const TokenizerParts> read_tokenizer_folder(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!present(path))
    raise<FormatError>("pith: ", in_quotes(folder.string()),
                       " holds no tokenizer.json; tokenizer.model and vocab.txt are not read: let transformers save the tokenizer again");
  const TokenizerFolder beside(folder);
  constexpr std::uintmax_t longest = 256u << 20;
  std::error_code missing;
  if (const std::uintmax_t size = std::filesystem::file_size(path, missing); !missing && size > longest)
    raise<FormatError>("pith: ", in_quotes(path.string()), " has ", size, " bytes, expected at most ", longest);
  const FileBytes file = FileBytes::map(path);
  auto parts = std::make_shared<TokenizerParts>(read_tokenizer_json(file.text(), path.string(), beside.added()));
  const auto known = [&](const char* key) -> std::optional<Token> {
    const auto name = beside.special(key);
    return name ? parts->id(*name) : std::nullopt;
  };
  const auto bos = known("bos_token"), eos = known("eos_token");
  if (parts->prefix.empty() && parts->suffix.empty() && beside.flag("add_bos_token") == true && bos) parts->prefix = {*bos};
  if (beside.flag("add_bos_token") == false && bos && !parts->prefix.empty() && parts->prefix.front() == *bos)
    parts->ignored.push_back("tokenizer_config.json says add_bos_token false, tokenizer.json adds it: the latter counts");
  parts->chat_template = beside.chat_template();
  parts->stop_tokens = beside.stop_ids();
  if (parts->stop_tokens.empty() && eos) parts->stop_tokens = {*eos};
  return parts;
}

}}}  // namespace pith::v0::detail
