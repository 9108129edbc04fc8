// FastV: tokens of a prompt that later layers leave out.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <pith/kv.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/plain_decoder.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_adapters.hpp"
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

/// Prunes a prompt behind each layer, and compares with a plain decoder that leaves the same tokens out of the same layers.
void check_pruned(const Decoder<float>& decoder, const AnyPolicy<float>& policy, const ModelAdapter<float>* adapter = nullptr,
                  Index adapted_from = -1) {
  const DecoderConfig& config = decoder.config();
  const std::vector<Token> tokens = pith_test::random_tokens(90, 50);
  const std::vector<TokenKind> kinds = kinds_with_image();
  const Matrix<float> rows = rows_of(decoder, tokens);
  const Index layers = config.num_hidden_layers, d = config.head_dim, group = config.attention().group();
  REQUIRE(layers >= 2);
  for (Index after = 1; after < layers; ++after) {
    Matrix<float> last;
    auto full = decoder.start(policy, {.max_prompt = 90}), pruned = decoder.start(policy, {.max_prompt = 90});
    full.use(adapter), pruned.use(adapter);
    full.prefill(rows, kinds, {.adapted_from = adapted_from, .queries = [&](const LayerQueries<float>& seen) {
                                 if (seen.layer == after - 1) last = seen.queries.bottomRows(1);
                               }});
    const PrefillOptions options{.prune = {.after = after, .keep = 13}, .adapted_from = adapted_from};
    const Vector<float> logits = pruned.prefill(rows, kinds, options).row(0).transpose();
    const bool closes_up = full.caches()[0].reindexes();

    std::vector<double> scores(90, 0);
    const auto& cache = full.caches()[static_cast<std::size_t>(after - 1)];
    const RopePositions positions_of = closes_up ? RopePositions::cache : RopePositions::text;
    for (Index h = 0; h < config.num_attention_heads; ++h) {
      const Vector<double> logit =
          pith_test::times_transposed(cache.keys(h / group, positions_of), last.row(0).segment(h * d, d)).col(0) / std::sqrt(double(d));
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
    const pith_test::PlainDecoder<float> base(decoder), plain(decoder, adapter);
    const auto left_out = [&](std::size_t layer, Index t) { return static_cast<Index>(layer) >= after && gone(t); };
    const auto angle = [&](std::size_t layer, Index t) {
      Index before = t;
      for (Index other = 0; closes_up && other < t; ++other) before -= left_out(layer, other);
      return before;
    };
    const auto expected = [&](const std::vector<Token>& text) {
      return plain.forward(text, {left_out, angle, &base, std::max<Index>(0, adapted_from)}).bottomRows(1).transpose().eval();
    };
    std::vector<Token> more = tokens;
    CHECK((expected(more) - logits.cast<double>()).cwiseAbs().maxCoeff() < 1e-4);
    for (const Token next : {7, 11}) {
      more.push_back(next);
      const Vector<float> after_next = pruned.decode(next).row(0).transpose();
      CHECK((expected(more) - after_next.cast<double>()).cwiseAbs().maxCoeff() < 1e-4);
    }
    CHECK(pruned.next_position() == 92);
  }
}

/// Three layers, of which the last has a window: distances are those of the text.
Decoder<float> windowed_decoder() {
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 3;
  config.resolve().layers.back().window = 31;
  return pith_test::random_decoder<float>(config);
}

}  // namespace

TEST_CASE("pruned tokens are those the last query attends to least, and later layers never see them", "[model]") {
  check_pruned(windowed_decoder(), Dense{});
}

TEST_CASE("pruning under adapters: those of the rows that are left", "[model]") {
  const Decoder<float> decoder = windowed_decoder();
  const ModelAdapter<float> lora = pith_test::random_adapter<float>(decoder, 3, 100);
  check_pruned(decoder, Dense{}, &lora);
  AdapterParts<float> parts = lora.parts();
  parts.invocation = {7, 11, 7};
  const ModelAdapter<float> activated{decoder.adapter_target(), std::move(parts)};
  for (const Index from : {3, 50, 85}) check_pruned(decoder, Dense{}, &activated, from);  // before, in and behind the image

  // The rows of an adapter's prompt are no tokens: they stay, and sight does not count them.
  AdapterParts<float> with_prompt = lora.parts();
  with_prompt.prompt = pith_test::random_matrix<float>(4, 24, 5);
  const ModelAdapter<float> prompted{decoder.adapter_target(), std::move(with_prompt)};
  const Matrix<float> rows = rows_of(decoder, pith_test::random_tokens(20, 50));
  std::vector<Position> sight(20);
  std::iota(sight.begin(), sight.end(), Position(0));
  std::fill(sight.begin() + 5, sight.begin() + 9, Position(9));
  auto all = decoder.start(Dense{}, {.max_prompt = 30}), pruned = decoder.start(Dense{}, {.max_prompt = 30});
  all.use(&prompted), pruned.use(&prompted);
  const Matrix<float> expected = all.prefill(rows, {}, {.sight = sight});
  CHECK(pruned.prefill(rows, {}, {.sight = sight, .prune = {.after = 1, .keep = 19, .kind = TokenKind::text}}) == expected);
  pruned.clear();
  pruned.prefill(rows, {}, {.sight = sight, .prune = {.after = 1, .keep = 0, .kind = TokenKind::text}});
  const auto left = pruned.caches()[1].positions(0);
  CHECK(std::vector<Position>(left.begin(), left.end()) == std::vector<Position>{0, 1, 2, 3, 23});
}

TEST_CASE("pruning at cache positions closes the gaps", "[model]") {
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 3;
  check_pruned(pith_test::random_decoder<float>(config), AtCachePositions(HeavyHitter{.heavy = 60, .recent = 60}));
}

TEST_CASE("pruning the last piece of a prompt: the pieces before it stay whole", "[model]") {
  const Decoder<float> decoder = windowed_decoder();
  const std::vector<Token> tokens = pith_test::random_tokens(90, 50);
  const std::vector<TokenKind> kinds = kinds_with_image(), text(20, TokenKind::text);
  const Matrix<float> rows = rows_of(decoder, tokens);
  const PrefillOptions prune{.prune = {.after = 1, .keep = 13}};
  for (const AnyPolicy<float>& policy : {AnyPolicy<float>(Dense{}), AnyPolicy<float>(HeavyHitter{.heavy = 30, .recent = 30})}) {
    auto whole = decoder.start(policy, {.max_prompt = 90}), pieces = decoder.start(policy, {.max_prompt = 90});
    const Matrix<float> expected = whole.prefill(rows, kinds, prune);
    pieces.prefill(rows.topRows(20), text, {.more = true});
    CHECK(pieces.prefill(rows.bottomRows(70), std::span(kinds).subspan(20), prune) == expected);
    CHECK(pieces.decode(Token(3)) == whole.decode(Token(3)));
  }
}

TEST_CASE("a pruned prompt that is cancelled leaves no trace, even if its first tokens were left out", "[model]") {
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 3;
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  const Matrix<float> rows = rows_of(decoder, pith_test::random_tokens(30, 50));
  std::vector<TokenKind> kinds(30, TokenKind::image);
  kinds.back() = TokenKind::text;
  for (const AnyPolicy<float>& policy : {AnyPolicy<float>(Dense{}), AnyPolicy<float>(HeavyHitter{.heavy = 30, .recent = 30}),
                                         AnyPolicy<float>(AtCachePositions(HeavyHitter{.heavy = 30, .recent = 30}))}) {
    auto session = decoder.start(policy, {.max_prompt = 30}), other = decoder.start(policy, {.max_prompt = 30});
    session.prefill(rows.topRows(5)), other.prefill(rows.topRows(5));
    PrefillOptions options{.prune = {.after = 1, .keep = 2}, .progress = [](const PrefillProgress& p) { return p.layers_done < 2; }};
    CHECK_THROWS_AS(session.prefill(rows, kinds, options), Cancelled);
    CHECK(session.next_position() == 5);
    options.progress = {};
    CHECK(session.prefill(rows, kinds, options) == other.prefill(rows, kinds, options));
    session.checkpoint();
    session.prefill(rows.topRows(6), std::span(kinds).last(6), {.prune = {.after = 1, .keep = 0}});
    session.crop(35);
    CHECK(session.decode(Token(3)) == other.decode(Token(3)));
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
  // the last token stays, of any kind
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
  refused(decoder, SinkWindow{.sinks = 2, .window = 6}, {.prune = {.after = 1}},
          "the window of layer 1 reads at cache positions, which have none: give it RopePositions::text");
}
