// A conversation leaves the process and goes on: saved and loaded under every policy, and refused wherever it does not belong.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::same_bits;

namespace {

struct SessionPath {
  pith_test::TempFolder folder;
  std::filesystem::path path = folder / "session.safetensors";
};

struct Talk {
  DecoderConfig config = pith_test::tiny_config();
  Decoder<float> decoder = pith_test::random_decoder<float>(config);
  std::vector<Token> tokens = pith_test::random_tokens(90, 50);
  std::span<const Token> all = tokens;
};

}  // namespace

TEMPLATE_TEST_CASE("under every policy a loaded session goes on as the saved one, bit for bit", "[io]", float, bfloat16, Q8,
                   (Kv<Q8, Rotated<Q4>>)) {
  const Talk talk;
  const SessionPath file;
  auto o_proj = std::make_shared<Matrix<float>>(talk.config.hidden_size, talk.config.num_attention_heads * talk.config.head_dim);
  talk.decoder.weights().layers[0].o_proj.copy_weight(0, *o_proj);
  std::size_t turn = sizeof(TestType);  // another strategy with each policy and storage
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    if (entry.name == "h2o-cache" && !std::is_same_v<TestType, float>) continue;  // keys that turn are not rounded
    const MergeEntry<float>& merging = merge_catalogue()[turn++ % merge_catalogue().size()];
    INFO(entry.name << ", " << merging.name);
    const AnyPolicy<float> policy = entry.make(12, {std::make_shared<const Rope<float>>(talk.config.rope()), o_proj});
    const SessionOptions options{.max_prompt = 40, .max_generated = 60, .keep_masses = turn % 2 == 0};
    auto saved = talk.decoder.start<TestType>(policy, options, merging.make());
    saved.prefill(talk.all.first(40));
    for (std::size_t t = 40; t < 57; ++t) saved.decode(talk.tokens[t]);
    save_session(saved, file.path);
    auto loaded = talk.decoder.start<TestType>(policy, options, merging.make());
    loaded.prefill(talk.all.subspan(50, 20));  // forgotten
    load_session(loaded, file.path);
    REQUIRE(loaded.next_position() == 57);
    REQUIRE(same_bits(loaded.logits(), saved.logits()));
    for (int round = 0; round < 2; ++round) {  // rollback as well
      saved.checkpoint();
      loaded.checkpoint();
      for (std::size_t t = 57; t < 65; ++t) REQUIRE(same_bits(loaded.decode(talk.tokens[t]), saved.decode(talk.tokens[t])));
      saved.crop(57);
      loaded.crop(57);
      CHECK(loaded.logits().rows() == 0);
    }
    if (!saved.caches()[0].facts().traits.prompt_only)
      REQUIRE(same_bits(loaded.prefill(talk.all.subspan(57, 20)), saved.prefill(talk.all.subspan(57, 20))));
  }
}

TEST_CASE("scout codes are not saved: a loaded session makes them of its keys, or has none", "[io]") {
  const Talk talk;
  const SessionPath file, again;
  const auto started = [&](bool scouts) {
    const SessionOptions options{.max_prompt = 40, .max_tokens = 128, .skip_below = .2, .scout_keys = scouts};
    return talk.decoder.start(HeavyHitter{.heavy = 20, .recent = 20}, options);
  };
  auto saved = started(true), loaded = started(true), without = started(false);
  saved.prefill(talk.all.first(40));
  for (std::size_t t = 40; t < 57; ++t) saved.decode(talk.tokens[t]);
  save_session(saved, file.path);
  for (auto* session : {&loaded, &without}) {
    session->prefill(talk.all.subspan(50, 20));  // forgotten
    load_session(*session, file.path);
    REQUIRE(same_bits(session->logits(), saved.logits()));
  }
  const AttentionReads before = saved.reads(), of_loaded = loaded.reads();
  for (std::size_t t = 57; t < 80; ++t) REQUIRE(same_bits(loaded.decode(talk.tokens[t]), saved.decode(talk.tokens[t])));
  CHECK(saved.reads().needed - before.needed < saved.reads().rows - before.rows);
  CHECK(loaded.reads().needed - of_loaded.needed == saved.reads().needed - before.needed);
  CHECK(loaded.caches()[0].view().runs.back().scouts != nullptr);
  CHECK(without.caches()[0].view().runs.back().scouts == nullptr);

  load_session(without, file.path);
  save_session(without, again.path);
  const auto bytes = [](const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  CHECK(bytes(again.path) == bytes(file.path));
  CHECK(saved.cache_bytes() > without.cache_bytes());
}

TEST_CASE("a session that an activated LoRA began in goes on from a file, and knows where it began", "[io]") {
  const Talk talk;
  const SessionPath file;
  AdapterParts<float> parts = pith_test::random_adapter<float>(talk.decoder, 3, 70).parts();
  parts.invocation = {48, 49};
  const ModelAdapter<float> exact(talk.decoder.adapter_target(), parts), other = pith_test::narrowed<false>(exact),
                                                                         same = pith_test::narrowed<true>(exact);
  const auto started = [&](const ModelAdapter<float>* adapter) {
    auto session = talk.decoder.start(Dense{}, {.max_prompt = 40});
    session.use(adapter);
    return session;
  };
  auto saved = started(nullptr);
  saved.prefill(talk.all.first(30));  // the base's rows
  saved.use(&other);
  saved.prefill(std::vector<Token>{3, 48, 49, 4});
  REQUIRE(saved.adapter_start() == 31);
  for (std::size_t t = 30; t < 40; ++t) saved.decode(talk.tokens[t]);
  save_session(saved, file.path);

  auto loaded = started(&other), in_float = started(&same), base = started(nullptr), wrong = started(&exact);
  for (auto* session : {&loaded, &in_float}) {   // the type that factors are stored as does not count
    session->prefill(talk.all.subspan(50, 20));  // forgotten
    load_session(*session, file.path);
    CHECK(session->adapter_start() == 31);
    CHECK(same_bits(session->logits(), saved.logits()));
  }
  const auto snapshot = saved.snapshot();
  auto restored = started(&other);
  restored.restore(snapshot);
  for (std::size_t t = 40; t < 60; ++t) {
    const Matrix<float> next = saved.decode(talk.tokens[t]);
    for (auto* session : {&loaded, &in_float, &restored}) REQUIRE(same_bits(Matrix<float>(session->decode(talk.tokens[t])), next));
  }
  for (auto* session : {&base, &wrong}) {
    CHECK_THROWS_AS(load_session(*session, file.path), FormatError);
    CHECK(session->next_position() == 0);
    CHECK(session->adapter_start() == -1);
  }
  // Back to where it began, the rows are the base's.
  loaded.crop(31);
  loaded.use(nullptr);
  base.prefill(talk.all.first(30));
  base.decode(3);
  CHECK(same_bits(loaded.decode(5), base.decode(5)));
}

TEST_CASE("a prompt read in pieces can be saved between them", "[io]") {
  const Talk talk;
  const SessionPath file;
  const AnyPolicy<float> policy = SnapKv{.keep = 10, .window = 4};
  auto saved = talk.decoder.start(policy, {.max_prompt = 30}), loaded = talk.decoder.start(policy, {.max_prompt = 30});
  saved.prefill(talk.all.first(15), {.more = true});
  save_session(saved, file.path);
  load_session(loaded, file.path);
  CHECK(same_bits(loaded.prefill(talk.all.subspan(15, 12)), saved.prefill(talk.all.subspan(15, 12))));
  CHECK(loaded.caches()[0].size(0) == 10);
}

TEST_CASE("a session behind a prefix is saved without it, and asks for it", "[io]") {
  const Talk talk;
  const SessionPath file;
  auto first = talk.decoder.start(Dense{});
  first.prefill(talk.all.first(20));
  const KvPrefix prefix = first.freeze();
  auto saved = talk.decoder.start(Window{.window = 8}, {.prefix = prefix}),
       loaded = talk.decoder.start(Window{.window = 8}, {.prefix = prefix});
  saved.prefill(talk.all.subspan(20, 30));
  save_session(saved, file.path);
  load_session(loaded, file.path);
  CHECK(same_bits(loaded.decode(7), saved.decode(7)));
  CHECK(Safetensors::map(file.path).at("layers.0.positions").elements() == 16);
  first.decode(3);
  auto other = talk.decoder.start(Window{.window = 8}, {.prefix = first.freeze()}), none = talk.decoder.start(Window{.window = 8});
  CHECK_THROWS_WITH(load_session(other, file.path), contains("behind prefix"));
  CHECK_THROWS_WITH(load_session(none, file.path), contains("behind prefix"));
}

TEST_CASE("a saved session is refused by what is not made like it, and the session stays as it was", "[io]") {
  const Talk talk;
  const SessionPath file;
  auto saved = talk.decoder.start(HeavyHitter{.heavy = 6, .recent = 6});
  saved.prefill(talk.all.first(30));
  save_session(saved, file.path);

  const auto refused = [&](auto& session, const std::string& why) {
    session.prefill(talk.all.first(5));
    const Matrix<float> before = session.logits();
    CHECK_THROWS_AS(load_session(session, file.path), FormatError);
    CHECK_THROWS_WITH(load_session(session, file.path), contains(why));
    CHECK(session.next_position() == 5);
    CHECK(same_bits(session.logits(), before));
  };
  auto budget = talk.decoder.start(HeavyHitter{.heavy = 6, .recent = 7});
  refused(budget, "budget 12, retain 12, initial 0, stats 1, memory 0, watching all; this one has");
  auto other = talk.decoder.start(KeyNorm{.keep = 12});  // as many numbers beside a row, and others
  refused(other, "admitting");
  auto dense = talk.decoder.start(Dense{});
  refused(dense, "this one has 4:2 heads of 8, f32, dense");
  auto rounded = talk.decoder.start<bfloat16>(HeavyHitter{.heavy = 6, .recent = 6});
  refused(rounded, "of F32, expected BF16");
  DecoderConfig deeper = talk.config;
  deeper.num_hidden_layers = 3;
  auto layers = pith_test::random_decoder<float>(deeper).start(HeavyHitter{.heavy = 6, .recent = 6});
  refused(layers, "holds '2' layers, expected 3");
  saved.checkpoint();
  CHECK_THROWS_WITH(save_session(saved, file.path), contains("inside a journal"));
}

TEST_CASE("numbers no session could have come to are refused", "[io]") {
  const Talk talk;
  const SessionPath file;
  auto session = talk.decoder.start(SinkWindow{.sinks = 2, .window = 6});
  session.prefill(talk.all.first(31));
  const SessionSnapshot<float> good = session.snapshot();
  CHECK(session.problem(good).empty());
  const auto refused = [&](const std::string& why, auto&& damage) {
    SessionSnapshot<float> bad = good;
    damage(bad, bad.layers[1]);
    INFO(why);
    CHECK_THAT(session.problem(bad), contains(why));
    CHECK_THROWS_AS(session.restore(bad), ShapeError);
    CHECK(session.problem(good).empty());
  };
  using Layer = KvSnapshot<float>;
  using Whole = SessionSnapshot<float>;
  refused("of model 1", [](Whole& s, Layer&) { s.fingerprint = 1; });
  refused("of 1 layers", [](Whole& s, Layer&) { s.layers.pop_back(); });
  refused("logits [1, 3]", [](Whole& s, Layer&) { s.logits.resize(1, 3); });
  refused("position 25, expected 26", [](Whole&, Layer& l) { l.next = l.next_rope_position = 32; });
  refused("position 30, expected", [](Whole&, Layer& l) { l.next = l.next_rope_position = 30; });
  refused("next position -1", [](Whole&, Layer& l) { l.next = -1; });
  refused("5 numbers of heads", [](Whole&, Layer& l) { l.heads.pop_back(); });
  refused("-1 rows", [](Whole&, Layer& l) { l.heads[0] = -1; });
  refused("rows, expected 0 ..", [](Whole&, Layer& l) { l.heads[0] = std::int64_t(1) << 60; });
  refused("head 1 has 7 rows, head 0 8", [](Whole&, Layer& l) { l.heads[3] = 7; });
  refused("begins at row 9", [](Whole&, Layer& l) { l.heads[1] = 9; });
  refused("begins at row 0", [](Whole&, Layer& l) { l.heads[1] = 0; });
  refused("queries", [](Whole&, Layer& l) { l.heads[2] = std::numeric_limits<std::int64_t>::max(); });
  refused("each once", [](Whole&, Layer& l) { l.positions[5] = l.positions[6]; });
  refused("each once", [](Whole&, Layer& l) { l.positions[0] = -4; });
  refused("each once", [](Whole&, Layer& l) { std::swap(l.positions[3], l.positions[4]); });
  refused("16 rows, expected 0 ..", [](Whole&, Layer& l) { l.heads[0] = 16; });
  refused("expected 1: the first tokens and the newest", [](Whole&, Layer& l) { l.positions[1] = l.positions[9] = 7; });
  refused("in the middle of a call: 6 tokens", [](Whole&, Layer& l) { l.unevicted = 6; });
  refused("under a policy that watches none", [](Whole&, Layer& l) { l.heads[2] = 1; });
  refused("between two pieces of a prompt", [](Whole&, Layer& l) {
    l.prefill = false;
    l.more = true;
  });
  refused("15 kinds", [](Whole&, Layer& l) { l.kinds.pop_back(); });
  refused("kind 77", [](Whole&, Layer& l) { l.kinds[2] = TokenKind(77); });
  refused("numbers of keys", [](Whole&, Layer& l) { l.keys.pop_back(); });
  refused("numbers of values", [](Whole&, Layer& l) { l.values.clear(); });
  refused("columns of stats", [](Whole&, Layer& l) { l.stats.resize(0, 3); });
  refused("rows of memory", [](Whole&, Layer& l) { l.memory.resize(1, 0); });
  refused("1 rope positions", [](Whole&, Layer& l) { l.rope_positions.push_back(0); });

  // A window that is not full yet has no ring to turn: rows would leave in the wrong order.
  auto part = talk.decoder.start(SinkWindow{.sinks = 2, .window = 30});
  part.prefill(talk.all.first(10));
  SessionSnapshot<float> turned = part.snapshot();
  for (const std::size_t h : {std::size_t(0), std::size_t(1)}) {
    turned.layers[1].heads[3 * h + 1] = 5;
    std::rotate(turned.layers[1].positions.begin() + static_cast<std::ptrdiff_t>(10 * h) + 2,
                turned.layers[1].positions.begin() + static_cast<std::ptrdiff_t>(10 * h) + 7,
                turned.layers[1].positions.begin() + static_cast<std::ptrdiff_t>(10 * h) + 10);
  }
  CHECK_THAT(part.problem(turned), contains("begins at row 5"));

  auto watched = talk.decoder.start(HeavyHitter{.heavy = 6, .recent = 6});
  watched.prefill(talk.all.first(30));
  SessionSnapshot<float> unseen = watched.snapshot();
  unseen.layers[0].unevicted = 6;  // no attention was seen of them: the next token could not be evicted
  CHECK_THAT(watched.problem(unseen), contains("6 tokens since the last eviction, expected 0"));
  unseen = watched.snapshot();
  unseen.layers[1].next = unseen.layers[1].next_rope_position = 32;
  CHECK_THAT(watched.problem(unseen), contains("with layer 1 at position 32, layer 0 at 30"));
  unseen = watched.snapshot();
  unseen.layers[1].heads[3] = 11;
  CHECK_THAT(watched.problem(unseen), contains("24 rows, but the heads have 23"));
  unseen = watched.snapshot();
  unseen.layers[1].heads[5] = 2;
  CHECK_THAT(watched.problem(unseen), contains("head 1 saw 2 queries, expected 0"));

  auto turning = talk.decoder.start(AtCachePositions(HeavyHitter{.heavy = 6, .recent = 6}));
  turning.prefill(talk.all.first(30));
  SessionSnapshot<float> angles = turning.snapshot();
  CHECK(turning.problem(angles).empty());
  std::swap(angles.layers[1].rope_positions[2], angles.layers[1].rope_positions[7]);
  CHECK_THAT(turning.problem(angles), contains("head 0: rope position"));
  angles = turning.snapshot();
  ++angles.layers[1].next_rope_position;
  CHECK_THAT(turning.problem(angles), contains("with layer 1 at rope position 13, expected 12"));

  auto fresh = talk.decoder.start(Dense{});
  SessionSnapshot<float> nothing = fresh.snapshot();
  CHECK(fresh.problem(nothing).empty());
  nothing.logits = Matrix<float>::Zero(1, 50);
  CHECK_THAT(fresh.problem(nothing), contains("with logits, but without a token"));

  SafetensorsWriter other;
  other.add("logits", Matrix<float>(Matrix<float>::Zero(1, 50)));
  other.write(file.path);
  CHECK_THROWS_WITH(load_session(session, file.path), contains("is not a saved session"));
  CHECK(same_bits(session.snapshot().logits, good.logits));
}

TEST_CASE("one cache of somebody's own loop is saved and loaded, keys that turned among them", "[io]") {
  const SessionPath file;
  const AttentionShape shape{4, 2, 16};
  const Rope<float> rope({.head_dim = 16});
  using Turning = AtCachePositions<KeyNorm>;
  KvCache saved(shape, Turning(KeyNorm{.keep = 9})), loaded(shape, Turning(KeyNorm{.keep = 9}));
  for (std::uint64_t t = 0; t < 40; ++t) {
    const Matrix<float> k = pith_test::random_matrix<float>(1, 32, t);
    saved.append(k, k);
    saved.evict();
    saved.reindex(rope);
  }
  save_cache(saved, file.path);
  load_cache(loaded, file.path);
  CHECK(loaded.query_position() == saved.query_position());
  for (Index h = 0; h < 2; ++h) {
    CHECK(same_bits(loaded.keys(h, loaded.rope_positions()), saved.keys(h, saved.rope_positions())));
    CHECK(std::equal(saved.positions(h).begin(), saved.positions(h).end(), loaded.positions(h).begin()));
  }
  KvCache other(shape, KeyNorm{.keep = 9});
  CHECK_THROWS_WITH(load_cache(other, file.path), contains("cache positions"));
}
