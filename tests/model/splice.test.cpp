#include <cstdint>
#include <limits>
#include <vector>

#include <pith/attention.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model/splice.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::random_matrix;

namespace {

struct Pictures {
  Matrix<float> words = random_matrix<float>(10, 6, 1), first = random_matrix<float>(4, 6, 2), second = random_matrix<float>(2, 6, 3);
  Embedding<float> table{words};
  std::vector<MediaRows<float>> images{{.rows = first}, {.rows = second, .kind = TokenKind::video}};
};

std::vector<Position> from_to(Position first, Position end) {
  std::vector<Position> out;
  for (; first < end; ++first) out.push_back(first);
  return out;
}

}  // namespace

TEST_CASE("images take the places of their placeholders", "[model]") {
  const Pictures p;
  constexpr Token image = -200;
  const std::vector<Token> one_each{3, image, 5, 7, image}, one_a_token{3, image, image, image, image, 5, 7, image, image};
  const auto check = [&](const SplicedPrompt<float>& prompt) {
    REQUIRE(prompt.embeddings.rows() == 9);
    CHECK(prompt.embeddings.row(0) == p.words.row(3));
    CHECK(prompt.embeddings.middleRows(1, 4) == p.first);
    CHECK(prompt.embeddings.row(5) == p.words.row(5));
    CHECK(prompt.embeddings.row(6) == p.words.row(7));
    CHECK(prompt.embeddings.middleRows(7, 2) == p.second);
    const auto t = TokenKind::text, i = TokenKind::image, v = TokenKind::video;
    CHECK(prompt.kinds == std::vector<TokenKind>{t, i, i, i, i, t, t, v, v});
    REQUIRE(prompt.spans.size() == 2);
    CHECK(prompt.spans[0].first == 1);
    CHECK(prompt.spans[0].end == 5);
    CHECK(prompt.spans[1].first == 7);
    CHECK(prompt.spans[1].end == 9);
    CHECK(prompt.moved_to == from_to(0, 9));
  };
  check(splice(p.table, one_each, image, p.images, Placeholders::one_an_image));
  check(splice(p.table, one_a_token, image, p.images));
  // Two images side by side, and a placeholder that is a word of the vocabulary.
  const auto beside = splice(p.table, std::vector<Token>{9, 9, 1}, 9, p.images, Placeholders::one_an_image);
  CHECK(beside.moved_to == from_to(0, 7));
  CHECK(beside.spans[1].first == 4);
  CHECK(splice(p.table, std::vector<Token>{1, 2}, image, {}).embeddings.row(1) == p.words.row(2));
  CHECK(splice(p.table, std::vector<Token>{}, image, {}).embeddings.rows() == 0);
}

TEST_CASE("an image merged before the prompt takes fewer places, and what follows moves up", "[model]") {
  const Pictures p;
  TokenMap<float> map(4);
  Workspace ws(token_match_workspace_bytes<float>(4, 6) + TokenMap<float>::workspace_bytes(4));
  match_bipartite(p.first, {.r = 2}, map, ws);
  REQUIRE(map.rows() == 2);
  Matrix<float> merged(2, 6);
  map.merge(p.first, merged, Averaged{}, ws);
  Vector<float> masses(2);
  map.merge(p.first, merged, Averaged{}, ws, {.after = masses});
  const std::vector<MediaRows<float>> images{{.rows = merged, .row_of = map.row_of(), .masses = masses}};
  const auto prompt = splice(p.table, std::vector<Token>{1, 0, 0, 0, 0, 2}, 0, images);
  REQUIRE(prompt.embeddings.rows() == 4);
  CHECK(prompt.embeddings.middleRows(1, 2) == merged);
  CHECK(prompt.embeddings.row(3) == p.words.row(2));
  REQUIRE(prompt.moved_to.size() == 6);
  for (std::size_t t = 0; t < 4; ++t) CHECK(prompt.moved_to[t + 1] == 1 + map.row_of()[t]);
  CHECK(prompt.moved_to[5] == 3);
  CHECK(masses.sum() == 4);
  CHECK(prompt.masses == std::vector<float>{1, masses[0], masses[1], 1});
  // A token that was dropped is nowhere.
  const std::vector<std::int32_t> dropped{0, -1, 1, -1};
  const std::vector<MediaRows<float>> pruned{{.rows = p.second, .row_of = dropped}};
  CHECK(splice(p.table, std::vector<Token>{0, 0, 0, 0}, 0, pruned).moved_to == std::vector<Position>{0, -1, 1, -1});
}

TEST_CASE("what does not fit together is refused", "[model]") {
  Pictures p;
  const auto splicing = [&](std::vector<Token> tokens, Placeholders form = Placeholders::one_a_token) {
    return splice(p.table, tokens, -1, p.images, form);
  };
  CHECK_THROWS_WITH(splicing({-1, -1, -1, 3}), contains("3 placeholders from token 0 on, but image 0 has 4 tokens"));
  CHECK_THROWS_WITH(splicing({-1, -1, -1, -1}), contains("2 images, but placeholders for 1"));
  CHECK_THROWS_WITH(splicing({-1, -1, -1}, Placeholders::one_an_image), contains("a placeholder at token 2, but there are only 2 images"));
  CHECK_THROWS_WITH(splicing({-1, 10, -1}, Placeholders::one_an_image), contains("outside the vocabulary"));
  const std::vector<std::int32_t> beyond{0, 4};
  p.images[0].row_of = beyond;
  CHECK_THROWS_WITH(splicing({-1, -1}, Placeholders::one_an_image), contains("image 0: a token became row 4, expected -1 .. 3"));
  const Matrix<float> narrow(2, 5), none(0, 6);
  p.images[0] = {.rows = narrow};
  CHECK_THROWS_AS(splicing({-1, -1}, Placeholders::one_an_image), ShapeError);
  p.images[0] = {.rows = none};
  CHECK_THROWS_WITH(splicing({-1, -1}, Placeholders::one_an_image), contains("image 0 has no tokens"));
}

TEST_CASE("rows that stand for several tokens are read as if these were all there", "[model]") {
  // Tokens that repeat each other: one row of mass 3 at a single position, against a cache that is given its row three times.
  const AttentionShape shape{2, 1, 8};
  const Matrix<double> k = random_matrix<double>(2, 8, 1), v = random_matrix<double>(2, 8, 2), q = random_matrix<double>(1, 16, 3);
  KvCache<double> counted(shape, {}, {.keep_masses = true}), repeated(shape);
  const std::vector<float> masses{3, 1};
  counted.append(k, v, {.masses = masses});
  for (const Index row : {0, 0, 0, 1}) repeated.append(k.row(row), v.row(row));
  const auto read = [&](const auto& cache) {
    Matrix<double> out(1, 16);
    Workspace ws(attend_workspace_bytes<double>(shape, 4, 1));
    attend<double>(q, cache.view(), out, ws);
    return out;
  };
  CHECK((read(counted) - read(repeated)).cwiseAbs().maxCoeff() <= 1e-7 * v.cwiseAbs().maxCoeff());  // the logarithm is a float
  CHECK_THROWS_WITH(repeated.append(k, v, {.masses = masses}), contains("construct with keep_masses"));
  const std::vector<float> less{3, .5f}, one{3}, unknown{3, std::numeric_limits<float>::quiet_NaN()};
  CHECK_THROWS_WITH(counted.append(k, v, {.masses = less}), contains("mass 0.500000, expected 1 .. 16777216 tokens"));
  CHECK_THROWS_AS(counted.append(k, v, {.masses = unknown}), ShapeError);
  CHECK_THROWS_WITH(counted.append(k, v, {.masses = one}), contains("1 masses for 2 tokens"));
  CHECK(counted.size(0) == 2);
}
