#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/detail/checkpoint_plan.hpp>
#include <pith/io/detail/other_formats.hpp>
#include <pith/io/detail/weight_reader.hpp>
#include <pith/io/generation_config.hpp>
#include <pith/model/config.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/weights.hpp>

namespace pith { inline namespace v0 {

/// How far a load has come. Called before each tensor, and once more when all are there.
struct LoadProgress {
  Index tensors_done = 0, tensors_total = 0;
  std::size_t bytes_done = 0, bytes_total = 0;
  std::string_view tensor = {};  ///< the one that comes next; empty at the end
};

struct LoadOptions {
  WeightsLayout weights = WeightsLayout::packed;
  std::string config = "config.json";     ///< the configuration's file name inside the folder
  std::optional<bool> check_finite = {};  ///< refuse NaN and infinite weights; unset: unless mapped, where nothing else reads the data
  std::function<bool(const LoadProgress&)> progress = {};  ///< returns false to cancel
};

/// A checkpoint in memory: what a Decoder is made of.
template <class S = float> struct Checkpoint {
  DecoderConfig config;
  DecoderWeights<S> weights;
  /// What the folder holds and the model does not use, sorted, each worth a warning: tensors by their names; anything else as
  /// "file: what, and why".
  std::vector<std::string> ignored;
};

namespace detail {

/// Refuses what is no folder, and a folder of another format, which would lack a config.json.
inline void check_checkpoint_folder(const std::filesystem::path& folder, const std::string& config) {
  std::error_code error;
  if (std::filesystem::is_regular_file(folder, error))
    raise<FormatError>(
        text("pith: ", in_quotes(folder.string()), " is a file, expected the folder that holds ", config, " and model.safetensors",
             folder.extension() == ".gguf" ? "; files of llama.cpp are not supported: use the folder it was made from" : ""));
  if (std::filesystem::exists(folder / config, error)) return;
  if (const std::string shown = shown_format(folder, other_checkpoints); !shown.empty())
    raise<FormatError>(text("pith: ", in_quotes(folder.string()), " holds no ", config, shown));
}

/// A config that no decoder can be made of is refused in the name of its file, before any weight is read.
template <class Check> void check_config_file(const std::filesystem::path& path, const Check& check) {
  try {
    check();
  } catch (const ShapeError& error) {
    raise<FormatError>(text("pith: ", in_quotes(path.string()), ": ", error.what()));
  }
}

}  // namespace detail

/// Reads an unconverted Hugging Face folder of the llama, mistral or qwen2 family.
///
/// Names, shapes, types and biases are checked against config.json before anything large is read. F64, F32, F16 and BF16 may be mixed.
/// A tensor inside a layer that the family has no place for is refused; whole layers beyond num_hidden_layers and towers of other kinds are
/// ignored, and listed. A bias that the config does not promise is used, and listed. generation_config.json decides eos_token_id.
/// Under `mapped`, a tensor that cannot be used where it lies is packed instead: a misaligned one, or one that S is not computed from
/// (F64 for float; anything but F64 for double). Norms and biases are always copied, and stay as they are under `int8`, as does the
/// embedding table. With tied embeddings that table is the head, whatever lm_head the file holds.
///
/// Cost     one pass over the weights when packed or int8; the headers only when mapped
/// Heap     packed: the weights in their own width, a tied table once as rows and once as panels; int8: a byte for each weight
/// Throws   FormatError naming file, tensor, expected and found; UnsupportedError for what pith does not do; Cancelled
template <class S = float> Checkpoint<S> load_checkpoint(const std::filesystem::path& folder, const LoadOptions& options = {}) {
  Checkpoint<S> out;
  if constexpr (!std::is_same_v<S, float>)
    if (options.weights == WeightsLayout::int8)
      raise<UnsupportedError>("pith::load_checkpoint: int8 weights are computed in float: load_decoder<float>(), or WeightsLayout::packed");
  detail::check_checkpoint_folder(folder, options.config);
  out.config = read_config(folder / options.config, &out.ignored);
  use_generation_config(folder, out.config, out.ignored);
  detail::check_config_file(folder / options.config, [&] { static_cast<void>(Rope<S>(out.config.rope())); });
  const CheckpointFiles files(folder);
  const detail::CheckpointPlan plan(files, out.config);
  detail::check_config_file(folder / options.config, [&] { out.config.check(); });
  for (const std::vector<std::string>* more : {&files.ignored(), &plan.ignored()})
    out.ignored.insert(out.ignored.end(), more->begin(), more->end());
  std::sort(out.ignored.begin(), out.ignored.end());
  out.weights.fingerprint = detail::fingerprint(out.config, plan, options.weights == WeightsLayout::int8 ? "int8" : "");

  LoadProgress progress{.tensors_total = static_cast<Index>(plan.tensors().size()), .bytes_total = plan.bytes()};
  const auto report = [&](std::string_view tensor) {
    progress.tensor = tensor;
    if (options.progress && !options.progress(progress))
      raise<Cancelled>(
          detail::text("pith::load_checkpoint: cancelled after ", progress.tensors_done, " of ", progress.tensors_total, " tensors"));
  };
  detail::WeightReader<S> reader(plan, options.weights, options.check_finite.value_or(options.weights != WeightsLayout::mapped));
  const auto start = [&](const std::string& tensor) { report(tensor); };
  const auto finish = [&](std::size_t bytes) {
    ++progress.tensors_done;
    progress.bytes_done += bytes;
  };
  reader.read_all(out.config, out.weights, start, finish);
  report({});
  return out;
}

/// load_checkpoint(), ready to use.
template <class S = float> Decoder<S> load_decoder(const std::filesystem::path& folder, const LoadOptions& options = {}) {
  Checkpoint<S> checkpoint = load_checkpoint<S>(folder, options);
  return Decoder<S>(std::move(checkpoint.config), std::move(checkpoint.weights));
}

}}  // namespace pith::v0
