// A vision-language model: which image tokens to keep in the cache, how to merge the others, and the effect on its answers.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/command_line.hpp"
#include "support/scenes.hpp"

using namespace pith;
using example::Answers, example::Scene;

namespace {

struct Model {
  Decoder<float> decoder;
  std::vector<Scene> scenes;
  std::vector<Matrix<float>> images;  ///< [patches, hidden_size] of each scene, projected
  ThreadPool pool;

  Model(const std::filesystem::path& folder, std::size_t most) : decoder(load_decoder(folder)), scenes(example::load_scenes(folder, most)) {
    const Linear<float> projector = load_linear(folder / "projector.safetensors");
    for (const Scene& scene : scenes) images.push_back(projector.forward(scene.patches));
  }
  Index patches() const { return images.front().rows(); }
};

/// How a prompt of `tokens` is reduced to `rows`.
struct Selection {
  const char* name;
  AnyPolicy<float> (*make)(Index rows);
};
const Selection selections[] = {
    {"window", [](Index rows) -> AnyPolicy<float> { return PromptOnly(HeavyHitter{.heavy = 0, .recent = rows}); }},
    {"heavy hitters", [](Index rows) -> AnyPolicy<float> { return PromptOnly(HeavyHitter{.heavy = rows - rows / 2, .recent = rows / 2}); }},
    {"text prior",
     [](Index rows) -> AnyPolicy<float> {
       return Protect(PromptOnly(HeavyHitter{.heavy = rows - 4, .recent = 4}), {.kind = TokenKind::text});
     }},
    {"CSP", [](Index rows) -> AnyPolicy<float> { return Csp{.heavy = rows - rows / 2, .recent = rows / 2}; }},
    {"random, all text", [](Index rows) -> AnyPolicy<float> { return Protect(PromptOnly(Random{rows}), {.kind = TokenKind::text}); }},
};

/// One line of the table.
struct Outcome {
  Answers answers;
  double image_rows = 0, row_bytes = 0, seconds = 0;
};

/// Runs all dialogues, scenes in parallel. start(scene's prompt length) begins a session, image(scene) returns the scene's rows.
template <class Start, class Image> Outcome run(Model& model, Start&& start, Image&& image) {
  std::vector<Outcome> each(model.scenes.size());
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failed;
  const auto begin = std::chrono::steady_clock::now();
  model.pool(model.pool.size(), [&](Index) {
    try {
      for (std::size_t s; (s = next++) < model.scenes.size();) {
        const auto rows = image(s);
        const MediaRows<float> media = rows.media();
        auto session = start(1 + media.rows.rows() + static_cast<Index>(model.scenes[s].dialogue.front().question.size()));
        example::answer(session, model.decoder, model.scenes[s], media, each[s].answers);
        for (const auto& cache : session.caches())
          for (Index h = 0; h < cache.shape().num_kv_heads; ++h) {
            const auto kinds = cache.kinds(h);
            const double of_layer = static_cast<double>(session.caches().size() * static_cast<std::size_t>(cache.shape().num_kv_heads));
            each[s].image_rows += static_cast<double>(std::count(kinds.begin(), kinds.end(), TokenKind::image)) / of_layer;
            each[s].row_bytes += static_cast<double>(cache.size(h) * cache.shape().head_dim * 2 * Index(sizeof(float)));
          }
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failed = std::current_exception();
    }
  });
  if (failed) std::rethrow_exception(failed);
  Outcome all;
  all.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto scenes = static_cast<double>(model.scenes.size());
  for (const Outcome& one : each) {
    for (int kind = 0; kind < example::question_kinds; ++kind) {
      all.answers.right[static_cast<std::size_t>(kind)] += one.answers.right[static_cast<std::size_t>(kind)];
      all.answers.asked[static_cast<std::size_t>(kind)] += one.answers.asked[static_cast<std::size_t>(kind)];
    }
    all.answers.thoughts.insert(all.answers.thoughts.end(), one.answers.thoughts.begin(), one.answers.thoughts.end());
    all.image_rows += one.image_rows / scenes;
    all.row_bytes += one.row_bytes / scenes;
  }
  return all;
}

/// An image's rows, unchanged.
struct PlainImage {
  const Matrix<float>& rows;
  MediaRows<float> media() const { return {.rows = rows}; }
};
/// An image's rows after ToMe: each step merges at most half of the tokens, the most similar first.
struct MergedImage {
  Matrix<float> rows;
  Vector<float> masses;
  std::vector<std::int32_t> row_of;
  MergedImage(const Matrix<float>& image, Index target) : rows(image), masses(Vector<float>::Ones(image.rows())) {
    for (Index t = 0; t < image.rows(); ++t) row_of.push_back(static_cast<std::int32_t>(t));
    Workspace ws(token_match_workspace_bytes<float>(image.rows(), image.cols()) + TokenMap<float>::workspace_bytes(image.rows()));
    TokenMap<float> map(image.rows());
    while (rows.rows() > target) {
      match_bipartite(rows, {.r = rows.rows() - target}, map, ws);
      Matrix<float> fewer(map.rows(), rows.cols());
      Vector<float> after(map.rows());
      map.merge(rows, fewer, MassWeighted{}, ws, {masses, after});
      map.follow(row_of);
      rows = std::move(fewer);
      masses = std::move(after);
    }
  }
  MediaRows<float> media() const { return {.rows = rows, .row_of = row_of, .masses = masses}; }
};

void print_line(const char* selection, const std::string& strategy, const Outcome& o, const Outcome& full) {
  std::printf("  %-17s %-15s %7.1f %8.0f", selection, strategy.c_str(), o.image_rows, o.row_bytes);
  for (std::size_t kind = 0; kind < example::question_kinds; ++kind) std::printf(" %5d", o.answers.right[kind]);
  std::printf(" %7d %8.4f %7.2f\n", o.answers.all_right(), example::divergence(full.answers, o.answers),
              o.seconds * 1000 / static_cast<double>(full.answers.asked[0] + full.answers.asked[1] + full.answers.asked[2]));
}

void tables(Model& model) {
  example::Progress progress;
  double lines = 0;
  const double all_lines = 4 * static_cast<double>(std::size(selections) * merge_catalogue().size() + 2);
  const auto print = [&](const char* selection, const std::string& strategy, const Outcome& outcome, const Outcome& full) {
    progress.clear();
    print_line(selection, strategy, outcome, full);
    progress.show("images", ++lines, all_lines);
  };
  const SessionOptions options{.max_prompt = 120, .max_tokens = 300, .max_generated = 250};
  const auto plain = [&](std::size_t s) { return PlainImage{model.images[s]}; };
  const Outcome full = run(
      model, [&](Index) { return model.decoder.start(Dense{}, options); }, plain);
  std::printf(
      "%zu images of %td tokens, %d questions. Right answers by kind, of %d, %d and %d; KL: of every answer byte to the full cache.\n\n",
      model.scenes.size(), model.patches(), full.answers.asked[0] + full.answers.asked[1] + full.answers.asked[2], full.answers.asked[0],
      full.answers.asked[1], full.answers.asked[2]);
  std::printf("  %-17s %-15s %7s %8s %5s %5s %5s %7s %8s %7s\n", "selection", "strategy", "image", "bytes", "color", "patt.", "where",
              "right", "KL", "ms per");
  std::printf("  %-17s %-15s %7s %8s %5s %5s %5s %7s %8s %7s\n", "", "", "rows", "of rows", "", "", "", "", "", "quest.");
  print_line("full cache", "", full, full);
  for (const int percent : {50, 20, 10, 5}) {
    const Index keep = rows_at_keep_ratio(model.patches(), percent / 100.);
    progress.clear();
    std::printf("\n  %d %% of the image, %td rows a head\n", percent, keep);
    for (const Selection& selection : selections)
      for (const MergeEntry<float>& entry : merge_catalogue()) {
        SessionOptions counted = options;
        counted.keep_masses = entry.name == "mass-weighted";
        const auto start = [&](Index prompt) {
          return model.decoder.start(selection.make(prompt - model.patches() + keep), counted, entry.make());
        };
        print(selection.name, std::string(entry.name), run(model, start, plain), full);
      }
    for (const bool keep_masses : {false, true}) {
      SessionOptions counted = options;
      counted.keep_masses = keep_masses;
      const auto start = [&](Index) { return model.decoder.start(Dense{}, counted); };
      const auto image = [&](std::size_t s) {
        MergedImage merged(model.images[s], keep);
        if (!keep_masses) merged.masses.resize(0);
        return merged;
      };
      print("ToMe, then full", keep_masses ? "with masses" : "", run(model, start, image), full);
    }
  }
}

/// Input files for gnuplot.
struct Picture {
  example::OutputFile similarities, pixels, patches;
  explicit Picture(const std::filesystem::path& folder)
      : similarities(folder / "similarity.dat"), pixels(folder / "pixels.dat"), patches(folder / "patches.dat") {}
};

/// Writes data for the image: one head of one layer after text prior, with a fifth of the image's rows kept.
void write_picture(const Model& model, const std::filesystem::path& folder, Picture& out) {
  const std::size_t scene = 0, layer = model.decoder.weights().layers.size() - 1;
  const Index head = 0, keep = rows_at_keep_ratio(model.patches(), .2);
  const double min_similarity = .5;  // less similar patches are dropped
  const MediaRows<float> media{.rows = model.images[scene]};
  const SplicedPrompt<float> prompt = example::scene_prompt(model.decoder, model.scenes[scene], media);
  const SessionOptions options{.max_prompt = 120, .max_tokens = 300};
  auto full = model.decoder.start(Dense{}, options);
  auto kept = model.decoder.start(selections[2].make(prompt.embeddings.rows() - model.patches() + keep), options);
  full.prefill(prompt.embeddings, prompt.kinds);
  kept.prefill(prompt.embeddings, prompt.kinds);
  const Matrix<float> keys = full.caches()[layer].keys(head).middleRows(prompt.spans[0].first, model.patches());
  std::vector<Index> stay, leave;
  const auto positions = kept.caches()[layer].positions(head);
  for (Index p = 0; p < model.patches(); ++p)
    (std::count(positions.begin(), positions.end(), prompt.spans[0].first + p) > 0 ? stay : leave).push_back(p);
  Matrix<float> kept_keys(static_cast<Index>(stay.size()), keys.cols()), evicted(static_cast<Index>(leave.size()), keys.cols());
  for (std::size_t i = 0; i < stay.size(); ++i) kept_keys.row(static_cast<Index>(i)) = keys.row(stay[i]);
  for (std::size_t i = 0; i < leave.size(); ++i) evicted.row(static_cast<Index>(i)) = keys.row(leave[i]);
  Matrix<float> similarity(evicted.rows(), kept_keys.rows());
  Workspace ws(nearest_workspace_bytes<float>(model.patches(), keys.cols()));
  similarity_matrix<float>(evicted, kept_keys, similarity, ws);

  auto& [similarities, pixels, patches] = out;
  similarities << similarity << '\n';
  constexpr Index grid = 8, side = 4;
  for (Index y = 0; y < grid * side; ++y)
    for (Index x = 0; x < grid * side; ++x) {
      pixels << x << ' ' << y;
      for (Index channel = 0; channel < 3; ++channel)
        pixels << ' ' << int(255 * model.scenes[scene].patches(y / side * grid + x / side, (channel * side + y % side) * side + x % side));
      pixels << '\n';
    }
  const auto at = [](Index patch) { return std::to_string(patch % grid * side) + ' ' + std::to_string(patch / grid * side); };
  for (const Index patch : stay) patches << at(patch) << " 0 0 kept\n";
  for (std::size_t e = 0; e < leave.size(); ++e) {
    Index nearest = 0;
    const double cosine = double(similarity.row(static_cast<Index>(e)).maxCoeff(&nearest));
    const Index to = stay[static_cast<std::size_t>(nearest)];
    patches << at(leave[e]) << ' ' << (to % grid - leave[e] % grid) * side << ' ' << (to / grid - leave[e] / grid) * side
            << (cosine >= min_similarity ? " merged\n" : " dropped\n");
  }
  for (example::OutputFile* file : {&similarities, &pixels, &patches}) file->close();
  std::printf(
      "\nOne head at a fifth of the image, text prior: %zu patches kept, the others merged from a cosine of %.1f on; "
      "similarity.dat, pixels.dat and patches.dat in %s\n",
      stay.size(), min_similarity, folder.string().c_str());
}

constexpr const char* usage = R"(merge_image_tokens [MODEL_FOLDER] [IMAGES] [DATA_FOLDER]

An image and the first question are read; then all text but only a share of the image's rows stays, for that answer and the rest of the
dialogue. The other rows are dropped, or merged into those they are most similar to. IMAGES (100) are looked at. Data for a picture of one
head goes to DATA_FOLDER: gnuplot -c examples/merge_image_tokens.gp DATA_FOLDER picture.svg)";

void merge_image_tokens(example::CommandLine& line) {
  const std::filesystem::path folder = line.next(PITH_MODELS_DIR "/tiny-vlm");
  const std::size_t images = line.next<std::size_t>("IMAGES", 100, 1, 1'000'000);
  const std::filesystem::path data = line.next(".");
  line.done();
  Model model(folder, images);
  Picture picture(data);
  if (model.scenes.empty()) throw std::runtime_error("no images to look at");
  tables(model);
  write_picture(model, data, picture);
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, merge_image_tokens); }
