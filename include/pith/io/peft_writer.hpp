#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
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
#include <pith/io/atomic_file.hpp>
#include <pith/io/peft_names.hpp>
#include <pith/io/safetensors_writer.hpp>
#include <pith/io/text.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith::inline v0 {

/// What a LoRA folder says of itself besides its numbers.
struct PeftWriterOptions {
  std::string base_model = {};          ///< base_model_name_or_path
  std::string task_type = "CAUSAL_LM";  ///< what PEFT wraps the model for; empty: null
};

/// Collects low-rank adapters by module and writes them as a LoRA folder that PEFT reads: adapter_config.json and
/// adapter_model.safetensors.
///
///   LoraFolderWriter writer({.base_model = "my-model"});
///   writer.add("model.layers.0.self_attn.q_proj", lora);
///   writer.write("my-lora");
///
/// Any LowRankAdapter can be added. PEFT knows one scale for all components of a module: where gains differ, as AdaLoRA's do, they go into
/// B; where they are equal they become lora_alpha. Ranks and alphas that differ between modules become patterns of whole paths.
///
/// Heap     a copy of the numbers
/// Throws   FormatError for a name that is no module's or is given twice, rank 0, numbers that are not finite, a bias on some
///          modules only, and what the system refuses
template <class S = float> class LoraFolderWriter {
 public:
  explicit LoraFolderWriter(PeftWriterOptions options = {}) : options_(std::move(options)) {}

  template <LowRankAdapter A> void add(const std::string& module, const A& adapter) {
    const ConstMatrixRef<S> down = adapter.down(), up = adapter.up();
    const ConstVectorRef<S> gain = adapter.gain();
    ConstVectorRef<S> bias;
    if constexpr (requires { adapter.bias(); }) bias = adapter.bias();
    insert(module, down, up, gain, bias);
  }

  /// Writes both files, each whole or not at all; the folder is made if it is not there.
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
      tensors.add(prefix + ".lora_A.weight", module.down);
      tensors.add(prefix + ".lora_B.weight", module.up);
      if (biased) tensors.add(prefix + ".lora_B.bias", module.bias);
    }
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) raise<FormatError>(detail::text("pith: cannot make ", detail::in_quotes(folder.string()), ": ", error.message()));
    tensors.write(folder / "adapter_model.safetensors");
    AtomicFile file(folder / "adapter_config.json");
    const std::string json = config(biased).dump(2);
    file.write(std::as_bytes(std::span(json.data(), json.size())));
    file.commit();
  }

 private:
  struct Module {
    Matrix<S> down, up;  // A [rank, in], B [out, rank]
    Vector<S> bias;      // β, or empty
    double alpha;
    Index rank() const { return down.rows(); }
  };

  [[noreturn]] static void refuse(const std::string& name, std::string_view what) {
    raise<FormatError>(detail::text("pith::LoraFolderWriter: module ", detail::in_quotes(name), " ", what));
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
    if (!module.up.allFinite() || !module.bias.allFinite()) refuse(name, "overflows where its scale is taken in or out");
    modules_.emplace(name, std::move(module));
  }

  /// The alpha that a reader, dividing by the rank, turns back into exactly this scale: alpha / rank in double, rounded to S.
  static double alpha_for(S scale, Index rank) {
    const double alpha = double(scale) * double(rank);
    for (const double candidate : {alpha, std::nextafter(alpha, 2 * alpha), std::nextafter(alpha, 0.0)})
      if (static_cast<S>(candidate / double(rank)) == scale) return candidate;
    return alpha;
  }

  nlohmann::ordered_json config(bool biased) const {
    const Module& first = modules_.begin()->second;
    nlohmann::ordered_json ranks = nlohmann::ordered_json::object(), alphas = ranks, targets = nlohmann::ordered_json::array();
    for (const auto& [name, module] : modules_) {
      targets.push_back(name);
      // A pattern is an expression whose dots stand for any letter, and the first that matches the end of a path wins; so that no path
      // takes another's number, every path has its own, from its beginning, with its dots escaped.
      if (module.rank() != first.rank()) ranks[pattern(name)] = module.rank();
      if (module.alpha != first.alpha) alphas[pattern(name)] = number(module.alpha);
    }
    const auto word = [](const std::string& text) { return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text); };
    return {{"peft_type", "LORA"},
            {"task_type", word(options_.task_type)},
            {"base_model_name_or_path", word(options_.base_model)},
            {"inference_mode", true},
            {"r", first.rank()},
            {"lora_alpha", number(first.alpha)},
            {"lora_dropout", 0.0},
            {"bias", "none"},
            {"lora_bias", biased},
            {"fan_in_fan_out", false},
            {"init_lora_weights", true},
            {"use_rslora", false},
            {"use_dora", false},
            {"target_modules", targets},
            {"modules_to_save", nullptr},
            {"layers_to_transform", nullptr},
            {"layers_pattern", nullptr},
            {"rank_pattern", ranks},
            {"alpha_pattern", alphas}};
  }
  /// PEFT's type for alpha is int: whole ones are written so.
  static nlohmann::ordered_json number(double alpha) {
    if (alpha == std::floor(alpha) && std::abs(alpha) < 1e15) return static_cast<long long>(alpha);
    return alpha;
  }
  static std::string pattern(const std::string& path) {
    std::string out = "^";
    for (const char c : path) out += c == '.' ? std::string("\\.") : std::string(1, c);
    return out;
  }

  PeftWriterOptions options_;
  std::map<std::string, Module> modules_;
};

}  // namespace pith::inline v0
