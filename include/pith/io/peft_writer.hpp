#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/atomic_file.hpp>
#include <pith/io/detail/file_bytes.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/io/safetensors.hpp>
#include <pith/io/safetensors_writer.hpp>
#include <pith/peft/low_rank.hpp>

// Writes low-rank adapters as a PEFT folder.
namespace pith { inline namespace v0 {

/// Descriptive fields of a LoRA folder.
struct PeftWriterOptions {
  std::string base_model = {};          ///< base_model_name_or_path
  std::string task_type = "CAUSAL_LM";  ///< the PEFT task that wraps the model; empty: null
};

/// Collects low-rank adapters by module and writes them as a LoRA folder for PEFT: adapter_config.json and adapter_model.safetensors.
///
///   LoraFolderWriter writer({.base_model = "my-model"});
///   writer.add("model.layers.0.self_attn.q_proj", lora);
///   writer.write("my-lora");
///
/// Accepts any LowRankAdapter. PEFT has one scale per module: equal gains become lora_alpha, different gains (as in AdaLoRA) are multiplied
/// into B. RowCompaction, and alphas that differ between modules, become patterns of whole paths.
///
/// Heap     a copy of the numbers; write() one more
/// Throws   FormatError for a name that is no module path or given twice, rank 0, numbers that are not finite, options that are not UTF-8,
///          a bias on some modules only, what PeftFolder refuses to read, and errors of the system
/// Law      PeftFolder reads every folder that it writes
template <class S = float> class LoraFolderWriter {
 public:
  explicit LoraFolderWriter(PeftWriterOptions options = {}) : options_(std::move(options)) {
    detail::check_utf8("LoraFolderWriter: base_model", options_.base_model);
    detail::check_utf8("LoraFolderWriter: task_type", options_.task_type);
  }

  template <LowRankAdapter A> void add(const std::string& module, const A& adapter) {
    const ConstMatrixRef<S> down = adapter.down_rows(), up = adapter.up_rows();
    const ConstVectorRef<S> gain = adapter.gain();
    ConstVectorRef<S> bias;
    if constexpr (requires { adapter.scaled_bias(); }) bias = adapter.scaled_bias();
    insert(module, down, up, gain, bias);
  }

  /// Writes both files or neither: after a failure the folder is as before. Creates the folder if needed.
  void write(const std::filesystem::path& folder) const {
    if (modules_.empty()) raise<FormatError>("pith::LoraFolderWriter: nothing was added");
    const bool biased = modules_.begin()->second.bias.size() > 0;
    for (const auto& [name, module] : modules_)
      if ((module.bias.size() > 0) != biased)
        refuse(name, biased ? "has no bias, but others have one: PEFT knows lora_bias for all of them or none"
                            : "has a bias, but others have none: PEFT knows lora_bias for all of them or none");
    SafetensorsWriter tensors;
    tensors.metadata("format", "pt");
    for (const auto& [name, module] : modules_) {
      const std::string prefix = std::string(detail::peft_prefix) + name;
      add_view(tensors, prefix + ".lora_A.weight", {module.down.rows(), module.down.cols()}, module.down);
      add_view(tensors, prefix + ".lora_B.weight", {module.up.rows(), module.up.cols()}, module.up);
      if (biased) add_view(tensors, prefix + ".lora_B.bias", {module.bias.size()}, module.bias);
    }
    const std::string json = config(biased);
    const auto file = detail::FileBytes::own(tensors.bytes(), (folder / "adapter_model.safetensors").string());
    check_readable(folder, json, file);
    const NewFolder made(folder);
    detail::AtomicFile tensor_file(folder / "adapter_model.safetensors"), config_file(folder / "adapter_config.json");
    tensor_file.write(file.bytes());
    config_file.write(std::as_bytes(std::span(json.data(), json.size())));
    detail::AtomicFile::commit(tensor_file, config_file);
  }

 private:
  struct Module {
    Matrix<S> down, up;  // A [rank, in], B [out, rank]
    Vector<S> bias;      // β, or empty
    double alpha;
    Index rank() const { return down.rows(); }
  };

  /// Creates a folder and its missing parents; removes those that are still empty at the end.
  class NewFolder {
   public:
    explicit NewFolder(const std::filesystem::path& folder) : NewFolder() {  // complete from here on: a failure below is cleaned up
      for (std::filesystem::path at = folder; !at.empty() && !detail::present(at); at = at.parent_path()) {
        made_.push_back(at);
        if (at == at.root_path()) break;
      }
      std::error_code error;
      std::filesystem::create_directories(folder, error);
      if (error) detail::raise_system("make", folder, error);
    }
    ~NewFolder() {
      std::error_code ignored;
      for (const std::filesystem::path& folder : made_) std::filesystem::remove(folder, ignored);  // a folder with files in it stays
    }
    NewFolder(const NewFolder&) = delete;
    NewFolder& operator=(const NewFolder&) = delete;

   private:
    NewFolder() = default;

    std::vector<std::filesystem::path> made_;  // innermost first
  };

  template <class M> static void add_view(SafetensorsWriter& tensors, std::string name, std::vector<Index> shape, const M& values) {
    tensors.add_view(std::move(name), detail::dtype_of<S>(), std::move(shape),
                     std::as_bytes(std::span(values.data(), static_cast<std::size_t>(values.size()))));
  }

  /// Opens the folder as a reader would, before anything is written.
  static void check_readable(const std::filesystem::path& folder, const std::string& json, const detail::FileBytes& file) {
    const auto refuse_unread = [](const std::exception& why) {
      raise<FormatError>("pith::LoraFolderWriter: nothing was written, because it could not be read: ", why.what());
    };
    try {
      PeftFolder(folder, parse_peft_config(json, (folder / "adapter_config.json").string()), Safetensors(file));
    } catch (const FormatError& why) {
      refuse_unread(why);
    } catch (const UnsupportedError& why) {
      refuse_unread(why);
    }
  }

  [[noreturn]] static void refuse(const std::string& name, std::string_view what) {
    raise<FormatError>("pith::LoraFolderWriter: module ", detail::in_quotes(name), " ", what);
  }

  void insert(const std::string& name, ConstMatrixRef<S> down, ConstMatrixRef<S> up, ConstVectorRef<S> gain, ConstVectorRef<S> bias) {
    if (!detail::is_module_path(name)) refuse(name, "is no module path like model.layers.0.self_attn.q_proj");
    if (modules_.contains(name)) refuse(name, "is given twice");
    const Index rank = down.rows();
    check_shape("LoraFolderWriter", "up", up, rank, any_extent);
    check_shape("LoraFolderWriter", "gain", gain, rank, 1);
    if (bias.size() > 0) check_shape("LoraFolderWriter", "bias", bias, up.cols(), 1);
    if (rank == 0) refuse(name, "has rank 0, which LoRA does not have: leave it out");
    if (!down.allFinite() || !up.allFinite() || !gain.allFinite() || !bias.allFinite()) refuse(name, "has numbers that are not finite");
    const bool one_scale = (gain.array() == gain[0]).all() && gain[0] != S(0);
    const S scale = one_scale ? gain[0] : S(1);
    Module module{down, up.transpose(), Vector<S>(bias) / scale, alpha_for(scale, rank)};
    if (!one_scale) module.up = module.up * gain.asDiagonal();
    if (!std::isfinite(module.alpha) || !module.up.allFinite() || !module.bias.allFinite())
      refuse(name, "overflows where its scale is taken in or out");
    modules_.emplace(name, std::move(module));
  }

  /// The alpha from which a reader gets exactly this scale: alpha / rank in double, rounded to S.
  static double alpha_for(S scale, Index rank) {
    const double alpha = double(scale) * double(rank);
    for (const double candidate : {alpha, std::nextafter(alpha, 2 * alpha), std::nextafter(alpha, 0.0)})
      if (static_cast<S>(candidate / double(rank)) == scale) return candidate;
    return alpha;
  }

  /// The text of adapter_config.json.
  std::string config(bool biased) const {
    const Module& first = modules_.begin()->second;
    std::string ranks, alphas, targets;
    const auto add = [](std::string& list, const std::string& name, const std::string& value) {
      list += list.empty() ? "\n    " : ",\n    ";
      detail::append_json_text(list, name);
      list += value;
    };
    for (const auto& [name, module] : modules_) {
      add(targets, name, "");
      // A pattern is an expression in which a dot matches any character, and the first that matches the end of a path wins. Every path
      // therefore has its own pattern: anchored at its beginning, with its dots escaped.
      if (module.rank() != first.rank()) add(ranks, pattern(name), detail::text(": ", module.rank()));
      if (module.alpha != first.alpha) add(alphas, pattern(name), ": " + number(module.alpha));
    }
    const auto closed = [](char open, const std::string& list, char close) {
      return detail::text(open, list, list.empty() ? "" : "\n  ", close);
    };
    const auto word = [](const std::string& letters) {
      std::string out;
      if (!letters.empty()) detail::append_json_text(out, letters);
      return letters.empty() ? "null" : out;
    };
    return detail::text("{\n  \"peft_type\": \"LORA\",\n  \"task_type\": ", word(options_.task_type),
                        ",\n  \"base_model_name_or_path\": ", word(options_.base_model),
                        ",\n  \"inference_mode\": true,\n  \"r\": ", first.rank(), ",\n  \"lora_alpha\": ", number(first.alpha),
                        ",\n  \"lora_dropout\": 0.0,\n  \"bias\": \"none\",\n  \"lora_bias\": ", biased ? "true" : "false",
                        ",\n  \"fan_in_fan_out\": false,\n  \"init_lora_weights\": true,\n  \"use_rslora\": false,\n  \"use_dora\": false",
                        ",\n  \"target_modules\": ", closed('[', targets, ']'),
                        ",\n  \"modules_to_save\": null,\n  \"layers_to_transform\": null,\n  \"layers_pattern\": null",
                        ",\n  \"rank_pattern\": ", closed('{', ranks, '}'), ",\n  \"alpha_pattern\": ", closed('{', alphas, '}'), "\n}\n");
  }
  /// The shortest digits that read back as alpha. PEFT types it as int, so whole numbers are written without a point.
  static std::string number(double alpha) {
    if (alpha == std::floor(alpha) && std::abs(alpha) < 1e15) return std::to_string(static_cast<long long>(alpha));
    char digits[32];
    return {digits, std::to_chars(digits, digits + sizeof digits, alpha).ptr};
  }
  static std::string pattern(const std::string& path) {
    std::string out = "^";
    for (const char c : path) out += c == '.' ? std::string("\\.") : std::string(1, c);
    return out;
  }

  PeftWriterOptions options_;
  std::map<std::string, Module> modules_;
};

}}  // namespace pith::v0
