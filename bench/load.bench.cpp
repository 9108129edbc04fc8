// What comes before the first token: the header of a file with many tensors, and whole folders, which lie in the system's cache.
//
// header      parsing and checking a header of 100,000 tensors; of_json: time for nlohmann_json to parse the same text, over it
// load        a random checkpoint into packed weights; GB/s of the file; validating: percent that looking for NaN and infinity adds;
//             of_read: time to read the file's bytes once with read(), over the time taken
// rel_err     of the weights against the file's numbers; a wrong result is not reported
#include <benchmark/benchmark.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include <pith/io.hpp>

#include "support/measure.hpp"
#include "support/random_checkpoint.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

struct Tensors {
  Index count;
  std::string text() const { return "/tensors:" + std::to_string(count); }
};

void header(benchmark::State& state, Tensors c) {
  std::string json = "{";
  for (Index i = 0; i < c.count; ++i)  // names in no order
    json += (i == 0 ? "\"model.layers." : ",\"model.layers.") + std::to_string(i * 7919 % c.count) +
            R"(.weight":{"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  json += "}";
  std::vector<std::byte> file(sizeof(std::uint64_t) + json.size() + static_cast<std::size_t>(c.count));
  const std::uint64_t length = json.size();
  std::memcpy(file.data(), &length, sizeof(length));
  std::memcpy(file.data() + sizeof(length), json.data(), json.size());
  Samples ours, theirs;
  for (auto _ : state) {
    std::vector<std::byte> copy = file;
    Index found = 0;
    const double seconds = seconds_of([&] { found = static_cast<Index>(Safetensors::parse(std::move(copy)).tensors().size()); });
    if (found != c.count) return state.SkipWithError("wrong result");
    state.SetIterationTime(seconds);
    ours.add(seconds);
    theirs.add(seconds_of([&] { keep(nlohmann::json::parse(json)); }));
  }
  state.counters["of_json"] = theirs.median() / ours.median();
}

struct File {
  DType dtype;
  WeightsLayout layout;
  std::string text() const {
    return std::string("/file:") + (dtype == DType::f32 ? "f32" : "bf16") + (layout == WeightsLayout::int8 ? "/as:int8" : "/as:packed");
  }
};

void load(benchmark::State& state, File c) {
  DecoderConfig config;
  config.vocab_size = 8192;
  config.hidden_size = 1024;
  config.intermediate_size = 4096;
  config.num_hidden_layers = 4;
  config.num_attention_heads = config.num_key_value_heads = 16;
  config.head_dim = 64;
  config.max_position_embeddings = 512;
  const TemporaryFolder folder(std::filesystem::temp_directory_path());
  if (c.dtype == DType::f32) {
    write_random_checkpoint<float>(folder.path(), config);
  } else {
    write_random_checkpoint<bfloat16>(folder.path(), config);
  }
  const std::filesystem::path file = folder.path() / "model.safetensors";
  const auto load_once = [&](bool check) { return load_checkpoint(folder.path(), {.weights = c.layout, .check_finite = check}); };

  const std::string name = "model.layers.3.mlp.down_proj.weight";
  const Matrix<float> stored = Safetensors::map(file).load_matrix<float>(name);
  Matrix<float> loaded(stored.rows(), stored.cols());
  load_once(true).weights.layers[3].down_proj.copy_weight(0, loaded);
  const double error = rel_err(loaded, stored.cast<double>());
  if (!(error <= (c.layout == WeightsLayout::int8 ? 1e-2 : 0))) return state.SkipWithError("wrong result");

  std::vector<char> buffer(std::size_t(4) << 20);
  Samples checked, unchecked, reading;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { keep(load_once(true)); });
    state.SetIterationTime(seconds);
    checked.add(seconds);
    unchecked.add(seconds_of([&] { keep(load_once(false)); }));
    reading.add(seconds_of([&] {
      std::ifstream in(file, std::ios::binary);
      while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()))) keep(buffer);
    }));
  }
  state.counters["GB/s"] = static_cast<double>(std::filesystem::file_size(file)) / checked.median() * 1e-9;
  state.counters["validating"] = 100 * (checked.median() / unchecked.median() - 1);
  state.counters["of_read"] = reading.median() / checked.median();
  state.counters["rel_err"] = error;
}

const bool registered = [] {
  add("header", header, Tensors{100'000});
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::int8}) add("load", load, File{dtype, layout});
  return true;
}();

}  // namespace
