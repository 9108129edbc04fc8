// The proxy pass: what an observer sees, and that nothing else can tell that it was there.
#include <cmath>
#include <string>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"
#include "support/same_session.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::same_bits;

namespace {

struct Looked {
  DecoderConfig config = pith_test::tiny_config();
  Decoder<float> decoder = pith_test::random_decoder<float>(config);
  std::vector<Token> tokens = pith_test::random_tokens(64, 50);
  std::span<const Token> prompt = std::span<const Token>(tokens).first(24);
  std::span<const Token> rest = std::span<const Token>(tokens).subspan(24);
  std::vector<Token> proxy = pith_test::random_tokens(19, 50, 7);
  PolicyModel<float> parts{.rope = decoder.rope(), .o_proj = std::make_shared<Matrix<float>>(pith_test::random_matrix<float>(24, 32, 5))};
};

struct LookedQueries {
  std::vector<Matrix<float>> layers;
  LookedQueries(Index count, Index tokens, Index width) : layers(static_cast<std::size_t>(count), Matrix<float>::Zero(tokens, width)) {}
};

/// Weights of the queries of one tile on prefix, own rows and proxy, by plain loops in double.
template <KvStorage T> void check_tile(const LookTile<T>& tile, Index group, Position next) {
  const Index d = tile.attention.queries.cols();
  const auto logit = [&](Index q, const KvRun<T>& run, Index r) {
    std::vector<float> key(static_cast<std::size_t>(d));
    detail::widen(run.keys + r * run.stride, key.data(), d);
    double sum = 0;
    for (Index i = 0; i < d; ++i) sum += double(tile.attention.queries(q, i)) * double(key[static_cast<std::size_t>(i)]);
    return sum * double(tile.scale) + (run.log_mass != nullptr ? double(run.log_mass[r]) : 0.0);
  };
  for (Index q = 0; q < tile.attention.queries.rows(); ++q) {
    const Position at = tile.attention.first_query + static_cast<Position>(q / group);
    double total = 0;
    std::vector<double> own;
    for (const KvRun<T>* run : {&tile.prefix, &tile.rows, &tile.proxy})
      for (Index r = 0; r < run->rows; ++r) {
        if (run->positions != nullptr && run->positions[r] > at) continue;
        const double e = std::exp(logit(q, *run, r));
        total += e;
        if (run == &tile.rows) own.push_back(e);
      }
    CHECK(at >= next);
    REQUIRE(static_cast<Index>(own.size()) == tile.attention.weights.cols());
    for (std::size_t r = 0; r < own.size(); ++r) CHECK(std::abs(own[r] / total - double(tile.attention.weights(q, Index(r)))) < 2e-6);
    CHECK(std::abs(std::log(total) - double(tile.attention.log_sum[q])) < 2e-5);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("a proxy pass leaves no trace, under every policy", "[model][look]", float, bfloat16, Q8, (Kv<Q8, Rotated<Q4>>)) {
  const Looked look;
  const auto see_nothing = [](const LookTile<TestType>&) {};
  for (const PolicyEntry<float>& entry : policy_catalogue<float>()) {
    if (!std::is_same_v<TestType, float> && entry.name == "h2o-cache") continue;  // rounded rows do not turn again and again
    INFO(entry.name);
    const AnyPolicy<float> policy = entry.make(12, look.parts);
    auto session = look.decoder.template start<TestType>(policy, {.max_prompt = 30, .max_tokens = 64, .keep_masses = true},
                                                         AnyMerge<float>(Averaged{}));
    session.prefill(look.prompt);
    for (std::size_t i = 0; i < 5; ++i) session.decode(look.rest[i]);
    auto other = session.clone();
    session.look(look.proxy, see_nothing);
    CHECK(pith_test::difference(session, other).empty());
    // Inside a journal, and what is taken back afterwards.
    for (auto* one : {&session, &other}) {
      one->checkpoint();
      one->decode(look.rest[5]);
      one->decode(look.rest[6]);
    }
    session.look(look.proxy, see_nothing);
    CHECK(same_bits(session.decode(look.rest[7]), other.decode(look.rest[7])));
    for (auto* one : {&session, &other}) one->crop(24 + 6);
    CHECK(pith_test::difference(session, other).empty());
    // Between two pieces of a prompt.
    for (auto* one : {&session, &other}) one->prefill(look.rest.subspan(8, 6), {.more = true});
    session.look(look.proxy, see_nothing);
    CHECK(same_bits(session.prefill(look.rest.subspan(14, 4)), other.prefill(look.rest.subspan(14, 4))));
    CHECK(pith_test::difference(session, other).empty());
  }
}

TEST_CASE("the observer of a proxy pass sees its queries and their weights on the rows", "[model][look]") {
  const Looked look;
  const Index group = look.config.num_attention_heads / look.config.num_key_value_heads, d = look.config.head_dim;
  const Index n = static_cast<Index>(look.proxy.size()), width = look.config.num_attention_heads * d;
  auto first = look.decoder.start(Dense{}, {.max_prompt = 64});
  first.prefill(look.prompt);
  const KvPrefix prefix = first.freeze();
  const auto check = [&](Session<float>& session, const Matrix<float>* reference, std::size_t layers) {
    LookedQueries seen(look.config.num_hidden_layers, n, width);
    Matrix<Index> calls = Matrix<Index>::Zero(look.config.num_hidden_layers, look.config.num_key_value_heads);
    session.look(look.proxy, [&](const LookTile<float>& tile) {
      check_tile(tile, group, session.next_position());
      calls(tile.layer, tile.attention.kv_head) += tile.attention.num_queries;
      for (Index q = 0; q < tile.attention.queries.rows(); ++q)
        seen.layers[static_cast<std::size_t>(tile.layer)]
            .row(tile.attention.first_query - session.next_position() + q / group)
            .segment((tile.attention.kv_head * group + q % group) * d, d) = tile.attention.queries.row(q);
    });
    CHECK((calls.array() == n).all());  // every query once in each layer and head
    for (std::size_t l = 0; l < layers; ++l) CHECK(pith_test::near(seen.layers[l], reference[l], 1e-5));
  };
  // The same queries as when the tokens are read behind the text.
  std::vector<Token> both(look.prompt.begin(), look.prompt.end());
  both.insert(both.end(), look.proxy.begin(), look.proxy.end());
  LookedQueries whole(look.config.num_hidden_layers, 24 + n, width);
  auto reader = look.decoder.start(Dense{}, {.max_prompt = 64});
  reader.prefill(both, {.queries = [&](const LayerQueries<float>& q) {
                   whole.layers[static_cast<std::size_t>(q.layer)].middleRows(q.first, q.queries.rows()) = q.queries;
                 }});
  std::vector<Matrix<float>> expected;
  for (const Matrix<float>& layer : whole.layers) expected.push_back(layer.bottomRows(n));
  check(first, expected.data(), expected.size());
  SECTION("behind a prefix") {
    auto behind = look.decoder.start(Dense{}, {.max_prompt = 64, .prefix = prefix});
    behind.prefill(look.rest.first(7));
    check(behind, nullptr, 0);
  }
  SECTION("rows that are left, with masses") {
    auto evicting = look.decoder.start(HeavyHitter{.heavy = 6, .recent = 6}, {.max_prompt = 64, .keep_masses = true}, Averaged{});
    evicting.prefill(look.prompt);
    check(evicting, nullptr, 0);
  }
}

TEST_CASE("observing a prompt's queries changes nothing, and sees all of them", "[model][look]") {
  const Looked look;
  auto plain = look.decoder.start(SnapKv{.keep = 10, .window = 4}, {.max_prompt = 64});
  auto seen = look.decoder.start(SnapKv{.keep = 10, .window = 4}, {.max_prompt = 64});
  Matrix<Index> tokens = Matrix<Index>::Zero(look.config.num_hidden_layers, 24);
  const auto count = [&](const LayerQueries<float>& q) {
    for (Index t = 0; t < q.queries.rows(); ++t) tokens(q.layer, q.first + t) += 1;
  };
  CHECK(same_bits(plain.prefill(look.prompt), seen.prefill(look.prompt, {.queries = count})));
  CHECK((tokens.array() == 1).all());
  CHECK(pith_test::difference(plain, seen).empty());
  CHECK_THROWS_WITH(seen.prefill(look.prompt, {.queries = [](const LayerQueries<double>&) {}}), contains("another number type"));
  CHECK(pith_test::difference(plain, seen).empty());
}

TEST_CASE("a proxy pass may use an adapter of its own, and refuses what cannot be read", "[model][look]") {
  const Looked look;
  auto session = look.decoder.start(Dense{}, {.max_prompt = 64});
  session.prefill(look.prompt);
  const auto outputs = [&](const LookOptions<float>& options) {
    Matrix<float> queries = Matrix<float>::Zero(19, 8);
    session.look(
        look.proxy,
        [&](const LookTile<float>& tile) {
          if (tile.layer == 1 && tile.attention.kv_head == 0)
            for (Index q = 0; q < tile.attention.num_queries; ++q)
              queries.row(tile.attention.first_query_index + q) = tile.attention.queries.row(2 * q);
        },
        options);
    return queries;
  };
  const ModelAdapter<float> adapter = pith_test::random_adapter(look.decoder, 4, 3);
  CHECK(!same_bits(outputs({}), outputs({.adapter = &adapter})));
  DecoderConfig larger = look.config;
  larger.num_hidden_layers = 3;
  const auto other = pith_test::random_decoder<float>(larger, 9);
  const ModelAdapter<float> stranger = pith_test::random_adapter(other, 4, 3);
  const auto nothing = [](const LookTile<float>&) {};
  const std::vector<Token> outside{50};
  CHECK_THROWS_WITH(session.look(look.proxy, nothing, {.adapter = &stranger}), contains("another decoder"));
  CHECK_THROWS_WITH(session.look({}, nothing), contains("no tokens"));
  CHECK_THROWS_AS(session.look(outside, nothing), ShapeError);
  CHECK_THROWS_WITH(session.look(look.proxy, [](const LookTile<float>&) { raise<StateError>("thrown by the observer"); }),
                    contains("thrown by the observer"));
  auto whole = look.decoder.start(Dense{}, {.max_prompt = 64});
  whole.prefill(look.prompt);
  CHECK(pith_test::difference(session, whole).empty());
}

TEST_CASE("a session drops positions a .. b from every layer", "[model][look]") {
  const Looked look;
  auto session = look.decoder.start(Dense{}, {.max_prompt = 64});
  session.prefill(look.prompt);
  auto caches = session.clone();
  CHECK(session.drop(10, 15) == 5 * 2 * 2);
  for (auto& cache : caches.caches()) cache.drop(10, 15);
  CHECK(pith_test::difference(session, caches).empty());
  CHECK(session.logits().rows() == 1);
  CHECK(same_bits(session.decode(look.rest[0]), caches.decode(look.rest[0])));
  CHECK(session.drop(20, 25) == 5 * 2 * 2);
  CHECK(session.logits().rows() == 0);  // they followed a token that is gone
  CHECK_THROWS_WITH(session.drop(5, 4), contains("expected them to ascend within 0 .. 25"));
  CHECK_THROWS_WITH(session.drop(5, 26), contains("expected them to ascend"));
  SECTION("inside a journal") {
    auto heavy = look.decoder.start(HeavyHitter{.heavy = 6, .recent = 6}, {.max_prompt = 64});
    heavy.prefill(look.prompt);
    heavy.checkpoint();
    auto before = heavy.clone();
    CHECK_THROWS_WITH(heavy.drop(20, 22), contains("inside a journal"));
    CHECK(same_bits(heavy.decode(look.rest[0]), before.decode(look.rest[0])));
  }
  SECTION("at cache positions the gap closes") {
    auto tova = look.decoder.start(AtCachePositions(Tova{12}), {.max_prompt = 64});
    tova.prefill(look.prompt);
    tova.drop(20, 22);
    for (const auto& cache : tova.caches()) CHECK(cache.query_position() == cache.size(0));
    CHECK(tova.problem(tova.snapshot()).empty());
    tova.decode(look.rest[0]);
  }
}
