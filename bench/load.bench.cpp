// What comes before the first token: the header of a file with many tensors, and whole folders, which lie in the system's cache.
//
// header      parsing and checking a header of 100,000 tensors; of_json: time for nlohmann_json to parse the same text, over it
// load        a random checkpoint into packed weights; GB/s of the file; validating: percent that looking for NaN and infinity adds;
//             of_read: time to read the file's bytes once with read(), over the time taken; touch: percent of the time taken that touching
//             as much new memory takes, which is the system's
// start       from nothing to the logits of a prompt of 16 tokens, packed or mapped; touch, of_read: as above
// rel_err     of the weights against the file's numbers; a wrong result is not reported
#include <benchmark/benchmark.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/prebuilt.hpp>

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
  Index threads;
  std::string text() const {
    const char* as = layout == WeightsLayout::int8     ? "/as:int8"
                     : layout == WeightsLayout::int4   ? "/as:int4"
                     : layout == WeightsLayout::mapped ? "/as:mapped"
                                                       : "/as:packed";
    return std::string("/file:") + (dtype == DType::f32 ? "f32" : "bf16") + as + "/threads:" + std::to_string(threads);
  }
};

/// Bytes of each block of weights.
std::vector<std::size_t> blocks_of(const Checkpoint<float>& loaded) {
  std::vector<std::size_t> blocks{loaded.weights.embed_tokens.bytes(), loaded.weights.lm_head.bytes()};
  for (const LayerWeights<float>& layer : loaded.weights.layers)
    detail::for_each_projection(layer, loaded.config,
                                [&](const char*, const AnyLinear<float>& linear, Index, Index) { blocks.push_back(linear.bytes()); });
  return blocks;
}

/// Writes to each page of new blocks of memory, as packing does.
void first_touch(const std::vector<std::size_t>& blocks, ExecutorRef executor) {
  constexpr std::size_t page = 4096;
  std::vector<detail::Bulk> memory;
  for (const std::size_t bytes : blocks) {
    memory.push_back(detail::allocate_bulk(bytes));
    const auto pages = static_cast<Index>((bytes + page - 1) / page);
    executor(executor.size(), [&](Index worker) {
      for (Index p = pages * worker / executor.size(); p < pages * (worker + 1) / executor.size(); ++p)
        memory.back()[static_cast<std::size_t>(p) * page] = std::byte{1};
    });
  }
  keep(memory);
}

DecoderConfig shape_to_load() {
  DecoderConfig config;
  config.vocab_size = 8192;
  config.hidden_size = 1024;
  config.intermediate_size = 4096;
  config.num_hidden_layers = 4;
  config.num_attention_heads = config.num_key_value_heads = 16;
  config.head_dim = 64;
  config.max_position_embeddings = 512;
  return config;
}

double seconds_of_reading(const std::filesystem::path& file, std::vector<char>& buffer) {
  return seconds_of([&] {
    std::ifstream in(file, std::ios::binary);
    while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()))) keep(buffer);
  });
}

void load(benchmark::State& state, File c) {
  const DecoderConfig config = shape_to_load();
  const TemporaryFolder folder(std::filesystem::temp_directory_path());
  if (c.dtype == DType::f32) {
    write_random_checkpoint<float>(folder.path(), config);
  } else {
    write_random_checkpoint<bfloat16>(folder.path(), config);
  }
  const std::filesystem::path file = folder.path() / "model.safetensors";
  ThreadPool pool(c.threads);
  const auto load_once = [&](bool check) {
    return load_checkpoint(folder.path(), {.weights = c.layout, .check_finite = check, .executor = pool});
  };

  const std::string name = "model.layers.3.mlp.down_proj.weight";
  const Matrix<float> stored = Safetensors::map(file).load_matrix<float>(name);
  Matrix<float> loaded(stored.rows(), stored.cols());
  const Checkpoint<float> once = load_once(true);
  once.weights.layers[3].down_proj.copy_weight(0, loaded);
  const double error = rel_err(loaded, stored.cast<double>());
  if (!(error <= (c.layout == WeightsLayout::int8 ? 1e-2 : c.layout == WeightsLayout::int4 ? .1 : 0)))
    return state.SkipWithError("wrong result");

  std::vector<char> buffer(std::size_t(4) << 20);
  Samples checked, unchecked, reading, touching;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { keep(load_once(true)); });
    state.SetIterationTime(seconds);
    checked.add(seconds);
    unchecked.add(seconds_of([&] { keep(load_once(false)); }));
    reading.add(seconds_of_reading(file, buffer));
    touching.add(seconds_of([&] { first_touch(blocks_of(once), pool); }));
  }
  state.counters["GB/s"] = static_cast<double>(std::filesystem::file_size(file)) / checked.median() * 1e-9;
  state.counters["validating"] = 100 * (checked.median() / unchecked.median() - 1);
  state.counters["of_read"] = reading.median() / checked.median();
  state.counters["touch"] = 100 * touching.median() / checked.median();
  state.counters["rel_err"] = error;
}

void start(benchmark::State& state, File c) {
  const TemporaryFolder folder(std::filesystem::temp_directory_path());
  write_random_checkpoint<bfloat16>(folder.path(), shape_to_load());
  const std::filesystem::path file = folder.path() / "model.safetensors";
  const std::vector<Token> prompt{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3};
  ThreadPool pool(c.threads);
  Matrix<float> logits;
  const auto first_logits = [&](WeightsLayout layout) {
    const Decoder<float> decoder = load_decoder(folder.path(), {.weights = layout, .executor = pool});
    auto session = decoder.start(Dense{}, {.executor = pool});
    return Matrix<float>(session.prefill(prompt));
  };
  const Matrix<float> expected = first_logits(WeightsLayout::packed);
  const std::vector<std::size_t> blocks = blocks_of(load_checkpoint(folder.path()));
  std::vector<char> buffer(std::size_t(4) << 20);
  Samples taken, reading, touching;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { logits = first_logits(c.layout); });
    if (logits != expected) return state.SkipWithError("wrong result");
    state.SetIterationTime(seconds);
    taken.add(seconds);
    reading.add(seconds_of_reading(file, buffer));
    touching.add(c.layout == WeightsLayout::mapped ? 0 : seconds_of([&] { first_touch(blocks, pool); }));
  }
  state.counters["of_read"] = reading.median() / taken.median();
  state.counters["touch"] = 100 * touching.median() / taken.median();
}

const bool registered = [] {
  add("header", header, Tensors{100'000});
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::int8}) add("load", load, File{dtype, layout, 1});
  for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::int8, WeightsLayout::int4})
    add("load", load, File{DType::bf16, layout, 2});
  for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::mapped})
    for (const Index threads : {1, 2}) add("start", start, File{DType::bf16, layout, threads});
  return true;
}();

}  // namespace
