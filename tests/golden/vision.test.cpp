// Replays every vision-language folder of the published reference code under <golden>/vision, from the bytes of an image to logits, and
// the tables beside them: scaled images, positions of partial tiles, resolved configs, layouts of tiles.
//
// A folder is what it holds: one without the tensors of a decoder ends at the projected rows, and a golden file holds any share of what
// the reference gave.
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/vision.hpp>

#include "golden/support/golden_file.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_vision {
namespace {

fs::path vision_goldens() { return golden_folder("vision"); }

/// The bytes of a tensor [height, width, 3].
Image picture_of(const Tensor& tensor) {
  Image out{{}, tensor.extent(0), tensor.extent(1)};
  REQUIRE((tensor.shape.size() == 3 && tensor.shape[2] == 3));
  for (const Token byte : tensor.ids) out.pixels.push_back(static_cast<std::uint8_t>(byte));
  return out;
}

void check_pixels(const ImageTiles& tiles, std::span<const double> expected) {
  REQUIRE(tiles.pixels.size() == static_cast<Index>(expected.size()));
  Index different = 0;
  for (Index i = 0; i < tiles.pixels.size(); ++i) different += double(tiles.pixels.data()[i]) != expected[static_cast<std::size_t>(i)];
  CHECK(different == 0);
}

std::vector<Image> pictures_in(const fs::path& folder) {
  Golden inputs(folder / "inputs.safetensors");
  std::vector<Image> out;
  for (std::string name = "image_0"; inputs.has(name); name = "image_" + std::to_string(out.size()))
    out.push_back(picture_of(inputs.get(name)));
  return out;
}

constexpr double states_agree = 1e-4, logits_agree = 2e-4, weights_agree = 1e-5;

/// The largest difference of a matrix and a tensor of as many numbers.
double off(const Matrix<float>& ours, const Tensor& theirs) {
  return distance(Eigen::Map<const Vector<float>>(ours.data(), ours.size()),
                  std::span<const double>(theirs.values.data(), static_cast<std::size_t>(theirs.values.size())));
}

/// The images of a folder as the tower and the projector see them.
struct Seen {
  std::vector<ImageTiles> tiles;
  std::vector<ImageFeatures<float>> features;
  std::vector<ImageRows<float>> rows;
};

Seen see(const Vision<float>& vision, const std::vector<Image>& pictures, ExecutorRef executor) {
  Seen out;
  Workspace ws(vision.workspace_bytes(executor.size()), executor);
  for (const Image& picture : pictures) {
    out.tiles.push_back(vision.prepare(picture, static_cast<Index>(pictures.size())));
    out.features.push_back(vision.look(out.tiles.back(), ws, {.scores = true, .last = true}));
    out.rows.push_back(vision.project(out.tiles.back(), out.features.back(), ws));
  }
  CHECK(ws.used() == 0);
  return out;
}

/// All tiles' rows of a member of ImageFeatures, one below the other.
template <class Member> Matrix<float> stacked(const Seen& seen, Member&& member) {
  Matrix<float> out(0, 0);
  for (const auto& features : seen.features) {
    const Matrix<float> one = member(features);
    const Index before = out.rows();
    out.conservativeResize(before + one.rows(), one.cols());
    out.bottomRows(one.rows()) = one;
  }
  return out;
}

/// Hidden states of all tiles, of a tower that runs to its end.
void check_states(const Vision<float>& vision, const Seen& seen, Golden& golden) {
  VisionConfig config = vision.tower.config();
  config.features = {config.num_hidden_layers};
  config.post_norm = !config.class_token && vision.tower.weights().post_norm.size() > 0;
  const VisionTower<float> whole(config, vision.tower);
  const Index n = config.tokens(), d = config.hidden_size, wanted = golden.says("feature_hidden") ? golden.number("feature_hidden") : -1;
  Index tiles = 0, tile = 0;
  for (const ImageTiles& one : seen.tiles) tiles += one.count();
  Matrix<float> first(tiles * n, d), feature(tiles * n, d), last(tiles * n, d);
  Workspace ws(whole.workspace_bytes());
  for (const ImageTiles& one : seen.tiles)
    for (Index t = 0; t < one.count(); ++t, ++tile)
      whole.forward(one.planes(t), last.middleRows(tile * n, n), ws, {}, {}, [&](Index state, const ConstMatrixRef<float>& hidden) {
        if (state == 0) first.middleRows(tile * n, n) = hidden;
        if (state == wanted) feature.middleRows(tile * n, n) = hidden;
      });
  if (golden.has("tower_0")) CHECK(off(first, golden.get("tower_0")) < states_agree);
  if (golden.has("tower_feature")) CHECK(off(feature, golden.get("tower_feature")) < states_agree);
  if (golden.has("tower_last")) CHECK(off(last, golden.get("tower_last")) < states_agree);
}

/// What reductions choose by.
void check_taps(const Seen& seen, Golden& golden) {
  const auto check = [&](const char* name, double most, auto&& member) {
    if (golden.has(name)) CHECK(off(stacked(seen, member), golden.get(name)) < most);
  };
  check("key_mean", states_agree, [](const auto& f) { return f.key_mean; });
  check("attention_received", weights_agree, [](const auto& f) { return Matrix<float>(f.attention_received); });
  check("class_attention", weights_agree, [](const auto& f) { return f.class_attention; });
  check("class_query_last", states_agree, [](const auto& f) { return f.last_class_query; });
  check("keys_last", states_agree, [](const auto& f) { return f.last_keys; });
}

/// The prompt with every image's tokens in place of -200.
std::vector<Token> prompt_ids(const fs::path& folder, const Vision<float>& vision, const Seen& seen) {
  std::ifstream file(folder / "tokens.json");
  const nlohmann::json tokens = nlohmann::json::parse(file);
  std::vector<std::vector<Token>> images;
  for (std::size_t i = 0; i < seen.rows.size(); ++i) {
    std::vector<Token>& ids = images.emplace_back();
    for (const std::string& piece : image_text(vision.spec, seen.tiles[i], seen.rows[i])) ids.push_back(tokens.at(piece).get<Token>());
  }
  return expand_images(Golden(folder / "inputs.safetensors").ids("prompt_ids"), -200, images);
}

/// Logits of every token behind which no earlier one sees, read in pieces, then of a greedy answer.
void check_logits(const Decoder<float>& decoder, const VisionPrompt<float>& prompt, Golden& golden, ExecutorRef executor) {
  const Tensor logits = golden.get("logits");
  const std::vector<Token> answer = golden.ids("greedy_ids");
  golden.get("greedy_margin");
  const Index n = prompt.embeddings.rows();
  auto session = decoder.start(Dense{}, {.max_prompt = n, .executor = executor});
  REQUIRE(logits.extent(0) == n);
  for (Index first = 0, end = 0; first < n; first = end) {
    Position furthest = static_cast<Position>(first);
    for (end = first; end < n && end <= furthest; ++end)
      if (!prompt.sight.empty()) furthest = std::max(furthest, prompt.sight[static_cast<std::size_t>(end)]);
    std::vector<Position> sight;
    for (Index t = first; t < end && !prompt.sight.empty(); ++t)
      sight.push_back(prompt.sight[static_cast<std::size_t>(t)] - static_cast<Position>(first));
    const auto kinds = std::span(prompt.kinds).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(end - first));
    const auto after = session.prefill(prompt.embeddings.middleRows(first, end - first), kinds, {.more = end < n, .sight = sight});
    CHECK(distance(after.row(0), logits.row({end - 1})) < logits_agree);
  }
  auto whole = decoder.start(Dense{}, {.max_prompt = n, .executor = executor});
  Vector<float> next = whole.prefill(prompt.embeddings, prompt.kinds, prompt.options()).row(0).transpose();
  CHECK(distance(next, logits.row({n - 1})) < logits_agree);
  for (const Token expected : answer) {
    Index best = 0;
    next.maxCoeff(&best);
    CHECK(best == expected);
    next = whole.decode(static_cast<Token>(best)).row(0).transpose();
  }
}

/// Whether a folder holds its decoder, or was left only what speaks of images.
bool holds_decoder(const fs::path& folder) {
  const Safetensors file = Safetensors::map(folder / "model.safetensors");
  for (const TensorInfo& tensor : file.tensors())
    if (tensor.name.ends_with("embed_tokens.weight")) return true;
  return false;
}

/// A folder from images to logits. Returns whether there were logits.
bool check_folder(const fs::path& folder, const fs::path& model, ExecutorRef executor) {
  INFO(model.string());
  const Vision<float> vision = load_vision(model, {.recipe = fs::relative(folder / "preprocessor_config.json", model).string()});
  CHECK(vision.ignored.empty());
  const std::vector<Image> pictures = pictures_in(folder);
  Golden golden(folder / "golden.safetensors");
  if (golden.has("pixel_values")) golden.get("pixel_values");  // checked above
  const Seen seen = see(vision, pictures, executor);
  check_states(vision, seen, golden);
  check_taps(seen, golden);
  Matrix<float> rows(0, 0);
  for (const ImageRows<float>& one : seen.rows) {
    rows.conservativeResize(rows.rows() + one.rows.rows(), one.rows.cols());
    rows.bottomRows(one.rows.rows()) = one.rows;
  }
  CHECK(off(rows, golden.get("image_rows")) < states_agree);
  const std::vector<Token> ids = prompt_ids(folder, vision, seen);
  CHECK(ids == golden.ids("input_ids"));
  const std::vector<Token> kinds = golden.ids("kinds");
  if (!holds_decoder(model)) {
    golden.done();
    return false;
  }
  const Decoder<float> decoder = load_decoder(model);
  const VisionPrompt<float> prompt = vision_prompt<float>(vision.spec, decoder.weights().embed_tokens, ids, seen.rows);
  for (std::size_t t = 0; t < kinds.size(); ++t) CHECK((prompt.kinds[t] == TokenKind::image) == (kinds[t] == 1));
  check_logits(decoder, prompt, golden, executor);
  golden.done();
  return true;
}

}  // namespace

TEST_CASE("golden.vision: images scaled by every filter, byte for byte", "[golden]") {
  Golden golden(vision_goldens() / "resize" / "resize.safetensors");
  const std::map<std::string, ImageFilter> filters{
      {"bilinear", ImageFilter::bilinear}, {"bicubic", ImageFilter::bicubic}, {"lanczos", ImageFilter::lanczos}};
  int scaled = 0;
  for (const std::string& name : golden.names()) {
    if (name.starts_with("in_")) continue;
    INFO(name);
    const std::size_t first = name.find('_');
    const Image from = picture_of(golden.get("in_" + name.substr(first + 1, 1)));
    const Image expected = picture_of(golden.get(name));
    CHECK(resize(from, {expected.height, expected.width}, filters.at(name.substr(0, first))).pixels == expected.pixels);
    ++scaled;
  }
  CHECK(scaled > 0);
}

TEST_CASE("golden.vision: pixels of every folder and recipe, bit for bit", "[golden]") {
  int recipes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(vision_goldens())) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("preprocessor_config") || !fs::exists(entry.path().parent_path() / "inputs.safetensors")) continue;
    INFO(entry.path().string());
    const std::string kind = name.substr(19, name.size() - 19 - 5);  // "" or ".pad"
    Golden golden(entry.path().parent_path() / ("golden" + kind + ".safetensors"));
    if (!golden.has("pixel_values")) continue;
    const ImageRecipe recipe = read_image_recipe(entry.path());
    const std::vector<Image> pictures = pictures_in(entry.path().parent_path());
    const Tensor pixels = golden.get("pixel_values");
    std::size_t done = 0;
    for (const Image& picture : pictures) {
      const ImageTiles tiles = recipe.prepare(picture, static_cast<Index>(pictures.size()));
      const std::size_t n = static_cast<std::size_t>(tiles.pixels.size());
      REQUIRE(done + n <= static_cast<std::size_t>(pixels.values.size()));
      check_pixels(tiles, {pixels.values.data() + done, n});
      done += n;
    }
    CHECK(done == static_cast<std::size_t>(pixels.values.size()));
    ++recipes;
  }
  CHECK(recipes > 0);
}

TEST_CASE("golden.vision: tiles that are padding in part", "[golden]") {
  const fs::path folder = vision_goldens() / "smolvlm";
  const Vision<float> vision = load_vision(folder);
  const VisionConfig& c = vision.tower.config();
  Golden golden(folder / "golden.partial.safetensors");
  const Tensor pixels = golden.get("pixel_values"), mask = golden.get("pixel_mask"), last = golden.get("tower_last");
  const Index side = c.image_size, n = c.tokens();
  REQUIRE((pixels.extent(2) == side && pixels.extent(3) == side && last.extent(1) == n));
  Workspace ws(vision.tower.workspace_bytes());
  for (Index t = 0; t < pixels.extent(0); ++t) {
    Index height = 0, width = 0;
    for (Index i = 0; i < side; ++i) {
      height += mask.id_row({t, i})[0] != 0;
      width += mask.id_row({t, 0})[static_cast<std::size_t>(i)] != 0;
    }
    const Matrix<float> planes = Eigen::Map<const Matrix<double>>(pixels.values.data() + t * 3 * side * side, 3 * side, side).cast<float>();
    const auto patches = [&](Index length) { return (length + c.patch_size - 1) / c.patch_size; };
    Matrix<float> out(n, c.feature_size());
    vision.tower.forward(planes, out, ws, {}, {.height = patches(height), .width = patches(width)});
    for (Index i = 0; i < n; ++i) CHECK(distance(out.row(i), last.row({t, i})) < states_agree);
    if (golden.has("image_rows")) {
      Matrix<float> rows(vision.rows_per_tile(), vision.projector.out());
      Workspace projecting(vision.workspace_bytes());
      vision.projector.forward(out, c.grid(), rows, projecting);
      const Tensor expected = golden.get("image_rows");
      for (Index i = 0; i < rows.rows(); ++i) CHECK(distance(rows.row(i), expected.row({t, i})) < states_agree);
    }
  }
}

TEST_CASE("golden.vision: positions of partial tiles", "[golden]") {
  Golden golden(vision_goldens() / "positions" / "positions.safetensors");
  for (const std::string& name : golden.names()) {
    INFO(name);
    long grid = 0, height = 0, width = 0;
    REQUIRE(std::sscanf(name.c_str(), "side%ld_%ldx%ld", &grid, &height, &width) == 3);
    const Tensor expected = golden.get(name);
    const std::vector<Index> positions = tile_positions(grid, {.height = height, .width = width});
    REQUIRE(positions.size() == static_cast<std::size_t>(grid * grid));
    for (Index i = 0; i < height; ++i)
      for (Index j = 0; j < width; ++j)
        CHECK(positions[static_cast<std::size_t>(i * grid + j)] == expected.id_row({i})[static_cast<std::size_t>(j)]);
  }
}

TEST_CASE("golden.vision: every folder from images to logits, under each spelling", "[golden]") {
  ThreadPool pool(2);
  int folders = 0, with_logits = 0;
  for (const auto& entry : fs::recursive_directory_iterator(vision_goldens())) {
    const fs::path folder = entry.path();
    if (!fs::exists(folder / "inputs.safetensors")) continue;
    for (const fs::path& model : {folder, folder / "v5"}) {
      if (!fs::exists(model / "model.safetensors")) continue;
      with_logits += check_folder(folder, model, folders % 2 == 0 ? ExecutorRef(serial) : ExecutorRef(pool));
      ++folders;
    }
  }
  CHECK(folders > 0);
  CHECK(with_logits > 0);
  std::printf("golden.vision: %d folders, %d with logits\n", folders, with_logits);
}

TEST_CASE("golden.vision: published configs resolve as transformers resolves them", "[golden]") {
  const auto json_of = [](const fs::path& path) {
    std::ifstream file(path);
    return nlohmann::json::parse(file);
  };
  const fs::path folder = vision_goldens() / "configs";
  const std::map<std::string, VisionActivation> activations{{"quick_gelu", VisionActivation::quick_gelu},
                                                            {"gelu_pytorch_tanh", VisionActivation::gelu_tanh}};
  const nlohmann::json all = json_of(folder / "expected.json");
  CHECK(all.size() > 0);
  for (const auto& [name, expected] : all.items()) {
    INFO(name);
    const fs::path path = folder / (name + ".config.json");
    std::ifstream file(path);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const pith::detail::JsonDocument document = pith::detail::parse_json(text, "config.json");
    const auto fields = pith::detail::read_vision_fields(pith::detail::JsonFields("config.json", document.root()));
    const VisionConfig& c = fields.tower;
    const nlohmann::json& v = expected.at("vision");
    CHECK(fields.spec.image_token == expected.at("image_token"));
    CHECK((c.hidden_size == v.at("hidden_size") && c.intermediate_size == v.at("intermediate_size")));
    CHECK((c.num_hidden_layers == v.at("num_hidden_layers") && c.num_attention_heads == v.at("num_attention_heads")));
    CHECK((c.image_size == v.at("image_size") && c.patch_size == v.at("patch_size") && c.layer_norm_eps == v.at("layer_norm_eps")));
    CHECK(c.activation == activations.at(v.at("hidden_act")));
    const DecoderConfig decoder = parse_config(text, "config.json");
    const nlohmann::json& t = expected.at("text");
    CHECK((decoder.hidden_size == t.at("hidden_size") && decoder.num_hidden_layers == t.at("num_hidden_layers")));
    CHECK((decoder.num_attention_heads == t.at("num_attention_heads") && decoder.head_dim == t.at("head_dim")));
    CHECK(decoder.tie_word_embeddings == t.at("tie_word_embeddings"));
  }
}

TEST_CASE("golden.vision: tiles and tokens of images of many sizes", "[golden]") {
  std::ifstream file(vision_goldens() / "configs" / "layouts.json");
  const nlohmann::json all = nlohmann::json::parse(file);
  const auto size_of = [](const nlohmann::json& j) { return ImageSize{j.at(0).get<Index>(), j.at(1).get<Index>()}; };
  for (const auto& one : all.at("smolvlm")) {
    INFO(one.dump());
    const Index tile = one.at("max_image_size");
    const auto [first, second] = pith::detail::split_sizes(size_of(one.at("size")), one.at("longest_edge"), tile);
    CHECK(first == size_of(one.at("first")));
    CHECK(second == size_of(one.at("second")));
    const bool cut = second.height > tile || second.width > tile;
    CHECK((cut ? second.height / tile : 0) == one.at("rows").get<Index>());
    CHECK((cut ? second.width / tile : 0) == one.at("cols").get<Index>());
  }
  const auto& any = all.at("llava_onevision");
  std::vector<ImageSize> pinpoints;
  for (const auto& point : any.at("image_grid_pinpoints")) pinpoints.push_back(size_of(point));
  const Index side = any.at("image_size"), grid = side / any.at("patch_size").get<Index>();
  for (const auto& one : any.at("cases")) {
    INFO(one.dump());
    ImageTiles tiles;
    tiles.picture = size_of(one.at("size"));
    tiles.canvas = pith::detail::best_pinpoint(tiles.picture, pinpoints);
    CHECK(tiles.canvas == size_of(one.at("best")));
    tiles.rows = tiles.canvas.height / side, tiles.cols = tiles.canvas.width / side;
    const ImageSize part = pith::detail::any_resolution_part(tiles, grid, 9).scaled;
    CHECK(grid * grid + part.height * (part.width + 1) == one.at("image_tokens").get<Index>());
  }
}

TEST_CASE("golden.vision: VisionZip and DivPrune from the tower to logits", "[golden]") {
  const fs::path folder = vision_goldens() / "llava-clip";
  const Vision<float> vision = load_vision(folder);
  const Decoder<float> decoder = load_decoder(folder);
  const Seen seen = see(vision, pictures_in(folder), serial);
  const std::vector<Token> ids = prompt_ids(folder, vision, seen);
  Golden golden(folder / "golden.reduced.safetensors");
  Workspace ws(vision.workspace_bytes());
  const auto reduced = [&](ImageReduction reduction, const ReduceOptions& options) {
    return std::vector<ImageRows<float>>{reduce_image(vision, seen.tiles[0], seen.features[0], reduction, options, ws)};
  };
  const auto check_prompt = [&](const std::string& name, const std::vector<ImageRows<float>>& rows) {
    const VisionPrompt<float> prompt = vision_prompt<float>(vision.spec, decoder.weights().embed_tokens, ids, rows);
    const Tensor logits = golden.get(name + "_logits");
    REQUIRE(logits.extent(0) == prompt.embeddings.rows());
    CHECK(golden.ids(name + "_input_ids").size() == static_cast<std::size_t>(prompt.embeddings.rows()));
    auto session = decoder.start(Dense{}, {.max_prompt = logits.extent(0)});
    for (Index t = 0; t < logits.extent(0); ++t) {
      const auto after =
          session.prefill(prompt.embeddings.middleRows(t, 1), std::span(prompt.kinds).subspan(static_cast<std::size_t>(t), 1),
                          {.more = t + 1 < logits.extent(0)});
      CHECK(distance(after.row(0), logits.row({t})) < logits_agree);
    }
  };
  // the tokens whose rows are left: of merged rows the token that stayed comes first
  const auto zipped = reduced(ImageReduction::visionzip, {.keep = 11, .contextual = 3});
  CHECK(off(zipped[0].rows, golden.get("visionzip_rows")) < states_agree);
  for (const Token token : golden.ids("visionzip_dominant"))
    if (token > 0) CHECK(zipped[0].row_of[static_cast<std::size_t>(token - 1)] >= 1);
  for (const Token token : golden.ids("visionzip_contextual")) CHECK(zipped[0].row_of[static_cast<std::size_t>(token - 1)] >= 8);
  check_prompt("visionzip", zipped);
  const auto diverse = reduced(ImageReduction::divprune, {.keep = 9});
  std::vector<Token> picked;
  for (std::size_t t = 0; t < diverse[0].row_of.size(); ++t)
    if (diverse[0].row_of[t] >= 0) picked.push_back(static_cast<Token>(t));
  CHECK(picked == golden.ids("divprune_picked"));
  check_prompt("divprune", diverse);
  golden.done();
}

}  // namespace golden_vision
