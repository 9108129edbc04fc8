#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/io/peft_type.hpp>
#include <pith/io/stored_module.hpp>
#include <pith/io/weights_layout.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/model/config.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/session.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/compute.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/model_adapter.hpp>
#include <pith/vision/vision_model.hpp>

// What reads folders and files, declared without what it takes to read them: enough for a program that links pith::prebuilt.
namespace pith { inline namespace v0 {

/// Progress of a load, reported before each tensor and once at the end.
struct LoadProgress {
  Index tensors_done = 0, tensors_total = 0;
  std::size_t bytes_done = 0, bytes_total = 0;
  std::string_view tensor = {};  ///< the next tensor; empty at the end
};

struct LoadOptions {
  WeightsLayout weights = WeightsLayout::packed;
  /// bf16: bfloat16 projections round what they multiply (Bf16Linear), under `packed`. int15: 8-bit projections and heads do (Int8Linear),
  /// under `int8` and `int4`. Float decoders only. Modules of other weights in the same folder are computed as ever.
  Compute compute = Compute::exact;
  std::string config = "config.json";     ///< the configuration's file name inside the folder
  std::optional<bool> check_finite = {};  ///< refuse NaN and infinite weights; unset: yes, but not if mapped, which reads no data
  std::function<bool(const LoadProgress&)> progress = {};  ///< returns false to cancel
  ExecutorRef executor =
      {};  ///< its workers check, round and pack; they also touch the memory first. The weights' bits do not depend on it
};

/// A loaded checkpoint: config and weights, from which a Decoder is made.
template <class S = float> struct Checkpoint {
  DecoderConfig config;
  DecoderWeights<S> weights;
  /// Contents of the folder that the model does not use, sorted, each worth a warning: tensors by name, anything else as
  /// "file: what, and why".
  std::vector<std::string> ignored;
  /// How the folder stores each projection and the head, in order of use.
  std::vector<StoredModule> modules;
};

/// How load_adapter() keeps what it reads.
struct AdapterOptions {
  FactorType factors = FactorType::as_stored;
};

/// Options of load_vision().
struct VisionLoadOptions {
  WeightsLayout weights = WeightsLayout::packed;
  std::string config = "config.json";  ///< the configuration's file name inside the folder
  std::string recipe = {};             ///< the processor's; empty: preprocessor_config.json, else processor_config.json
  bool check_finite = true;            ///< refuse NaN and infinite weights
  ExecutorRef executor = serial;       ///< its workers check, round and pack weights
};

// Described where they are defined: checkpoint.hpp, vision.hpp, linear_file.hpp, peft_adapter.hpp, session_file.hpp.
template <class S = float> Checkpoint<S> load_checkpoint(const std::filesystem::path& folder, const LoadOptions& options = {});
template <class S = float> Decoder<S> load_decoder(const std::filesystem::path& folder, const LoadOptions& options = {});
template <class S = float> Vision<S> load_vision(const std::filesystem::path& folder, const VisionLoadOptions& options = {});
template <class S = float> Linear<S> load_linear(const std::filesystem::path& path, const std::string& prefix = "");
template <class S>
ModelAdapter<S> load_adapter(const std::filesystem::path& folder, const Decoder<S>& decoder, AdapterOptions options = {});
template <KvStorage T = float> KvPrefix load_prefix(const std::filesystem::path& folder, const Decoder<arithmetic_t<T>>& decoder);
template <class S, KvStorage T> void save_session(const Session<S, T>& session, const std::filesystem::path& path);
template <class S, KvStorage T> void load_session(Session<S, T>& session, const std::filesystem::path& path);

}}  // namespace pith::v0
