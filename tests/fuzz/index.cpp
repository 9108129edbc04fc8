// A sharded checkpoint, some of whose files the input replaces: refused, or a decoder that reads and writes text.
#include <array>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "fuzz/fuzz.hpp"
#include "io/tiny_checkpoint.hpp"

namespace pith_fuzz {
namespace {

constexpr std::string_view index_name = "model.safetensors.index.json";
constexpr std::array shards{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};

/// The folder as it is without an input, file by file.
struct SoundFolder {
  std::filesystem::path folder = scratch() / "index";
  std::vector<std::pair<std::string, std::string>> files;

  SoundFolder() {
    std::filesystem::create_directory(folder);
    const pith_test::TempFolder made;
    const pith_test::TinyCheckpoint checkpoint;
    const auto in_first = [](const std::string& tensor) { return tensor < "model.layers.1"; };
    checkpoint.write(made, in_first, shards[0]);
    checkpoint.write(
        made, [&](const std::string& tensor) { return !in_first(tensor); }, shards[1]);
    std::string index = R"({"metadata":{"total_size":1},"weight_map":{)";
    for (const auto& [name, values] : checkpoint.tensors)
      index += (index.back() == '{' ? "\"" : ",\"") + name + "\":\"" + shards[in_first(name) ? 0 : 1] + "\"";
    files = {{"config.json", checkpoint.config},
             {shards[0], made.read(shards[0])},
             {shards[1], made.read(shards[1])},
             {std::string(index_name), index + "}}"}};
    reset();
  }

  void reset() const {
    std::error_code ignored;
    for (const char* extra : {"model.safetensors", "generation_config.json"}) std::filesystem::remove(folder / extra, ignored);
    for (const auto& [name, text] : files) write_file(folder / name, text);
  }
};

void use(const pith::Decoder<float>& decoder) {
  attempt([&] {
    auto session = decoder.start(pith::Dense{}, {.max_prompt = 4, .max_tokens = 8, .max_draft = 0});
    const std::array<pith::Token, 3> prompt{0, 1, 2};
    session.prefill(prompt);
    demand(session.decode(pith::Token{3}).cols() == decoder.vocab_size(), "logits are those of the vocabulary");
  });
}

}  // namespace

void run_index(Bytes bytes) {
  static const SoundFolder sound;
  for_files(bytes, index_name, [&](std::string_view name, std::string_view text) {
    for (const std::string_view known :
         {std::string_view("config.json"), index_name, std::string_view(shards[0]), std::string_view(shards[1]),
          std::string_view("model.safetensors"), std::string_view("generation_config.json")})
      if (name == known) write_file(sound.folder / name, text);
  });
  for (const auto layout : {pith::WeightsLayout::packed, pith::WeightsLayout::mapped}) {
    const Outcome outcome = attempt([&] { use(pith::load_decoder<float>(sound.folder, {.weights = layout})); });
    demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::unsupported || outcome == Outcome::memory,
           "a checkpoint is refused as a file");
  }
  sound.reset();
}

}  // namespace pith_fuzz
