// Sessions that share the rows of a prompt read once.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include <pith/attention/scout.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::same_bits;

namespace {

constexpr Index one_block = 32;  // rows the kernel sums together: runs of whole blocks are summed as one run would be

struct SystemPrompt {
  DecoderConfig config = pith_test::tiny_config();
  Decoder<float> decoder = pith_test::random_decoder<float>(config);
  std::vector<Token> tokens = pith_test::random_tokens(120, 50);
  std::span<const Token> system = std::span<const Token>(tokens).first(one_block);
  std::span<const Token> turn = std::span<const Token>(tokens).subspan(one_block);

  template <KvStorage T = float> KvPrefix frozen() const {
    auto session = decoder.start<T>(Dense{}, {.max_prompt = one_block, .max_tokens = one_block, .max_draft = 0});
    session.prefill(system);
    return session.freeze();
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a session behind a frozen prompt goes on as if it had read it, bit for bit", "[model]", float, bfloat16, Q8,
                   (Kv<Q8, Rotated<Q4>>)) {
  const SystemPrompt prompt;
  auto whole = prompt.decoder.start<TestType>(Dense{}, {.max_prompt = 80, .max_tokens = 120});
  auto behind = prompt.decoder.start<TestType>(Dense{}, {.max_prompt = 40, .max_tokens = 88, .prefix = prompt.frozen<TestType>()});
  CHECK(behind.next_position() == one_block);
  whole.prefill(prompt.system);
  CHECK(same_bits(whole.prefill(prompt.turn.first(40)), behind.prefill(prompt.turn.first(40))));
  for (std::size_t at = 40; at < 60; ++at) REQUIRE(same_bits(whole.decode(prompt.turn[at]), behind.decode(prompt.turn[at])));
  behind.crop(one_block + 45);
  CHECK_THROWS_WITH(behind.crop(one_block - 1), contains("expected 32 .. 77"));
  whole.crop(one_block + 45);
  CHECK(same_bits(whole.decode(prompt.turn[45]), behind.decode(prompt.turn[45])));
}

TEST_CASE("sinks at cache positions stay as near behind a prefix as the prefix's own rows", "[model]") {
  const SystemPrompt prompt;
  auto whole = prompt.decoder.start(SinkWindow{.sinks = one_block + 4, .window = 20}, {.max_prompt = one_block});
  auto behind = prompt.decoder.start(SinkWindow{.sinks = 4, .window = 20}, {.max_prompt = 1, .prefix = prompt.frozen()});
  whole.prefill(prompt.system);
  for (std::size_t at = 0; at < 70; ++at) REQUIRE(same_bits(whole.decode(prompt.turn[at]), behind.decode(prompt.turn[at])));
  CHECK(behind.caches()[0].gap() == 70 - 24);
  CHECK(behind.caches()[0].gap() == whole.caches()[0].gap());
  CHECK_THROWS_WITH(behind.freeze(), contains("nearer than in the text"));
}

TEST_CASE("rows behind a prefix that is no whole block differ by rounding only", "[model]") {
  const Decoder<double> decoder = pith_test::random_decoder<double>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(60, 50);
  const std::span<const Token> all(tokens);
  auto first = decoder.start(Dense{}, {.max_tokens = 11});
  first.prefill(all.first(11));
  auto second = decoder.start(Dense{}, {.max_tokens = 9, .prefix = first.freeze()});
  second.prefill(all.subspan(11, 9));
  const KvPrefix both = second.freeze();  // its own rows behind those it began with
  CHECK(both.next_position() == 20);
  CHECK(both.rows() == 20);
  auto behind = decoder.start(Dense{}, {.max_tokens = 40, .prefix = both});
  auto whole = decoder.start(Dense{}, {.max_tokens = 60});
  const Matrix<double> expected = whole.prefill(all), logits = behind.prefill(all.subspan(20));
  CHECK(pith_test::near(logits, expected, 1e-10 * expected.cwiseAbs().maxCoeff()));
}

TEST_CASE("under every policy a prefix costs no row, no byte and no law", "[model]") {
  const SystemPrompt prompt;
  const KvPrefix prefix = prompt.frozen();
  auto o_proj = std::make_shared<Matrix<float>>(prompt.config.hidden_size, prompt.config.num_attention_heads * prompt.config.head_dim);
  prompt.decoder.weights().layers[0].o_proj.copy_weight(0, *o_proj);
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    INFO(entry.name);
    const AnyPolicy<float> policy = entry.make(12, {std::make_shared<const Rope<float>>(prompt.config.rope()), o_proj});
    const std::size_t bytes_without = prompt.decoder.start(policy, {.max_prompt = 40, .max_generated = 60}).cache_bytes();
    auto alone = prompt.decoder.start(policy, {.max_prompt = 40, .max_generated = 60, .prefix = prefix});
    auto company = prompt.decoder.start(policy, {.max_prompt = 40, .max_generated = 60, .prefix = prefix});
    CHECK(alone.cache_bytes() == bytes_without);
    for (int round = 0; round < 2; ++round) {
      REQUIRE(same_bits(alone.prefill(prompt.turn.first(40)), company.prefill(prompt.turn.first(40))));
      for (std::size_t at = 40; at + 3 <= 70; at += 3) {
        company.checkpoint();
        company.decode(prompt.turn.subspan(5, 4));
        company.crop(static_cast<Position>(one_block + at));
        const Matrix<float> together = company.decode(prompt.turn.subspan(at, 3));
        for (Index t = 0; t < 3; ++t)
          REQUIRE(same_bits(alone.decode(prompt.turn[at + static_cast<std::size_t>(t)]).row(0), together.row(t)));
      }
      for (const auto& cache : alone.caches()) {
        Index rows = 0;
        for (Index h = 0; h < cache.shape().num_kv_heads; ++h) rows += cache.size(h);
        if (entry.name != "dense" && entry.name != "text-prior")  // this one keeps all text
          CHECK(rows <= cache.shape().num_kv_heads * (cache.budget() + (cache.facts().traits.prompt_only ? 30 : 0)));
      }
      for (auto* session : {&alone, &company}) session->clear();
      CHECK(alone.next_position() == one_block);
    }
  }
}

TEST_CASE("a learned prefix without positions is seen by every query, and freezes no further", "[model]") {
  const AttentionShape shape{2, 1, 8};
  const Matrix<double> learned = pith_test::random_matrix<double>(3, 8, 1);
  std::vector<KvPrefixLayer<double>> layers(1);
  layers[0].sizes = {3};
  layers[0].keys.assign(learned.data(), learned.data() + learned.size());
  layers[0].values = layers[0].keys;
  layers[0].scouts = true;
  CHECK_THROWS_WITH(KvPrefix(shape, 3, layers), contains("scouts of keys that are stored as codes or doubles"));
  layers[0].scouts = false;
  KvCache<double> behind(shape, Dense{}, {.prefix = KvPrefix(shape, 3, layers)}), whole(shape, Dense{}, {.max_chunk = 3});
  whole.append(learned, learned);
  pith_test::KvStream<double> stream(shape, 2);
  for (int step = 0; step < 5; ++step) {
    const Matrix<double> q = stream.random(2, 16), k = stream.random(2, 8), v = stream.random(2, 8);
    CHECK(pith_test::near(stream.feed(behind, q, k, v), stream.feed(whole, q, k, v), 1e-13));
  }
  CHECK(behind.next_position() == 13);
  CHECK_THROWS_WITH(behind.freeze(), contains("learned prefix"));
}

TEST_CASE("a prefix that does not fit is refused, with what was expected", "[model]") {
  const AttentionShape shape{2, 1, 8};
  const auto layer = [](Index rows, std::vector<Position> positions) {
    KvPrefixLayer<float> made;
    made.sizes = {rows};
    made.keys.resize(static_cast<std::size_t>(rows * 8));
    made.values = made.keys;
    made.positions = std::move(positions);
    return made;
  };
  const auto prefix = [&](KvPrefixLayer<float> rows) { return KvPrefix(shape, 2, std::vector<KvPrefixLayer<float>>{std::move(rows)}); };
  CHECK_THROWS_WITH(prefix(layer(2, {0, 2})), contains("position 2, expected 0 .. 1"));
  CHECK_THROWS_WITH(prefix(layer(2, {0})), contains("1 positions for 2 rows"));
  KvPrefixLayer<float> lying = layer(2, {});
  lying.sizes = {3};
  CHECK_THROWS_WITH(prefix(lying), contains("a head of 3 rows where 2 are left"));
  lying.sizes = {1, 1};
  CHECK_THROWS_WITH(prefix(lying), contains("2 heads, expected 1"));

  const KvPrefix good = prefix(layer(2, {0, 1}));
  CHECK_THROWS_WITH(KvCache(shape, Dense{}, {.prefix = good, .layer = 1}), contains("layer 1 of 1"));
  CHECK_THROWS_WITH(KvCache(AttentionShape{2, 2, 8}, Dense{}, {.prefix = good}), contains("1 kv heads of 8, the cache has 2 of 8"));
  using Half = KvCache<half>;
  CHECK_THROWS_WITH(Half(shape, Dense{}, {.prefix = good}), contains("stored as another type"));
}

TEST_CASE("sessions share the scout codes of a frozen prompt", "[model]") {
  const SystemPrompt prompt;
  const auto start = [&](const KvPrefix& prefix, bool scouts, double share) {
    return prompt.decoder.start(Dense{},
                                {.max_prompt = one_block, .max_tokens = 90, .skip_below = share, .scout_keys = scouts, .prefix = prefix});
  };
  auto first = start({}, true, .2);
  first.prefill(prompt.system);
  const KvPrefix prefix = first.freeze();
  const AttentionShape shape = first.caches()[0].shape();
  std::vector<std::byte> codes(static_cast<std::size_t>(scout_row_bytes(shape.head_dim)));
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    const KvRun<float> run = prefix.run<float>(1, h);
    REQUIRE(run.rows == one_block);
    for (Index r = 0; r < run.rows; ++r) {
      scout_encode(run.keys + r * run.stride, shape.head_dim, codes.data());
      CHECK(std::equal(codes.begin(), codes.end(), run.scouts + r * scout_row_bytes(shape.head_dim)));
    }
  }
  auto one = start(prefix, true, .2), other = start(prefix, true, .2), dense = start(prefix, true, 0), without = start(prefix, false, 0);
  for (std::size_t at = 0; at < 20; ++at) {
    one.decode(prompt.turn[at]);
    other.decode(prompt.turn[at]);
    first.decode(prompt.turn[at]);
    REQUIRE(same_bits(one.logits(), other.logits()));
    REQUIRE(same_bits(one.logits(), first.logits()));  // the prompt is a whole block
    REQUIRE(same_bits(dense.decode(prompt.turn[at]), without.decode(prompt.turn[at])));
  }
  CHECK(one.reads().needed < one.reads().rows);
  CHECK(one.reads().needed == other.reads().needed);
  CHECK(dense.reads().needed == dense.reads().rows);
}
