#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/text.hpp>

// Token ids in an adapter config: trained rows of a table or head, and the invocation of an activated LoRA.
namespace pith { inline namespace v0 { namespace detail {

inline constexpr std::size_t max_peft_tokens = 65536;

/// The rows of a table or head that an adapter replaces: those of these tokens, in the order of the tensor.
struct PeftTokenRows {
  std::string module = {};  ///< the last components of its path
  std::vector<Token> ids = {};
};

/// A list of token ids; `distinct`: each at most once.
inline std::vector<Token> token_list(const JsonFields& c, const char* key, const Json& list, bool distinct) {
  if (!list.is_array() || list.size() > max_peft_tokens) c.refuse(key, text("a list of token ids, at most ", max_peft_tokens));
  std::vector<Token> ids;
  for (const Json& id : list) ids.push_back(static_cast<Token>(c.whole(key, id, 0, (std::numeric_limits<Token>::max)())));
  std::vector<Token> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  if (distinct && std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) c.refuse(key, "each token once");
  return ids;
}

/// The key `trainable_token_indices` of LoRA: a list for the table of embeddings, or an object from modules to lists.
inline std::vector<PeftTokenRows> trainable_tokens(const JsonFields& c) {
  constexpr const char* key = "trainable_token_indices";
  std::vector<PeftTokenRows> out;
  const Json* given = c.find(key);
  if (given == nullptr || given->empty()) return out;
  if (given->is_array()) return {{"embed_tokens", token_list(c, key, *given, true)}};
  if (!given->is_object()) c.refuse(key, "a list of token ids, or an object from modules to such lists");
  for (const auto& [module, list] : given->items()) {
    const std::string name(module);
    if (!is_module_path(name)) c.refuse(key, "names of modules");
    if (std::any_of(out.begin(), out.end(), [&](const PeftTokenRows& other) { return other.module == name; }))
      c.refuse(key, text("module ", in_quotes(name), " once"));
    out.push_back({name, token_list(c, key, list, true)});
  }
  return out;
}

/// The rows of a folder of peft_type TRAINABLE_TOKENS: token_indices of each of target_modules.
inline std::vector<PeftTokenRows> token_indices(const JsonFields& c, const std::vector<std::string>& targets) {
  const Json* given = c.find("token_indices");
  if (given == nullptr || given->empty()) c.refuse("token_indices", "a list of token ids");
  const std::vector<Token> ids = token_list(c, "token_indices", *given, true);
  std::vector<PeftTokenRows> out;
  for (const std::string& module : targets.empty() ? std::vector<std::string>{"embed_tokens"} : targets) {
    if (!is_module_path(module)) c.refuse("target_modules", "names of modules");
    out.push_back({module, ids});
  }
  return out;
}

/// alora_invocation_tokens: the tokens from whose last occurrence in a prompt on an activated LoRA applies; empty: plain LoRA.
inline std::vector<Token> invocation_tokens(const JsonFields& c) {
  constexpr const char* key = "alora_invocation_tokens";
  const Json* given = c.find(key);
  return given == nullptr ? std::vector<Token>() : token_list(c, key, *given, false);
}

}}}  // namespace pith::v0::detail
