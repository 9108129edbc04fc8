// A config.json, and a generation_config.json behind a line "=== generation_config.json": refused, or a configuration that a decoder can
// be built from. The same config's tower, and a preprocessor_config.json: refused, or a tower that can be built and rules that pictures can
// be prepared by.
#include <algorithm>
#include <string>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/generation_config.hpp>
#include <pith/io/vision.hpp>

#include "fuzz/fuzz.hpp"

namespace pith_fuzz {

namespace {

void run_tower(const std::filesystem::path& path) {
  pith::detail::VisionFields fields;
  const Outcome outcome = attempt([&] {
    const pith::detail::FileBytes file = pith::detail::FileBytes::read(path, pith::max_config_bytes);
    const pith::detail::JsonDocument document = pith::detail::parse_json(file.text(), file.name());
    fields = pith::detail::read_vision_fields(pith::detail::JsonFields(file.name(), document.root()));
    pith::detail::check_config_file(path, [&] { fields.tower.check(); });
  });
  demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::unsupported || outcome == Outcome::memory,
         "a tower's configuration is refused as a file");
  if (outcome == Outcome::done) demand(fields.tower.grid() % fields.block == 0, "a tower that was read has whole blocks of patches");
}

void run_recipe(const std::filesystem::path& path) {
  pith::ImageRecipe recipe;
  const Outcome outcome = attempt([&] { recipe = pith::read_image_recipe(path); });
  demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::unsupported || outcome == Outcome::memory,
         "rules for pictures are refused as a file");
  if (outcome != Outcome::done) return;
  demand(attempt([&] { recipe.check(); }) == Outcome::done, "rules that were read hold");
  pith::Index longest =
      std::max({recipe.size.height, recipe.size.width, recipe.crop.height, recipe.crop.width, recipe.shortest_edge, recipe.longest_edge});
  for (const pith::ImageSize& point : recipe.pinpoints) longest = std::max({longest, point.height, point.width});
  if (longest > 256) return;
  const std::vector<std::uint8_t> pixels(3 * 5 * 7, 90);
  pith::ImageTiles tiles;
  const Outcome prepared = attempt([&] { tiles = recipe.prepare({pixels, 5, 7}); });
  demand(prepared == Outcome::done || prepared == Outcome::shape || prepared == Outcome::memory, "rules that were read prepare a picture");
  if (prepared == Outcome::done) demand(tiles.count() >= std::max<pith::Index>(1, tiles.rows * tiles.cols), "a picture has its tiles");
}

}  // namespace

void run_config(Bytes bytes) {
  const std::filesystem::path folder = scratch() / "config";
  static const bool made = std::filesystem::create_directory(folder);
  demand(made, "the scratch folder takes folders");
  write_file(folder / "config.json", "{}");
  std::error_code ignored;
  for (const char* name : {"generation_config.json", "preprocessor_config.json"}) std::filesystem::remove(folder / name, ignored);
  for_files(bytes, "config.json", [&](std::string_view name, std::string_view text) {
    if (name == "config.json" || name == "generation_config.json" || name == "preprocessor_config.json") write_file(folder / name, text);
  });
  run_tower(folder / "config.json");
  if (std::filesystem::exists(folder / "preprocessor_config.json")) run_recipe(folder / "preprocessor_config.json");

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
