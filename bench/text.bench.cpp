// Text in and out, on one thread.
//
// encode, decode   English through the tokenizer of each kind; MB/s of text; of_read: time to add up its bytes, over the time taken
// words            a text without word breaks; MB/s
// load             a tokenizer.json of 150,000 tokens; MB/s of the file; of_json: time for nlohmann_json to parse it into a tree, over it
//
// A text that does not come back is no result.
#include <benchmark/benchmark.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <pith/text.hpp>

#include "support/measure.hpp"
#include "support/random_checkpoint.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
const std::filesystem::path models = PITH_MODELS_DIR;
std::filesystem::path kind_folder(const std::string& kind) { return models.parent_path().parent_path() / "tests/golden/text" / kind; }

std::string english() {
  const std::string once = file_text(models / "tiny-prose/heldout.txt");
  std::string out;
  while (out.size() < 1'000'000) out += once;
  return out;
}

struct Kind {
  std::string kind;
  std::string text() const { return "/kind:" + kind; }
};

enum class Way { encode, decode };

// Times one way through `text`, which must come back whole.
void time_text(benchmark::State& state, const Kind& c, const std::string& text, Way way) {
  const Tokenizer tokenizer = load_tokenizer(kind_folder(c.kind));
  const std::vector<Token> ids = tokenizer.encode(text, {.add_special = false});
  if (tokenizer.decode(ids) != text) return state.SkipWithError("wrong result");
  Samples ours, reading;
  for (auto _ : state) {
    const double seconds =
        way == Way::encode ? seconds_of([&] { keep(tokenizer.encode(text)); }) : seconds_of([&] { keep(tokenizer.decode(ids)); });
    state.SetIterationTime(seconds);
    ours.add(seconds);
    reading.add(seconds_of([&] { keep(std::accumulate(text.begin(), text.end(), 0u)); }));
  }
  state.counters["MB/s"] = static_cast<double>(text.size()) / ours.median() * 1e-6;
  state.counters["of_read"] = reading.median() / ours.median();
}

void encode(benchmark::State& state, Kind c) { time_text(state, c, english(), Way::encode); }
void decode(benchmark::State& state, Kind c) { time_text(state, c, english(), Way::decode); }
void words(benchmark::State& state, Kind c) {
  std::string text;
  while (text.size() < 1'000'000) text += "the";
  time_text(state, c, text, Way::encode);
}

struct Size {
  std::size_t tokens;
  std::string text() const { return "/tokens:" + std::to_string(tokens); }
};

// A byte-level model whose tokens are joined from earlier ones at random, as training joins them.
std::string large_tokenizer(std::size_t size) {
  std::mt19937 rng(1);
  std::vector<std::string> tokens;
  std::unordered_set<std::string> known;
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    tokens.push_back(detail::ByteMap::table().names({&byte, 1}));
    known.insert(tokens.back());
  }
  nlohmann::json merges = nlohmann::json::array();
  while (tokens.size() < size) {
    const auto pick = [&](std::size_t below) -> const std::string& { return tokens[rng() % below]; };
    const std::string left = pick(tokens.size()), right = pick(256 + tokens.size() / 16);
    if (left.size() + right.size() > 16 || !known.insert(left + right).second) continue;
    tokens.push_back(left + right);
    merges.push_back({left, right});
  }
  nlohmann::json vocab = nlohmann::json::object();
  for (std::size_t i = 0; i < tokens.size(); ++i) vocab[tokens[i]] = i;
  return nlohmann::json{{"version", "1.0"},
                        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                        {"decoder", {{"type", "ByteLevel"}}},
                        {"model", {{"type", "BPE"}, {"vocab", std::move(vocab)}, {"merges", std::move(merges)}}}}
      .dump(1);
}

void load(benchmark::State& state, Size c) {
  const TemporaryFolder folder(std::filesystem::temp_directory_path());
  const std::string json = large_tokenizer(c.tokens);
  std::ofstream(folder.path() / "tokenizer.json", std::ios::binary) << json;
  if (load_tokenizer(folder.path()).size() != static_cast<Index>(c.tokens)) return state.SkipWithError("wrong result");
  Samples ours, theirs;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { keep(load_tokenizer(folder.path())); });
    state.SetIterationTime(seconds);
    ours.add(seconds);
    theirs.add(seconds_of([&] { keep(nlohmann::json::parse(json)); }));
  }
  state.counters["MB/s"] = static_cast<double>(json.size()) / ours.median() * 1e-6;
  state.counters["of_json"] = theirs.median() / ours.median();
}

const bool registered = [] {
  for (const char* kind : {"gpt2", "qwen", "llama3", "o200k", "tekken", "smollm", "llama2", "mistral", "gemma"}) {
    add("encode", encode, Kind{kind});
    add("decode", decode, Kind{kind});
  }
  for (const char* kind : {"gpt2", "llama2"}) add("words", words, Kind{kind});
  add("load", load, Size{150'000});
  return true;
}();

}  // namespace
