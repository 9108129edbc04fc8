// FastV: tokens of a prompt that later layers leave out.
#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "support/catch.hpp"
#include "support/plain_decoder.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;

namespace {

/// 90 tokens, of which 20 .. 79 are an image: across two tiles of a prompt.
std::vector<TokenKind> kinds_with_image() {
  std::vector<TokenKind> kinds(90, TokenKind::text);
  std::fill(kinds.begin() + 20, kinds.begin() + 80, TokenKind::image);
  return kinds;
}

Matrix<float> rows_of(const Decoder<float>& decoder, std::span<const Token> tokens) {
  Matrix<float> rows(static_cast<Index>(tokens.size()), decoder.config().hidden_size);
  decoder.weights().embed_tokens.gather(tokens, rows);
  return rows;
}

}  // namespace

TEST_CASE("pruned tokens are those the last query attends to least, and later layers never see them", "[model]") {
  DecoderConfig config = pith_test::tiny_config();
  config.resolve().layers.back().window = 31;  // distances are those of the text
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(90, 50);
  const std::vector<TokenKind> kinds = kinds_with_image();
  const Matrix<float> rows = rows_of(decoder, tokens);
  const Index layers = config.num_hidden_layers, d = config.head_dim, group = config.attention().group();
  REQUIRE(layers >= 2);
  for (Index after = 1; after < layers; ++after) {
    Matrix<float> last;
    auto full = decoder.start(Dense{}, {.max_prompt = 90}), pruned = decoder.start(Dense{}, {.max_prompt = 90});
    full.prefill(rows, kinds, {.queries = [&](const LayerQueries<float>& seen) {
                   if (seen.layer == after - 1) last = seen.queries.bottomRows(1);
                 }});
    const Vector<float> logits = pruned.prefill(rows, kinds, {.prune = {.after = after, .keep = 13}}).row(0).transpose();

    std::vector<double> scores(90, 0);
    const auto& cache = full.caches()[static_cast<std::size_t>(after - 1)];
    for (Index h = 0; h < config.num_attention_heads; ++h) {
      const Vector<double> logit =
          cache.keys(h / group).cast<double>() * last.row(0).segment(h * d, d).cast<double>().transpose() / std::sqrt(double(d));
      const Vector<double> weights = logit.array().exp();
      for (Index r = 0; r < 90; ++r)
        scores[static_cast<std::size_t>(cache.positions(h / group)[static_cast<std::size_t>(r)])] += weights[r] / weights.sum();
    }
    std::vector<Position> image;
    for (Position t = 20; t < 80; ++t) image.push_back(t);
    std::sort(image.begin(), image.end(),
              [&](Position a, Position b) { return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)]; });
    const std::set<Position> kept(image.begin(), image.begin() + 13);
    const auto gone = [&](Index t) { return t >= 20 && t < 80 && kept.count(static_cast<Position>(t)) == 0; };

    for (Index l = 0; l < layers; ++l) {
      const auto positions = pruned.caches()[static_cast<std::size_t>(l)].positions(0);
      CHECK(static_cast<Index>(positions.size()) == (l < after ? 90 : 43));
      for (const Position p : positions) CHECK_FALSE((l >= after && gone(p)));
    }
    const pith_test::PlainDecoder<float> plain(decoder);
    const auto left_out = [&](std::size_t layer, Index t) { return static_cast<Index>(layer) >= after && gone(t); };
    std::vector<Token> more = tokens;
    CHECK((plain.forward(more, left_out).row(89).transpose() - logits.cast<double>()).cwiseAbs().maxCoeff() < 1e-4);
    for (const Token next : {7, 11}) {
      more.push_back(next);
      const Vector<float> after_next = pruned.decode(next).row(0).transpose();
      CHECK((plain.forward(more, left_out).bottomRows(1).transpose() - after_next.cast<double>()).cwiseAbs().maxCoeff() < 1e-4);
    }
    CHECK(pruned.next_position() == 92);
  }
}

TEST_CASE("pruning that leaves nothing out changes no bit, nor do threads", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const Matrix<float> rows = rows_of(decoder, pith_test::random_tokens(90, 50));
  const std::vector<TokenKind> kinds = kinds_with_image();
  ThreadPool pool(3);
  const auto logits = [&](const PrefillOptions& options, ExecutorRef executor) {
    auto session = decoder.start(HeavyHitter{.heavy = 30, .recent = 30}, {.max_prompt = 90, .executor = executor});
    return Matrix<float>(session.prefill(rows, kinds, options));
  };
  CHECK(logits({.prune = {.after = 1, .keep = 60}}, serial) == logits({}, serial));
  CHECK(logits({.prune = {.after = 1, .keep = 0, .kind = TokenKind::audio}}, serial) == logits({}, serial));
  CHECK(logits({.prune = {.after = 1, .keep = 7}}, serial) == logits({.prune = {.after = 1, .keep = 7}}, pool));
  // the last token stays, whatever its kind
  auto session = decoder.start(Dense{}, {.max_prompt = 90});
  session.prefill(rows, std::vector<TokenKind>(90, TokenKind::image), {.prune = {.after = 1, .keep = 0}});
  CHECK(session.caches()[1].positions(0).size() == 1);
  CHECK(session.caches()[1].positions(0)[0] == 89);
}

TEST_CASE("pruning is refused where later layers could not read what is left", "[model]") {
  const DecoderConfig config = pith_test::tiny_config();
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(20, 50);
  const auto refused = [&](const Decoder<float>& model, const AnyPolicy<float>& policy, const PrefillOptions& options,
                           const char* message) {
    auto session = model.start(policy, {.max_prompt = 30});
    CHECK_THROWS_WITH(session.prefill(tokens, options), contains(message));
    CHECK(session.next_position() == 0);
  };
  refused(decoder, Dense{}, {.prune = {.after = -1}}, "prune.after is -1 and prune.keep 0, expected 1 ..");
  refused(decoder, Dense{}, {.prune = {.after = config.num_hidden_layers}}, "layers and 0 or more tokens");
  refused(decoder, Dense{}, {.prune = {.after = 1, .keep = -1}}, "prune.keep -1");
  refused(decoder, Dense{}, {.more = true, .prune = {.after = 1}}, "prune in a piece of a prompt");
  refused(decoder, SinkWindow{.sinks = 2, .window = 6}, {.prune = {.after = 1}}, "reads at cache positions");
}
