// A config.json, and a generation_config.json behind a line "=== generation_config.json": refused, or a configuration that a decoder can
// be built from.
#include <string>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/generation_config.hpp>

#include "fuzz/fuzz.hpp"

namespace pith_fuzz {

void run_config(Bytes bytes) {
  const std::filesystem::path folder = scratch() / "config";
  static const bool made = std::filesystem::create_directory(folder);
  demand(made, "the scratch folder takes folders");
  write_file(folder / "config.json", "{}");
  std::error_code ignored;
  std::filesystem::remove(folder / "generation_config.json", ignored);
  for_files(bytes, "config.json", [&](std::string_view name, std::string_view text) {
    if (name == "config.json" || name == "generation_config.json") write_file(folder / name, text);
  });

  pith::DecoderConfig config;
  const Outcome outcome = attempt([&] {
    std::vector<std::string> notes;
    config = pith::read_config(folder / "config.json", &notes);
    pith::use_generation_config(folder, config, notes);
  });
  demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::unsupported || outcome == Outcome::memory,
         "a configuration is refused as a file");
  if (outcome != Outcome::done) return;
  if (config.vocab_size == 0) config.vocab_size = 5;  // the embedding table says
  demand(attempt([&] { config.check(); }) == Outcome::done, "a configuration that was read can be built from");
  demand(attempt([&] { config.attention().check("input"); }) == Outcome::done, "a configuration that was read has a shape");
  for (std::size_t i = 0; i < config.ropes.size(); ++i) {
    const Outcome rope = attempt([&] { pith::Rope<float> of(config.rope(static_cast<pith::Index>(i))); });
    demand(rope == Outcome::done || rope == Outcome::shape, "a configuration that was read has ropes, or numbers that give none");
  }
  for (pith::Index layer = 0; layer < config.num_hidden_layers; ++layer) demand(config.window(layer) >= 0, "a window is no less than 0");
}

}  // namespace pith_fuzz
