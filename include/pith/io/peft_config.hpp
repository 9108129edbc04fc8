#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/module_numbers.hpp>
#include <pith/io/detail/peft_keys.hpp>
#include <pith/io/detail/peft_kinds.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/peft_targets.hpp>
#include <pith/io/detail/peft_tokens.hpp>
#include <pith/io/detail/text.hpp>

// Reads adapter_config.json.
namespace pith { inline namespace v0 {

/// Which base biases were trained with the adapter, and are replaced by it.
enum class PeftBias : std::uint8_t { none, all, lora_only };

/// An adapter_config.json with defaults filled in and expressions compiled.
struct PeftConfig {
  PeftType type = PeftType::lora;
  std::string type_name = "LORA";                     ///< peft_type
  std::shared_ptr<const detail::PeftKind> kind = {};  ///< where type is other
  std::string base_model = {};                        ///< base_model_name_or_path, informative only

  Index rank = 8;                                  ///< r; AdaLoRA: init_r, which divides alpha even if fewer triplets were kept
  double alpha = 8;                                ///< lora_alpha
  detail::ModuleNumbers<Index> rank_pattern = {};  ///< LoRA only
  detail::ModuleNumbers<double> alpha_pattern = {};
  std::map<std::string, Index, std::less<>> kept = {};  ///< AdaLoRA's rank_pattern: triplets kept, by tensor name
  bool rslora = false, dora = false, lora_bias = false;
  bool ensure_weight_tying = false;  ///< in a tied base, the table's replacement also replaces the head
  PeftBias bias = PeftBias::none;
  detail::TargetModules targets = {};
  std::vector<detail::PeftTokenRows> token_rows = {};  ///< rows of the table or the head that are replaced
  std::vector<Token> invocation = {};                  ///< activated LoRA: it applies from their last occurrence in a prompt on
  std::vector<std::string> ignored = {};               ///< unknown keys that were passed over, with their values

  Index num_virtual_tokens = 0;                                  ///< prompt and prefix tuning
  Index token_dim = 0, num_attention_heads = 0, num_layers = 0;  ///< of the keys and values; 0: not given

  /// Rank and alpha of a module, patterns applied.
  Index rank_of(std::string_view module, std::size_t& steps) const { return rank_pattern.of(module, rank, steps); }
  double alpha_of(std::string_view module, std::size_t& steps) const { return alpha_pattern.of(module, alpha, steps); }
};

/// Reads a PEFT adapter_config.json: LORA, ADALORA, IA3, VERA, LOHA, LOKR, OFT, BOFT, HRA, MISS, RANDLORA, LN_TUNING, TRAINABLE_TOKENS,
/// PROMPT_TUNING, PREFIX_TUNING or CARTRIDGE.
///
/// Every field that would change the numbers is read or refused by name. An unknown field is refused too, unless it is null, false, 0 or
/// empty, a text whose name suggests no method (as trainers add), or its name begins with _ or unsloth_.
///
/// Throws   FormatError naming file, key, found and expected; UnsupportedError naming the unsupported feature
PeftConfig read_peft_config(const std::filesystem::path& path);
PeftConfig parse_peft_config(std::string_view json, std::string_view name = "adapter_config.json");

namespace detail {

/// Total matching steps for all names and expressions of a folder on all its modules: about half a second.
inline constexpr std::size_t max_pattern_steps = std::size_t{1} << 27;

class PeftConfigReader {
 public:
  PeftConfigReader(std::string_view json, std::string_view file)
      : file_(file), document_(parse_json(json, file)), c_(file_, document_.root()) {}

  PeftConfig read() {
    refuse_other_formats();
    const std::string type = c_.string("peft_type");
    out_.base_model = c_.string("base_model_name_or_path", "");
    out_.type_name = type;
    if (type == "LORA" || type == "ADALORA") {
      out_.type = type == "LORA" ? PeftType::lora : PeftType::adalora;
      read_low_rank();
    } else if (type == "PROMPT_TUNING" || type == "PREFIX_TUNING" || type == "CARTRIDGE") {
      out_.type = type == "PROMPT_TUNING" ? PeftType::prompt_tuning : PeftType::prefix_tuning;
      read_prompt();
    } else if (type == "TRAINABLE_TOKENS" || type == "LN_TUNING") {
      out_.type = type == "LN_TUNING" ? PeftType::ln_tuning : PeftType::trainable_tokens;
      read_targets();
      if (type == "TRAINABLE_TOKENS") out_.token_rows = token_indices(c_, name_list(c_, "target_modules"));
    } else if ((kind_ = find_peft_kind(type)) != nullptr) {
      out_.type = PeftType::other;
      read_kind();
    } else {
      unsupported(text("peft_type ", in_quotes(type),
                       " is not supported: LORA, ADALORA, IA3, VERA, LOHA, LOKR, OFT, BOFT, HRA, MISS, "
                       "RANDLORA, LN_TUNING, TRAINABLE_TOKENS, PROMPT_TUNING, PREFIX_TUNING and CARTRIDGE are: let PEFT merge it into "
                       "its base (merge_and_unload)"));
    }
    refuse_others();
    return std::move(out_);
  }

 private:
  [[noreturn]] void unsupported(const std::string& what) const { raise<UnsupportedError>("pith: ", in_quotes(file_), ": ", what); }
  std::string where(const char* key) const { return of_key(c_, key); }

  void refuse_other_formats() const {
    if (c_.find("peft_type") != nullptr) return;
    for (const char* key : {"lora_parameters", "fine_tune_type", "lora_layers"})
      if (c_.find(key) != nullptr)
        unsupported(text("key '", key,
                         "' and no peft_type: an adapter of MLX, only PEFT's are read; fuse it with its base model "
                         "(mlx_lm.fuse --dequantize)"));
    if (const auto* config = c_.find("config"); config != nullptr && config->is_object())
      unsupported("key 'config' and no peft_type: an adapter of the Adapters library (AdapterHub), only PEFT's are read");
  }

  void read_low_rank() {
    const bool lora = out_.type == PeftType::lora;
    out_.rank = lora ? c_.size("r", 8) : c_.size("init_r", 12);
    out_.alpha = c_.number("lora_alpha", 8);
    out_.rslora = c_.boolean("use_rslora", false);
    out_.dora = c_.boolean("use_dora", false);
    out_.lora_bias = c_.boolean("lora_bias", false);
    if (out_.dora && out_.lora_bias) c_.refuse("lora_bias", "false where use_dora is true");
    out_.ensure_weight_tying = c_.boolean("ensure_weight_tying", false);
    c_.boolean("merge_weights", false);   // of PEFT before 0.3: affects only its own forward pass
    c_.boolean("fan_in_fan_out", false);  // storage order of the base in training; no tensor here depends on it
    const std::string bias = c_.string("bias", "none");
    if (bias != "none" && bias != "all" && bias != "lora_only") c_.refuse("bias", "\"none\", \"all\" or \"lora_only\"");
    out_.bias = bias == "none" ? PeftBias::none : bias == "all" ? PeftBias::all : PeftBias::lora_only;
    if (!lora && (out_.rslora || out_.dora || out_.lora_bias))
      unsupported("ADALORA with use_rslora, use_dora or lora_bias is not supported");
    read_initialisation();
    read_targets();
    read_patterns(lora);
    if (lora) read_tokens();
  }

  void read_kind() {
    if (kind_->has_key("r")) out_.rank = c_.size("r", 8, 0);
    if (kind_->has_key("alpha")) out_.alpha = c_.number("alpha", 8);
    if (const std::string bias = c_.string("bias", "none"); bias != "none")
      unsupported(text("bias ", in_quotes(bias), " is not supported beside peft_type ", out_.type_name, ": only \"none\" is"));
    if (kind_->has_key("init_weights") && out_.type_name != "MISS" && out_.type_name != "LOKR") c_.boolean("init_weights", true);
    out_.kind = kind_->make(c_);
    read_targets();
    if (kind_->has_key("rank_pattern")) read_patterns(true);
  }

  /// LoRA's rows of single tokens, and activated LoRA, whose rows before the invocation are the base's: nothing may change those.
  void read_tokens() {
    out_.token_rows = trainable_tokens(c_);
    out_.invocation = invocation_tokens(c_);
    if (out_.invocation.empty()) return;
    const auto refuse = [&](const char* key, const char* expected) {
      c_.refuse(key, text(expected, " where alora_invocation_tokens are given"));
    };
    if (out_.dora) refuse("use_dora", "false");
    if (c_.string("task_type", "") != "CAUSAL_LM") refuse("task_type", "\"CAUSAL_LM\"");
    if (out_.bias != PeftBias::none) refuse("bias", "\"none\"");
    if (!out_.token_rows.empty()) refuse("trainable_token_indices", "null");
    if (!out_.targets.saved.empty()) refuse("modules_to_save", "null");
  }

  void read_initialisation() {
    const auto* init = c_.find("init_lora_weights");
    if (init == nullptr || init->is_boolean()) return;
    const std::string name = c_.string("init_lora_weights");
    if (one_of(name, {"gaussian", "eva", "orthogonal", "mica"})) return;
    const bool changes_base = name.starts_with("pissa") || one_of(name, {"olora", "corda", "loftq", "lora_ga"});
    unsupported(text("init_lora_weights ", in_quotes(name),
                     changes_base
                         ? " trains against changed weights of the base, which this folder does not hold: let PEFT convert it to plain "
                           "LoRA (path_initial_model_for_weight_conversion), or set it to true beside the changed base"
                         : " is not known to leave the base as it is"));
  }

  void read_targets() { out_.targets = read_target_modules(c_); }

  void read_patterns(bool lora) {
    const auto read = [&](const char* key, const auto& add) {
      const auto* pattern = c_.find(key);
      if (pattern == nullptr) return;
      if (!pattern->is_object() || pattern->size() > max_peft_names)
        c_.refuse(key, text("an object from modules to numbers, at most ", max_peft_names));
      for (const auto& [module, value] : pattern->items()) add(module, value);  // in file order: the first match wins
    };
    if (lora) {
      read("rank_pattern", [&](std::string_view module, const Json& value) {
        out_.rank_pattern.add(module, where("rank_pattern"), c_.whole("rank_pattern", value, 1, (std::numeric_limits<Token>::max)()));
      });
    } else {
      read("rank_pattern", [&](std::string_view tensor, const Json& value) {
        const bool flags = value.is_array() && std::all_of(value.begin(), value.end(), [](const auto& kept) { return kept.is_boolean(); });
        if (!flags) c_.refuse("rank_pattern", "a list of true and false for each tensor, as AdaLoRA keeps it");
        out_.kept.emplace(without_adapter_name(std::string(tensor)), std::count(value.begin(), value.end(), true));
      });
    }
    read("alpha_pattern", [&](std::string_view module, const Json& value) {
      if (!lora) unsupported("ADALORA with an alpha_pattern is not supported");
      if (!value.is_number() || !std::isfinite(value.get<double>())) c_.refuse("alpha_pattern", "finite numbers");
      out_.alpha_pattern.add(module, where("alpha_pattern"), value.get<double>());
    });
  }

  void read_prompt() {
    out_.num_virtual_tokens = c_.size("num_virtual_tokens");
    out_.token_dim = c_.size("token_dim", 0);
    out_.num_attention_heads = c_.size("num_attention_heads", 0);
    out_.num_layers = c_.size("num_layers", 0);
    if (c_.size("num_transformer_submodules", 1) != 1)
      unsupported("num_transformer_submodules other than 1 is of encoder-decoder models, which are not supported");
    if (!name_list(c_, "modules_to_save").empty()) unsupported("modules_to_save beside a prompt is not supported");
    c_.boolean("prefix_projection", false);  // the projected prefix is saved
  }

  /// Refuses every key that was not read above, unless it changes no number or may be passed over.
  void refuse_others() {
    for (const auto& [key, value] : document_.root().items()) {
      if (is_inert(value) || is_peft_key(out_.type, kind_, key)) continue;
      if (!is_foreign_key(key, value.is_string()))
        unsupported(text("key ", in_quotes(key), " is ", in_quotes(value.dump()),
                         ", which pith does not do: expected null, false, empty, or no such key"));
      out_.ignored.push_back(text("adapter_config.json: key ", in_quotes(key), ", ", in_quotes(value.dump())));
    }
  }

  std::string file_;
  JsonDocument document_;
  JsonFields c_;
  PeftConfig out_;
  const PeftKindEntry* kind_ = nullptr;
};

}  // namespace detail

inline PeftConfig parse_peft_config(std::string_view json, std::string_view name) {
  if (json.size() > max_peft_config_bytes)
    raise<FormatError>("pith: ", detail::in_quotes(name), " has ", json.size(), " bytes, expected at most ", max_peft_config_bytes);
  return detail::PeftConfigReader(json, name).read();
}

inline PeftConfig read_peft_config(const std::filesystem::path& path) {
  const detail::FileBytes file = detail::FileBytes::read(path, max_peft_config_bytes);
  return parse_peft_config(file.text(), file.name());
}

}}  // namespace pith::v0
