#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <pith/model.hpp>
#include <pith/vision.hpp>

#include "support/catch.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_vision.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::random_matrix;
using pith_test::tiny_picture;
using pith_test::tiny_vision;

namespace {

struct Reduced {
  ImageTiles tiles;
  ImageRows<float> all, rows;
};

Reduced reduced(const Vision<float>& vision, const Image& picture, ImageReduction reduction, const ReduceOptions& options,
                Index pictures = 1) {
  Reduced out;
  out.tiles = vision.prepare(picture, pictures);
  Workspace ws(vision.workspace_bytes());
  const ImageFeatures<float> seen = vision.look(out.tiles, ws, taps_for(reduction, vision, out.tiles, options));
  out.all = vision.project(out.tiles, seen, ws);
  out.rows = reduce_image(vision, out.tiles, seen, reduction, options, ws);
  return out;
}

/// What every reduced image keeps: runs that add up, places within their runs, masses for each row.
void check_form(const Reduced& r) {
  REQUIRE(r.rows.runs.size() == r.all.runs.size());
  Index rows = 0, token = 0;
  for (std::size_t run = 0; run < r.rows.runs.size(); ++run) {
    CHECK(r.rows.runs[run].tokens == r.all.runs[run].tokens);
    std::set<std::int32_t> reached;
    for (Index i = 0; i < r.rows.runs[run].tokens && !r.rows.row_of.empty(); ++i) {
      const std::int32_t row = r.rows.row_of[static_cast<std::size_t>(token + i)];
      CHECK((row >= -1 && row < r.rows.runs[run].rows));
      if (row >= 0) reached.insert(row);
    }
    token += r.rows.runs[run].tokens;
    rows += r.rows.runs[run].rows;
  }
  CHECK(rows == r.rows.rows.rows());
  CHECK(r.rows.rows.allFinite());
  CHECK((r.rows.masses.size() == 0 || r.rows.masses.size() == rows));
  CHECK(r.rows.media().size() == r.rows.runs.size());
}

std::vector<Token> some_tokens(const Vision<float>& vision, const ImageTiles& tiles, const ImageRows<float>& rows) {
  std::vector<Token> out{1, 2};
  for (const std::string& piece : image_text(vision.spec, tiles, rows))
    out.push_back(piece == vision.spec.image_word ? vision.spec.image_token : 7);
  out.push_back(3);
  return out;
}

}  // namespace

TEST_CASE("reductions leave as many rows as they are told, under every model", "[vision]") {
  const Image picture = tiny_picture(40, 90);
  for (const char* kind : {"llava", "siglip", "onevision", "smolvlm", "gemma3"}) {
    const Vision<float> vision = tiny_vision<float>(kind);
    for (const ImageReductionEntry& entry : image_reductions())
      for (const Index keep : {1, 5, 9, 1000}) {
        INFO(kind << ", " << entry.name << ", " << keep);
        const bool prumerge = entry.reduction == ImageReduction::prumerge || entry.reduction == ImageReduction::prumerge_plus;
        const bool in_tower = entry.reduction == ImageReduction::tome_tower, blocks = vision.projector.block() > 1;
        if ((prumerge && std::string(kind) != "llava") || (in_tower && (blocks || std::string(kind) == "onevision"))) {
          CHECK_THROWS_AS(reduced(vision, picture, entry.reduction, {.keep = keep}), UnsupportedError);
          continue;
        }
        if (in_tower && keep < (std::string(kind) == "llava" ? 9 : 5)) {
          CHECK_THROWS_WITH(reduced(vision, picture, entry.reduction, {.keep = keep}), contains("each of which merges half"));
          continue;
        }
        const Reduced r = reduced(vision, picture, entry.reduction, {.keep = keep, .masses = true});
        check_form(r);
        const Index newlines = static_cast<Index>(r.all.newlines.size()), before = r.all.rows.rows() - newlines;
        if (keep >= before || entry.reduction == ImageReduction::none) {
          CHECK(r.rows.rows.rows() == r.all.rows.rows());
          continue;
        }
        std::set<Index> lines;  // newlines stay with lines of which a token stayed in a row of its own
        for (std::size_t t = 0; t < r.all.lines.size(); ++t)
          if (r.all.lines[t] >= 0 && r.rows.row_of[static_cast<std::size_t>(r.all.newlines[static_cast<std::size_t>(r.all.lines[t])])] >= 0)
            lines.insert(r.all.lines[t]);
        const bool of_rest = prumerge && keep == 1;  // one row and one of the rest
        CHECK(r.rows.rows.rows() == (of_rest ? 2 : keep) + static_cast<Index>(lines.size()));
        if (entry.reduction == ImageReduction::tome || in_tower) {
          CHECK(std::abs(r.rows.masses.sum() - static_cast<float>(before + static_cast<Index>(lines.size()))) < 1e-3f);
          CHECK(r.rows.masses.minCoeff() >= 1.f);
        }
        const std::vector<ImageRows<float>> images{r.rows};
        const Embedding<float> table(random_matrix<float>(10, 10, 4));
        const VisionPrompt<float> prompt = vision_prompt<float>(vision.spec, table, some_tokens(vision, r.tiles, r.all), images);
        CHECK(std::count(prompt.kinds.begin(), prompt.kinds.end(), TokenKind::image) == r.rows.rows.rows());
      }
  }
}

TEST_CASE("DivPrune takes rows as they are, in order, and newlines with their lines", "[vision]") {
  const Reduced r = reduced(tiny_vision<float>("onevision"), tiny_picture(40, 90), ImageReduction::divprune, {.keep = 12});
  REQUIRE(r.tiles.canvas == ImageSize{26, 52});
  Index next = 0;
  for (std::size_t t = 0; t < r.rows.row_of.size(); ++t)
    if (r.rows.row_of[t] >= 0) {
      CHECK(r.rows.row_of[t] == next);
      CHECK(r.rows.rows.row(next++) == r.all.rows.row(static_cast<Index>(t)));
    }
  CHECK(next == r.rows.rows.rows());
}

TEST_CASE("ToMe's rows are means of what they stand for", "[vision]") {
  const Vision<float> vision = tiny_vision<float>("smolvlm");  // behind the projector
  const Reduced r = reduced(vision, tiny_picture(40, 60), ImageReduction::tome, {.keep = 20, .masses = true});
  Matrix<float> sums = Matrix<float>::Zero(r.rows.rows.rows(), 10);
  Vector<float> counts = Vector<float>::Zero(r.rows.rows.rows());
  Index token = 0, row = 0;
  for (const auto& run : r.rows.runs) {
    for (Index i = 0; i < run.tokens; ++i, ++token)
      if (const auto to = r.rows.row_of[static_cast<std::size_t>(token)]; to >= 0)
        sums.row(row + to) += r.all.rows.row(token), counts[row + to] += 1;
    row += run.rows;
  }
  int whole = 0;  // rows that stand for tokens of their own run alone
  for (Index i = 0; i < counts.size(); ++i)
    if (counts[i] == r.rows.masses[i]) {
      CHECK((r.rows.rows.row(i) - sums.row(i) / counts[i]).cwiseAbs().maxCoeff() < 1e-5f);
      ++whole;
    }
  CHECK(whole > 0);
}

TEST_CASE("tokens merged inside the tower: rows of means, each token knows its own", "[vision]") {
  const Vision<float> vision = tiny_vision<float>("llava");
  const Reduced r = reduced(vision, tiny_picture(40, 60), ImageReduction::tome_tower, {.keep = 12, .masses = true});
  CHECK(r.rows.rows.rows() == 12);
  REQUIRE(r.rows.row_of.size() == 36);
  Vector<float> counts = Vector<float>::Zero(12);
  for (std::size_t t = 0; t < 36; ++t) {
    counts[r.rows.row_of[t]] += 1;
    CHECK((r.rows.rows.row(r.rows.row_of[t]) - r.all.rows.row(static_cast<Index>(t))).cwiseAbs().maxCoeff() < 1e-6f);  // unmerged before
  }
  CHECK(counts == r.rows.masses);
  // Where rows are made of blocks, the tower alone works on fewer: each patch has the features of its row.
  const Vision<float> gemma = tiny_vision<float>("gemma3");
  const ImageTiles tiles = gemma.prepare(tiny_picture(20, 20));
  Workspace ws(gemma.workspace_bytes());
  const ImageFeatures<float> seen = gemma.look(tiles, ws, {.merge = {6, 6, 6}});
  std::set<std::int32_t> rows(seen.merged_into.begin(), seen.merged_into.end());
  CHECK(rows.size() == 18);
  for (Index t = 1; t < 36; ++t)
    for (Index other = 0; other < t; ++other)
      if (seen.merged_into[static_cast<std::size_t>(t)] == seen.merged_into[static_cast<std::size_t>(other)])
        CHECK(seen.features.row(t) == seen.features.row(other));
  CHECK(gemma.project(tiles, seen, ws).rows.rows() == 4);
  CHECK(gemma.project(tiles, gemma.look(tiles, ws, {.merge = {0, 0, 0}}), ws).rows == gemma.project(tiles, gemma.look(tiles, ws), ws).rows);
  CHECK_THROWS_WITH(gemma.look(tiles, ws, {.scores = true, .merge = {6}}), contains("taps of a tower that merges tokens"));
}

TEST_CASE("PruMerge+ adds rows at equal distances", "[vision]") {
  const Vision<float> vision = tiny_vision<float>("llava");
  const ImageTiles tiles = vision.prepare(tiny_picture(30, 30));
  Workspace ws(vision.workspace_bytes());
  const ImageFeatures<float> seen = vision.look(tiles, ws, taps_for(ImageReduction::prumerge_plus));
  const Matrix<double> query = seen.last_class_query.row(0).cast<double>(), keys = seen.last_keys.cast<double>(),
                       features = seen.features.bottomRows(36).cast<double>();
  Matrix<double> weights = (pith_test::times_transposed(query, keys) / std::sqrt(24.)).array().exp();
  weights /= weights.sum();
  std::vector<Index> order(36);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return weights(0, a + 1) > weights(0, b + 1); });
  // 16 rows, one of them the rest's: the largest k of the best that leaves room for every ⌊⌊36/k⌋/3⌋-th patch, and as many more as fit.
  std::vector<Index> rows;
  const auto fill = [&](Index best, Index distance) {
    rows.assign(order.begin(), order.begin() + best);
    for (Index patch = 0; patch < 36; patch += distance)
      if (std::find(order.begin(), order.begin() + best, patch) == order.begin() + best) rows.push_back(patch);
    return rows.size() <= 15;
  };
  Index k = 12;
  while (!fill(k, 36 / k / 3)) --k;
  const Index distance = 36 / k / 3;
  while (rows.size() < 15) fill(++k, distance);
  CHECK(distance > 1);
  const ImageRows<float> ours = reduce_image(vision, tiles, seen, ImageReduction::prumerge_plus, {.keep = 16, .neighbours = 0}, ws);
  REQUIRE(rows.size() == 15);
  REQUIRE(ours.rows.rows() == 16);
  Matrix<double> expected(16, 24);
  expected.row(15).setZero();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    expected.row(static_cast<Index>(r)) = features.row(rows[r]);
    CHECK(ours.row_of[static_cast<std::size_t>(rows[r])] == static_cast<std::int32_t>(r));
  }
  for (Index patch = 0; patch < 36; ++patch)
    if (std::find(rows.begin(), rows.end(), patch) == rows.end()) expected.row(15) += weights(0, patch + 1) * features.row(patch);
  Matrix<float> projected(16, 10);
  vision.projector.forward_each(expected.cast<float>().eval(), projected, ws);
  CHECK((projected - ours.rows).cwiseAbs().maxCoeff() < 1e-5f);
}

TEST_CASE("reductions refuse features without what they choose by", "[vision]") {
  const Vision<float> vision = tiny_vision<float>("llava");
  const ImageTiles tiles = vision.prepare(tiny_picture(30, 30));
  Workspace ws(vision.workspace_bytes());
  const ImageFeatures<float> plain = vision.look(tiles, ws);
  for (const ImageReduction r : {ImageReduction::tome, ImageReduction::visionzip, ImageReduction::prumerge})
    CHECK_THROWS_WITH(reduce_image(vision, tiles, plain, r, {.keep = 4}, ws), contains("look() with taps_for(reduction)"));
  CHECK(reduce_image(vision, tiles, plain, ImageReduction::tome, {.keep = 4, .by_rows = true}, ws).rows.rows() == 4);
  CHECK_THROWS_AS(reduce_image(vision, tiles, plain, ImageReduction::divprune, {.keep = 0}, ws), ShapeError);
  CHECK_THROWS_WITH(image_reduction("magic"),
                    contains("no reduction 'magic': all, tome, tome-tower, prumerge, prumerge+, visionzip, divprune"));
  CHECK(image_reduction("tome") == ImageReduction::tome);
}

TEST_CASE("an image's text has a word for each row, and marks around tiles", "[vision]") {
  const auto joined = [](const std::vector<std::string>& pieces) { return std::accumulate(pieces.begin(), pieces.end(), std::string()); };
  const Vision<float> smol = tiny_vision<float>("smolvlm"), gemma = tiny_vision<float>("gemma3");
  ImageTiles tiles;
  tiles.tile = {2, 2};
  tiles.pixels.resize(5 * 6, 2);
  tiles.rows = tiles.cols = 2;
  const std::vector<Index> each(5, 1), three(3, 1);
  CHECK(joined(image_text(smol.spec, tiles, each)) ==
        "<fake_token_around_image><row_1_col_1><image><fake_token_around_image><row_1_col_2><image>\n"
        "<fake_token_around_image><row_2_col_1><image><fake_token_around_image><row_2_col_2><image>\n\n"
        "<fake_token_around_image><global-img><image><fake_token_around_image>");
  CHECK_THROWS_WITH(image_text(smol.spec, tiles, three), contains("3 runs of image tokens for 5 tiles"));
  tiles.pixels.resize(6, 2);
  tiles.rows = tiles.cols = 0;
  CHECK(joined(image_text(smol.spec, tiles, std::vector<Index>{2})) ==
        "<fake_token_around_image><global-img><image><image><fake_token_around_image>");
  CHECK(joined(image_text(gemma.spec, tiles, std::vector<Index>{1})) == "\n\n<start_of_image><image><end_of_image>\n\n");
  tiles.pixels.resize(18, 2);
  CHECK(joined(image_text(gemma.spec, tiles, three)) ==
        "Here is the original image \n\n<start_of_image><image><end_of_image>\n\n and here are some crops to help you see better "
        "\n\n<start_of_image><image><end_of_image>\n\n \n\n<start_of_image><image><end_of_image>\n\n");
  const std::vector<std::vector<Token>> images{{9, 9}, {}};
  CHECK(expand_images(std::vector<Token>{1, -200, 2, -200}, -200, images) == std::vector<Token>{1, 9, 9, 2});
  CHECK_THROWS_WITH(expand_images(std::vector<Token>{1, -200}, -200, images), contains("2 images for 1 placeholders"));
}

TEST_CASE("runs of image tokens see each other, text does not, and PaliGemma's prompt sees all of itself", "[vision]") {
  const Embedding<float> table(random_matrix<float>(10, 4, 1));
  VlmSpec spec;
  spec.image_token = 500;  // outside the vocabulary
  const Matrix<float> rows = random_matrix<float>(4, 4, 2);
  const std::vector<ImageRows<float>> images{{.rows = rows.topRows(2), .runs = {{2, 2}}}, {.rows = rows.bottomRows(2), .runs = {{2, 2}}}};
  const std::vector<Token> tokens{1, 500, 500, 2, 500, 500, 3};
  const auto sight = [&](ImageSight kind) {
    spec.sight = kind;
    return vision_prompt<float>(spec, table, tokens, images).sight;
  };
  CHECK(sight(ImageSight::causal).empty());
  CHECK(sight(ImageSight::runs) == std::vector<Position>{0, 2, 2, 3, 5, 5, 6});
  CHECK(sight(ImageSight::prompt) == std::vector<Position>(7, 6));
  spec.sight = ImageSight::runs;
  // a reduced run sees what is left of it
  const std::vector<ImageRows<float>> fewer{{.rows = rows.topRows(1), .runs = {{2, 1}}, .row_of = {-1, 0}}, images[1]};
  const VisionPrompt<float> prompt = vision_prompt<float>(spec, table, tokens, fewer);
  CHECK(prompt.sight == std::vector<Position>{0, 1, 2, 4, 4, 5});
  CHECK(prompt.embeddings.row(1) == rows.row(0));
  CHECK(prompt.moved_to == std::vector<Position>{0, -1, 1, 2, 3, 4, 5});
  const auto refused = [&](std::vector<Token> ids, const char* message) {
    CHECK_THROWS_WITH(vision_prompt<float>(spec, table, ids, images), contains(message));
  };
  refused({1, 500, 500, 2, 500}, "1 placeholders from token 4 on, but image 1 has 2 tokens");
  refused({1, 500, 500, 2}, "2 images, but placeholders for 1");
  refused({500, 500, 500, 500, 500}, "there are only 2 images");
  refused({11, 500, 500, 500, 500}, "token 11 at index 0 is outside the vocabulary");
}

TEST_CASE("a vision model whose parts disagree is refused", "[vision]") {
  const auto refused = [](const char* kind, const char* message, auto&& change) {
    Vision<float> v = tiny_vision<float>(kind);
    change(v);
    CHECK_THROWS_WITH(v.check(), contains(message));
  };
  refused("llava", "the projector takes 24 features, the tower gives 48", [](Vision<float>& v) {
    VisionConfig c = v.tower.config();
    c.features = {1, 2};
    v.tower = VisionTower<float>(c, v.tower);
  });
  refused("gemma3", "images become tiles of 30 x 30 pixels, the tower looks at 26 x 26", [](Vision<float>& v) {
    v.recipe.size = {30, 30};
  });
  refused("onevision", "newline has 3 features, expected 10", [](Vision<float>& v) { v.newline = Vector<float>::Zero(3); });
  refused("onevision", "need a row for each patch and a newline", [](Vision<float>& v) { v.newline.resize(0); });
  refused("smolvlm", "the rows of a tile are no grid", [](Vision<float>& v) { v.spec.drop_first = true; });
  const Vision<float> v = tiny_vision<float>("llava");
  Workspace ws(v.workspace_bytes());
  ImageRecipe other;
  CHECK_THROWS_WITH(v.look(other.prepare(tiny_picture(9, 9)), ws), contains("1 tiles of 224 x 224 pixels, expected some of 26 x 26"));
  CHECK_THROWS_AS(v.look(ImageTiles{}, ws), ShapeError);
}
