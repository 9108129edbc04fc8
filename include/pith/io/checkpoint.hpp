#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/detail/checkpoint_fingerprint.hpp>
#include <pith/io/detail/checkpoint_plan.hpp>
#include <pith/io/detail/other_formats.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/weight_reader.hpp>
#include <pith/io/generation_config.hpp>
#include <pith/io/load.hpp>
#include <pith/io/stored_module.hpp>
#include <pith/model/config.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/bf16.hpp>

// Loads an unconverted Hugging Face folder. LoadOptions and what a load returns: io/load.hpp.
namespace pith { inline namespace v0 {

namespace detail {

/// Refuses a path that is no folder, and a folder of another format, which would lack a config.json.
inline void check_checkpoint_folder(const std::filesystem::path& folder, const std::string& config) {
  if (std::filesystem::is_regular_file(status_of(folder)))
    raise<FormatError>("pith: ", in_quotes(folder.string()), " is a file, expected the folder that holds ", config,
                       " and model.safetensors",
                       folder.extension() == ".gguf" ? "; files of llama.cpp are not supported: use the folder it was made from" : "");
  if (present(folder / config)) return;
  if (const std::string shown = shown_format(folder, other_checkpoints); !shown.empty())
    raise<FormatError>("pith: ", in_quotes(folder.string()), " holds no ", config, shown);
}

/// Refuses an unusable config, naming its file, before any weight is read.
template <class Check> void check_config_file(const std::filesystem::path& path, const Check& check) {
  try {
    check();
  } catch (const ShapeError& error) {
    raise<FormatError>("pith: ", in_quotes(path.string()), ": ", error.what());
  }
}

}  // namespace detail

/// Reads an unconverted Hugging Face folder of a known family; of a model of several kinds of input, its decoder.
///
/// Checks names, shapes, types and biases against config.json before it reads anything large. F64, F32, F16 and BF16 may be mixed. Refuses
/// a tensor inside a layer that the family does not have; ignores and lists whole layers beyond num_hidden_layers and towers of other
/// kinds. Uses and lists a bias that the config does not declare. generation_config.json decides eos_token_id. Projections that the folder
/// keeps in one tensor are views of its rows; norms that it keeps as w - 1 are loaded as w.
/// Of a quantised folder, codes of four bits and bytes with a scale for each output keep their codes in any layout; other codes,
/// also of 8 bits with a scale for each group of inputs or with zeros, are widened to float, exactly, or rounded under `int8` and `int4`.
/// Under `mapped`, a misaligned tensor or one of a type that S is not computed from (F64 for float; anything but F64 for double) is packed
/// instead. Norms and biases are always copied; under `int8` and `int4` they and the embedding table keep their values. With tied
/// embeddings the table is the head, even if the file holds an lm_head.
///
/// Cost     one pass over the weights when packed or int8, some 200 operations a weight more when int4; the headers only when mapped
/// Heap     packed: the weights in their own width, a tied table once as rows and once as panels; int8: one byte per weight; int4: 4.5
///          bits; codes that are widened: four bytes per weight
/// Throws   FormatError naming file, tensor, expected and found; UnsupportedError for unsupported features; Cancelled
template <class S> Checkpoint<S> load_checkpoint(const std::filesystem::path& folder, const LoadOptions& options) {
  Checkpoint<S> out;
  if constexpr (!std::is_same_v<S, float>)
    if (const std::string_view rounding = detail::rounding_name(options.weights); !rounding.empty())
      raise<UnsupportedError>("pith::load_checkpoint: ", rounding,
                              " weights are computed in float: load_decoder<float>(), or WeightsLayout::packed");
  if (options.compute == Compute::bf16 && (!std::is_same_v<S, float> || options.weights != WeightsLayout::packed))
    raise<UnsupportedError>(
        "pith::load_checkpoint: Compute::bf16 is for float decoders whose weights are packed: load_decoder<float>(), "
        "WeightsLayout::packed");
  if (options.compute == Compute::int15 &&
      (!std::is_same_v<S, float> || (options.weights != WeightsLayout::int8 && options.weights != WeightsLayout::int4)))
    raise<UnsupportedError>(
        "pith::load_checkpoint: Compute::int15 is for float decoders whose weights are rounded: load_decoder<float>(), "
        "WeightsLayout::int8 or int4");
  detail::check_checkpoint_folder(folder, options.config);
  detail::ConfigRead read = detail::read_whole_config(folder / options.config, &out.ignored);
  out.config = std::move(read.config);
  use_generation_config(folder, out.config, out.ignored);
  detail::check_config_file(folder / options.config, [&] {
    for (std::size_t i = 0; i < out.config.ropes.size(); ++i) static_cast<void>(Rope<S>(out.config.rope(static_cast<Index>(i))));
  });
  const CheckpointFiles files(folder);
  const detail::CheckpointPlan plan(files, out.config, read.quantisation);
  out.modules = plan.modules();
  detail::check_config_file(folder / options.config, [&] { out.config.check(); });
  for (const std::vector<std::string>* more : {&files.ignored(), &plan.ignored()})
    out.ignored.insert(out.ignored.end(), more->begin(), more->end());
  std::sort(out.ignored.begin(), out.ignored.end());
  out.weights.fingerprint =
      detail::fingerprint(out.config, plan, detail::text(detail::rounding_name(options.weights), detail::compute_name(options.compute)));

  LoadProgress progress{.tensors_total = static_cast<Index>(plan.tensors().size()), .bytes_total = plan.bytes()};
  const auto report = [&](std::string_view tensor) {
    progress.tensor = tensor;
    if (options.progress && !options.progress(progress))
      raise<Cancelled>("pith::load_checkpoint: cancelled after ", progress.tensors_done, " of ", progress.tensors_total, " tensors");
  };
  detail::WeightReader<S> reader(plan, options.weights, options.check_finite.value_or(options.weights != WeightsLayout::mapped),
                                 options.executor, options.compute);
  const auto start = [&](const std::string& tensor) { report(tensor); };
  const auto finish = [&](std::size_t bytes) {
    ++progress.tensors_done;
    progress.bytes_done += bytes;
  };
  reader.read_all(out.config, out.weights, start, finish);
  report({});
  return out;
}

/// load_checkpoint(), as a Decoder.
template <class S> Decoder<S> load_decoder(const std::filesystem::path& folder, const LoadOptions& options) {
  Checkpoint<S> checkpoint = load_checkpoint<S>(folder, options);
  return Decoder<S>(std::move(checkpoint.config), std::move(checkpoint.weights));
}

}}  // namespace pith::v0
