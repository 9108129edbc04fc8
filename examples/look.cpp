// A question about an image, asked of a vision-language folder: which of the image's tokens to keep, and what that saves and costs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/text.hpp>

#include "support/command_line.hpp"
#include "support/image_file.hpp"
#include "support/policy_argument.hpp"
#include "support/scenes.hpp"

using namespace pith;

namespace {

constexpr const char* usage = R"(look [FOLDER IMAGE [QUESTION]] [OPTIONS]

FOLDER is a Hugging Face folder of LLaVA, LLaVA-OneVision, SmolVLM, Idefics 3, Gemma 3 or PaliGemma, IMAGE a PNG, JPEG or PPM. Without them the
model and an image that ship with pith are used.

  --reduce NAME:ROWS   before the prompt: tome, tome-tower (inside the tower), prumerge, prumerge+, visionzip or divprune
                       keeps ROWS rows of the image                                                                        [all]
  --fastv LAYERS:ROWS  in the prompt: after LAYERS layers keeps the ROWS image rows most attended to by the last token     [off]
  --cache NAME:ROWS    after the prompt: text-prior or csp keeps ROWS rows of the prompt in each head                      [all]
  --merge NAME         what becomes of the cache's other rows: drop, averaged, pivotal, weighted, ...                      [drop]
  --tokens N           of the answer, at most                                                                              [64]
  --prompt TEXT        the model's own form, with <image> and {} for the question
  --picture FILE       writes an SVG: which tokens of the image are kept, merged and dropped                               [look.svg]
  --threads N                                                                                                              [cores])";

double since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// NAME:ROWS.
struct Choice {
  std::string name;
  Index rows = 0;
  explicit operator bool() const { return rows > 0; }

  static Choice of(const std::string& option, const std::optional<std::string>& value) {
    if (!value) return {};
    const std::size_t colon = std::min(value->find(':'), value->size());
    const std::string rows = colon < value->size() ? value->substr(colon + 1) : "";
    return {value->substr(0, colon), example::number<Index>("the number of " + option, rows, 1, 1'000'000)};
  }
};

/// A model, and how it is asked.
struct Model {
  Decoder<float> decoder;
  Vision<float> vision;
  std::optional<Tokenizer> tokenizer;  ///< none: tokens are bytes
  std::string form;                    ///< the prompt, with <image> and {}
};

/// The model that ships with pith: its tower is none, so that the projector reads patches of pixels.
Vision<float> shipped_vision(const std::filesystem::path& folder) {
  VisionConfig config{
      .hidden_size = 48, .intermediate_size = 1, .num_hidden_layers = 1, .num_attention_heads = 1, .image_size = 32, .patch_size = 4};
  config.features = {0};
  VisionWeights<float> weights;
  weights.patch = Linear<float>(Matrix<float>::Identity(48, 48));
  weights.positions = Matrix<float>::Zero(64, 48);
  Vision<float> out;
  out.tower = VisionTower<float>(config, std::move(weights));
  out.projector = Projector<float>::Kind(PlainProjector<float>{load_linear(folder / "projector.safetensors")});
  out.recipe.size = {32, 32};
  out.recipe.normalize = false;
  out.spec.model_type = "tiny-vlm";
  out.check();
  return out;
}

/// The first image of the shipped scenes.
Image shipped_picture(const example::Scene& scene) {
  Image out{std::vector<std::uint8_t>(3 * 32 * 32), 32, 32};
  for (Index y = 0; y < 32; ++y)
    for (Index x = 0; x < 32; ++x)
      for (Index c = 0; c < 3; ++c)
        out.pixels[static_cast<std::size_t>(3 * (32 * y + x) + c)] =
            static_cast<std::uint8_t>(255 * scene.patches(y / 4 * 8 + x / 4, (4 * c + y % 4) * 4 + x % 4) + .5f);
  return out;
}

/// What a published model expects around a question.
std::string form_of(const VlmSpec& spec) {
  static const std::map<std::string, std::string> forms{
      {"llava", "USER: <image>\n{} ASSISTANT:"},
      {"llava_onevision", "<|im_start|>user <image>\n{}<|im_end|><|im_start|>assistant\n"},
      {"smolvlm", "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:"},
      {"idefics3", "<|begin_of_text|>User:<image>{}<end_of_utterance>\nAssistant:"},
      {"gemma3", "<start_of_turn>user\n<image>{}<end_of_turn>\n<start_of_turn>model\n"},
      {"paligemma", "<image><bos>{}\n"}};
  return forms.at(spec.model_type);
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const std::size_t at = text.find(what);
  if (at == std::string::npos) throw example::UsageError("the prompt '" + text + "' has no " + what);
  return text.replace(at, what.size(), by);
}

/// The tokens of a prompt in which each row of the image, reduced or not, has its image token.
std::vector<Token> prompt_tokens(const Model& model, const ImageTiles& tiles, const ImageRows<float>& rows, const std::string& question) {
  std::string picture;
  const std::vector<std::string> pieces = image_text(model.vision.spec, tiles, rows);
  if (model.tokenizer) {
    for (const std::string& piece : pieces) picture += piece;
    const std::string text = replaced(replaced(model.form, "{}", question), "<image>", picture);
    return model.tokenizer->encode(text, {.add_special = text.find("<bos>") == std::string::npos});
  }
  std::vector<Token> out{0};
  out.insert(out.end(), pieces.size(), model.vision.spec.image_token);
  for (const Token byte : example::bytes_of(question)) out.push_back(byte);
  return out;
}

AnyPolicy<float> policy_of(const Choice& choice, Index prompt) {
  if (!choice) return Dense{};
  const Index rows = std::min(choice.rows, prompt), recent = std::min<Index>(4, rows);
  if (choice.name == "text-prior")
    return Protect(PromptOnly(HeavyHitter{.heavy = rows - recent, .recent = recent}), {.kind = TokenKind::text});
  if (choice.name == "csp") return Csp{.heavy = rows - rows / 2, .recent = rows / 2};
  throw example::UsageError("--cache is " + choice.name + ", expected text-prior or csp");
}

/// Draws which tokens of each tile are kept, merged and dropped.
class Drawing {
 public:
  Drawing(const Vision<float>& vision, const Image& picture, const ImageTiles& tiles, const ImageRows<float>& rows) : rows_(rows) {
    const Index grid = vision.tower.config().grid() / vision.projector.block();
    if (!rows.newlines.empty() && tiles.rows > 0) {  // the whole image, then its lines
      add(picture, grid, grid, 0, grid);
      const Index width = rows.newlines.front() - grid * grid;
      add(picture, static_cast<Index>(rows.newlines.size()), width, grid * grid, width + 1);
    } else {
      const Index extra = rows.runs.front().tokens - grid * grid;  // a class token before, a newline behind
      Index token = extra > 0 && rows.newlines.empty() ? extra : 0;
      for (Index t = 0; t < tiles.count(); ++t, token += rows.runs.front().tokens)
        add(pixels_of(vision.recipe, tiles, t), grid, grid, token, grid);
    }
  }

  void write(const std::filesystem::path& path) const {
    std::ofstream file(path);
    file << "<svg xmlns='http://www.w3.org/2000/svg' width='" << x_ + 8 << "' height='" << side + 40
         << "' font-family='sans-serif' font-size='13'>\n"
         << "<rect width='100%' height='100%' fill='white'/>\n<text x='8' y='" << side + 32
         << "'>image tokens: &#9632; kept, &#8212; merged, dark dropped</text>\n"
         << body_.str() << "</svg>\n";
    if (!file.flush()) throw std::runtime_error(path.string() + " cannot be written");
  }

 private:
  static constexpr Index side = 320;

  static Image pixels_of(const ImageRecipe& recipe, const ImageTiles& tiles, Index tile) {
    const auto planes = tiles.planes(tile);
    Image out{{}, tiles.tile.height, tiles.tile.width};
    for (Index y = 0; y < out.height; ++y)
      for (Index x = 0; x < out.width; ++x)
        for (Index c = 0; c < 3; ++c) {
          const auto channel = static_cast<std::size_t>(c);
          const double v = double(planes(c * out.height + y, x)),
                       raw = recipe.normalize ? v * recipe.std[channel] + recipe.mean[channel] : v;
          out.pixels.push_back(static_cast<std::uint8_t>(std::clamp(raw / (recipe.rescale ? recipe.rescale_factor : 1) + .5, 0., 255.)));
        }
    return out;
  }

  /// An image under lines of tokens: token (line, column) is first + line*stride + column.
  void add(const Image& picture, Index lines, Index columns, Index first, Index stride) {
    const double scale = double(side) / double(std::max(picture.height, picture.width));
    const double width = scale * double(picture.width), height = scale * double(picture.height), w = width / double(columns),
                 h = height / double(lines);
    const ImageSize most{std::min<Index>(picture.height, Index(height)), std::min<Index>(picture.width, Index(width))};
    body_ << "<g transform='translate(" << x_ << ",8)'><image width='" << width << "' height='" << height
          << "' preserveAspectRatio='none' style='image-rendering:pixelated' href='data:image/png;base64,"
          << example::png_base64(resize(picture, {std::max<Index>(1, most.height), std::max<Index>(1, most.width)}, ImageFilter::bilinear))
          << "'/>\n";
    std::map<std::int32_t, std::vector<std::pair<double, double>>> places;  // of the tokens of each row
    for (Index line = 0; line < lines; ++line)
      for (Index column = 0; column < columns; ++column) {
        const auto token = static_cast<std::size_t>(first + line * stride + column);
        const std::int32_t row = rows_.row_of.empty() ? static_cast<std::int32_t>(token) : rows_.row_of[token];
        if (row >= 0)
          places[row].emplace_back((double(column) + .5) * w, (double(line) + .5) * h);
        else
          body_ << "<rect x='" << double(column) * w << "' y='" << double(line) * h << "' width='" << w << "' height='" << h
                << "' opacity='.6'/>\n";
      }
    for (const auto& [row, all] : places) {
      double x = 0, y = 0;
      for (const auto& [px, py] : all) x += px / double(all.size()), y += py / double(all.size());
      if (all.size() == 1)
        body_ << "<rect x='" << x - .35 * w << "' y='" << y - .35 * h << "' width='" << .7 * w << "' height='" << .7 * h
              << "' fill='none' stroke='white' stroke-width='1.5'/>\n";
      else
        for (const auto& [px, py] : all)
          body_ << "<path d='M" << px << ' ' << py << 'L' << x << ' ' << y << "' stroke='white' stroke-width='1'/>\n";
    }
    body_ << "</g>\n";
    x_ += Index(width) + 8;
  }

  const ImageRows<float>& rows_;
  std::ostringstream body_;
  Index x_ = 8;
};

void look(example::CommandLine& line) {
  const Index cores = std::max<Index>(1, static_cast<Index>(std::thread::hardware_concurrency()));
  const Choice reduce = Choice::of("--reduce", line.option("--reduce")), cache = Choice::of("--cache", line.option("--cache"));
  const std::optional<std::string> fastv = line.option("--fastv");
  const std::string merge = line.option("--merge", "drop"), svg = line.option("--picture", "look.svg");
  const std::optional<std::string> form = line.option("--prompt");
  const Index tokens = line.option<Index>("--tokens", 64, 1, 100'000), threads = line.option<Index>("--threads", cores, 1, cores);
  const bool shipped = !line.more();
  const std::filesystem::path folder = line.next(PITH_MODELS_DIR "/tiny-vlm");
  const std::string file = shipped ? "" : line.next("");
  if (!shipped && file.empty()) throw example::UsageError("no IMAGE beside the folder");
  std::string question = line.next("What is in this picture?");
  line.done();
  PrefillPruning prune;
  if (fastv) {
    const std::vector<Index> numbers = example::numbers("a number of --fastv", *fastv, ':', 1, 1'000'000);
    if (numbers.size() != 2) throw example::UsageError("--fastv is " + *fastv + ", expected LAYERS:ROWS");
    prune = {.after = numbers[0], .keep = numbers[1]};
  }

  std::vector<example::Scene> scenes;
  if (shipped) scenes = example::load_scenes(folder, 1);
  const Image picture = shipped ? shipped_picture(scenes.front()) : example::read_image(file);
  if (shipped) question.assign(scenes.front().dialogue.front().question.begin(), scenes.front().dialogue.front().question.end());
  Model model{load_decoder(folder), shipped ? shipped_vision(folder) : load_vision(folder), {}, {}};
  if (!shipped) model.tokenizer = load_tokenizer(folder);
  model.form = form ? *form : shipped ? "" : form_of(model.vision.spec);
  const ImageReduction reduction = reduce ? image_reduction(reduce.name) : ImageReduction::none;
  const Vision<float>& vision = model.vision;
  const bool towerless = vision.tower.config().features == std::vector<Index>{0};
  ThreadPool pool(threads);

  auto start = std::chrono::steady_clock::now();
  const ImageTiles tiles = vision.prepare(picture);
  const double preparing = since(start);
  start = std::chrono::steady_clock::now();
  Workspace ws(vision.workspace_bytes(threads), pool);
  const ReduceOptions reduced{.keep = std::max<Index>(1, reduce.rows), .by_rows = towerless};
  if (towerless && reduction == ImageReduction::tome_tower) throw example::UsageError("tome-tower needs a tower, and this model has none");
  const ImageFeatures<float> seen = vision.look(tiles, ws, towerless ? TapOptions{} : taps_for(reduction, vision, tiles, reduced));
  const double tower = since(start);
  start = std::chrono::steady_clock::now();
  const std::vector<ImageRows<float>> images{reduce_image(vision, tiles, seen, reduction, reduced, ws)};
  const double reducing = since(start);
  const ImageRows<float>& rows = images.front();

  const VisionPrompt<float> prompt =
      vision_prompt<float>(vision.spec, model.decoder.weights().embed_tokens, prompt_tokens(model, tiles, rows, question), images);
  const Index n = prompt.embeddings.rows();
  auto session = model.decoder.start(policy_of(cache, n),
                                     {.max_prompt = n, .max_tokens = n + tokens, .max_generated = tokens, .max_draft = 0, .executor = pool},
                                     make_merge(merge));
  start = std::chrono::steady_clock::now();
  PrefillOptions options = prompt.options();
  options.prune = prune;
  const auto logits = session.prefill(prompt.embeddings, prompt.kinds, options);
  const double prefill = since(start);

  std::vector<Token> stop = model.decoder.config().eos_token_id;
  if (model.tokenizer) stop.assign(model.tokenizer->stop_tokens().begin(), model.tokenizer->stop_tokens().end());
  if (shipped) stop = {'\n'};
  std::optional<Detokenizer> words;
  if (model.tokenizer) words.emplace(*model.tokenizer, true);
  std::printf("%s\n", question.c_str());
  std::mt19937_64 rng(1);
  start = std::chrono::steady_clock::now();
  const GenerateResult answer =
      generate(session, logits, {.max_tokens = tokens, .sampler = {.temperature = 0}, .stop_tokens = stop}, rng, [&](Token t) {
        words ? std::printf("%s", words->add(t).c_str()) : std::printf("%c", t);
        std::fflush(stdout);
      });
  const double decoding = since(start);
  if (words) std::printf("%s", words->finish().c_str());

  const double first = preparing + tower + reducing + prefill;
  std::size_t bytes = 0;
  for (const auto& one : session.caches())
    for (Index h = 0; h < one.shape().num_kv_heads; ++h)
      bytes += static_cast<std::size_t>(one.size(h) * one.shape().head_dim) * 2 * sizeof(float);
  std::printf("\n\n%td tiles; %td of %td image tokens are left, %td tokens of prompt, %.2f MB of cached rows\n", tiles.count(),
              rows.rows.rows(), rows.tokens(), n, double(bytes) / 1e6);
  std::printf(
      "%.3f s to the first token: preparing %.3f, tower %.3f (%.0f %%), choosing and projecting %.3f, prefill %.3f; then %.1f tokens/s\n",
      first, preparing, tower, 100 * tower / first, reducing, prefill, double(std::max<Index>(1, answer.count)) / std::max(decoding, 1e-9));
  Drawing(vision, picture, tiles, rows).write(svg);
  std::printf("the image's tokens: %s\n", svg.c_str());
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, look); }
