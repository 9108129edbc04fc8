// Calls that a session refuses have not been: it goes on as a twin that never made them.
#include <atomic>
#include <memory>
#include <stdexcept>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>

#include "support/catch.hpp"
#include "support/same_session.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::difference;

namespace {

using Text = std::vector<Token>;
using Policies = std::vector<AnyPolicy<float>>;

const Decoder<float>& decoder() {
  static const Decoder<float> made = pith_test::random_decoder<float>(pith_test::tiny_config());
  return made;
}
const Text& tokens() {
  static const Text made = pith_test::random_tokens(90, 50);
  return made;
}
std::span<const Token> some(std::size_t first, std::size_t n) { return std::span(tokens()).subspan(first, n); }

/// Lets no row go.
struct Hoards {
  Index rows = 6;
  bool says_so = false;
  Index budget() const { return rows; }
  PolicyTraits traits() const { return {.overfills = says_so}; }
  template <class S> void score(const KvRows<S>&, VectorRef<S> score) const { score.setConstant(std::numeric_limits<S>::infinity()); }
};

/// At cache positions, and from position `from` on one head keeps more than the others.
struct TurnsUneven {
  Index rows = 6;
  Position from = 0;
  Index budget() const { return rows; }
  PolicyTraits traits() const { return {.positions = RopePositions::cache, .overfills = true}; }
  template <class S> void score(const KvRows<S>& rows_of_head, VectorRef<S> score) const {
    for (Index r = 0; r < score.size(); ++r) score[r] = static_cast<S>(rows_of_head.positions[static_cast<std::size_t>(r)]);
    if (rows_of_head.kv_head == 1 && rows_of_head.next > from) score.setConstant(std::numeric_limits<S>::infinity());
  }
};

/// Throws when it is shown the attention of a query of one head.
struct Shy {
  std::shared_ptr<std::atomic<bool>> afraid = std::make_shared<std::atomic<bool>>(false);
  Index kv_head = 1;
  Index budget() const { return 6; }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats) const {
    if (*afraid && seen.kv_head == kv_head) throw std::runtime_error("too many eyes");
    add_rows(seen.weights, stats);
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> score) const { score = rows.stats.row(0).transpose(); }
};

/// A refused call: it throws E, and leaves what `twin` is, which goes on as the session does.
template <class E, class Call> void refuses(Session<float>& session, Session<float>& twin, Call&& call, std::size_t goes_on = 60) {
  CHECK_THROWS_AS(call(session), E);
  REQUIRE(difference(session, twin) == "");
  if (goes_on > 0) {
    session.checkpoint();
    const Position p = session.next_position();
    const Matrix<float> rows = session.decode(tokens()[goes_on]);
    REQUIRE(rows == Matrix<float>(twin.decode(tokens()[goes_on])));
    session.crop(p);
    REQUIRE(Matrix<float>(session.decode(tokens()[goes_on])) == rows);
    REQUIRE(difference(session, twin) == "");
  }
}

}  // namespace

TEST_CASE("a chunk whose tokens find no room, as only scores can tell, is taken back from all layers", "[model]") {
  for (const AnyPolicy<float>& first : Policies{HeavyHitter{.heavy = 2, .recent = 2}, Window{4}, SinkWindow{.sinks = 1, .window = 3},
                                                Dense{}, AtCachePositions(HeavyHitter{.heavy = 2, .recent = 2}),
                                                PromptOnly(HeavyHitter{.heavy = 2, .recent = 2}), Hoards{.rows = 30}})
    for (const bool journal : {false, true})
      for (const bool merges : {false, true}) {
        CAPTURE(journal, merges);
        const Policies policies{first, Hoards{.rows = 6}};
        const SessionOptions options{.max_prompt = 8};
        const AnyMerge<float> merge = merges ? AnyMerge<float>(merge_catalogue()[1].make()) : AnyMerge<float>();
        auto session = decoder().start(std::span(policies), options, merge), twin = decoder().start(std::span(policies), options, merge);
        session.prefill(some(0, 4));
        twin.prefill(some(0, 4));
        if (journal) {
          session.checkpoint();
          session.decode(some(30, 1));
          const Matrix<float> before = session.logits();
          CHECK_THROWS_AS(session.decode(some(31, 3)), CapacityError);  // 5 and 2 are 7 rows: a third finds none
          CHECK(session.next_position() == 5);
          CHECK(before == session.logits());
          session.decode(some(31, 2));  // the journal is open still
          session.crop(5);
          session.checkpoint();
          session.crop(5);
          twin.decode(some(30, 1));
          CHECK(session.logits().rows() == 0);
          REQUIRE(Matrix<float>(session.decode(tokens()[31])) == Matrix<float>(twin.decode(tokens()[31])));
          REQUIRE(difference(session, twin) == "");
        } else {
          refuses<CapacityError>(session, twin, [](auto& s) { s.decode(some(30, 4)); });
          refuses<CapacityError>(session, twin, [](auto& s) { s.decode(some(30, 3)); });
        }
        while (session.next_position() < 7) REQUIRE(Matrix<float>(session.decode(1)) == Matrix<float>(twin.decode(1)));
        CHECK_THROWS_WITH(session.decode(1), contains("scores 8 rows of a head +inf, 7 fit at home"));
        REQUIRE(difference(session, twin) == "");
      }
}

TEST_CASE("a prompt inside a journal is refused before any layer reads it", "[model]") {
  const std::vector<std::pair<const char*, AnyPolicy<float>>> later_layers{
      {"prompt-only", PromptOnly(HeavyHitter{.heavy = 3, .recent = 3})}, {"prompt buffer", HeavyHitter{.heavy = 3, .recent = 3}}};
  for (const auto& [name, later] : later_layers) {
    INFO(name);
    const Policies policies{Dense{}, later};
    auto session = decoder().start(std::span(policies)), twin = decoder().start(std::span(policies));
    session.prefill(some(0, 6));
    twin.prefill(some(0, 6));
    session.decode(3);
    twin.decode(3);
    session.checkpoint();
    session.decode(4);
    const Matrix<float> before = session.logits();
    CHECK_THROWS_AS(session.prefill(some(10, 5)), StateError);
    CHECK_THROWS_WITH(session.prefill(some(10, 5)), contains("crop() to end the journal first"));
    CHECK(session.next_position() == 8);
    CHECK(session.logits() == before);
    session.crop(7);
    session.prefill(some(10, 5));
    twin.prefill(some(10, 5));
    CHECK(difference(session, twin) == "");
  }
}

TEST_CASE("more text than fits under the text prior is refused and the conversation goes on", "[model]") {
  const auto prior = [](Index rows) {
    return AnyPolicy<float>(Protect(PromptOnly(HeavyHitter{.heavy = rows / 2, .recent = rows - rows / 2}), {.kind = TokenKind::text}));
  };
  // The same budget everywhere, and a later layer that alone is too small: the layers before it have dropped rows by then.
  for (const Policies& policies : {Policies{prior(6), prior(6)}, Policies{prior(30), prior(6)}, Policies{Window{4}, prior(6)},
                                   Policies{HeavyHitter{.heavy = 2, .recent = 2}, Adaptive(SnapKv{.keep = 6, .window = 2}), prior(6)}}) {
    DecoderConfig config = pith_test::tiny_config();
    config.num_hidden_layers = static_cast<Index>(policies.size());
    const Decoder<float> model = pith_test::random_decoder<float>(config);
    const SessionOptions options{.max_prompt = 40, .max_generated = 4};
    auto session = model.start(std::span(policies), options), twin = model.start(std::span(policies), options);
    const auto too_long = [](auto& s) { s.prefill(some(20, 12)); };
    CHECK_THROWS_WITH(too_long(session), contains("rows of a head +inf, 11 fit at home"));
    REQUIRE(difference(session, twin) == "");
    Matrix<float> rows(20, 24);
    model.weights().embed_tokens.gather(some(0, 20), rows);
    std::vector<TokenKind> kinds(20, TokenKind::image);
    kinds[2] = kinds[9] = TokenKind::text;
    CHECK(Matrix<float>(session.prefill(rows, kinds)) == Matrix<float>(twin.prefill(rows, kinds)));
    REQUIRE(difference(session, twin) == "");
    refuses<CapacityError>(session, twin, too_long);
    refuses<CapacityError>(session, twin, too_long);
    session.prefill(some(40, 3));
    twin.prefill(some(40, 3));
    CHECK(difference(session, twin) == "");
  }
}

TEST_CASE("a policy that fills its home in a later layer: what it says of itself decides whether a second prompt can be taken back",
          "[model]") {
  for (const bool says_so : {false, true})
    for (const bool first_layer : {false, true}) {
      CAPTURE(says_so, first_layer);
      const AnyPolicy<float> hoards = Hoards{.rows = 8, .says_so = says_so}, other = HeavyHitter{.heavy = 3, .recent = 3};
      const Policies policies = first_layer ? Policies{hoards, other} : Policies{other, hoards};
      auto session = decoder().start(std::span(policies)), twin = decoder().start(std::span(policies));
      CHECK_THROWS_WITH(session.prefill(some(0, 12)), contains("scores 12 rows of a head +inf, 9 fit at home"));
      REQUIRE(difference(session, twin) == "");
      session.prefill(some(0, 4));
      twin.prefill(some(0, 4));
      if (says_so || first_layer) {
        refuses<CapacityError>(session, twin, [](auto& s) { s.prefill(some(20, 12)); });
      } else {
        CHECK_THROWS_AS(session.prefill(some(20, 12)), CapacityError);
        CHECK_THROWS_WITH(session.decode(1), contains("clear() first"));
        session.clear();
        twin.clear();
        session.prefill(some(0, 4));
        twin.prefill(some(0, 4));
        CHECK(difference(session, twin) == "");
      }
    }
}

TEST_CASE("what a policy needs of the model is asked when a session starts", "[model]") {
  CHECK_THROWS_AS(decoder().start(AtCachePositions(Csp{.heavy = 4, .recent = 4})), ShapeError);
  const auto rope = [](DecoderConfig config) { return std::make_shared<const Rope<float>>(config.rope()); };
  DecoderConfig wider = pith_test::tiny_config(), dynamic = pith_test::tiny_config();
  wider.head_dim = 16;
  dynamic.ropes = {{.scaling = {.type = RopeType::dynamic, .factor = 2}}};
  CHECK_THROWS_AS(decoder().start(ExpectedAttention<float>{.rope = rope(wider), .keep = 8}), ShapeError);
  CHECK_THROWS_AS(pith_test::random_decoder<float>(dynamic).start(ExpectedAttention<float>{.rope = rope(dynamic), .keep = 8}),
                  UnsupportedError);
  CHECK_NOTHROW(decoder().start(ExpectedAttention<float>{.rope = rope(pith_test::tiny_config()), .keep = 8}));
}

TEST_CASE("one conversation that is refused leaves the others of a batch unharmed", "[model]") {
  const auto start = [](AnyPolicy<float> policy, const SessionOptions& options = {}) {
    const Policies policies{HeavyHitter{.heavy = 3, .recent = 3}, std::move(policy)};
    auto session = decoder().start(std::span(policies), options);
    session.prefill(some(0, 5));
    return session;
  };
  Workspace ws(Index(1) << 20);
  Matrix<float> logits(3, 50);
  const Text next{7, 8, 9};
  {
    auto a = start(Window{4}), b = start(Dense{}, {.max_tokens = 5}), c = start(HeavyHitter{.heavy = 2, .recent = 2});
    auto x = start(Window{4}), y = start(Dense{}, {.max_tokens = 5}), z = start(HeavyHitter{.heavy = 2, .recent = 2});
    Session<float>* all[] = {&a, &b, &c};
    logits.setZero();
    CHECK_THROWS_WITH(decoder().decode_together(all, next, logits, ws), contains("full (5 of 5 rows"));
    CHECK(logits.isZero(0));
    CHECK(difference(a, x) + difference(b, y) + difference(c, z) == "");
  }
  for (const bool journal : {false, true}) {
    CAPTURE(journal);
    auto a = start(Window{4}), b = start(TurnsUneven{.rows = 5, .from = 5}), c = start(HeavyHitter{.heavy = 2, .recent = 2});
    auto x = start(Window{4}), y = start(TurnsUneven{.rows = 5, .from = 5}), z = start(HeavyHitter{.heavy = 2, .recent = 2});
    Session<float>* all[] = {&a, &b, &c};
    if (journal) b.checkpoint();
    CHECK_THROWS_WITH(decoder().decode_together(all, next, logits, ws), contains("heads must agree"));
    if (journal) b.crop(5);
    CHECK(difference(b, y) == "");
    x.decode(7);
    z.decode(9);
    CHECK(difference(a, x) + difference(c, z) == "");
    CHECK(logits.row(0) == a.logits().row(0));
    CHECK(logits.row(2) == c.logits().row(0));
    CHECK(logits.row(1).array().isNaN().all());
    Session<float>* rest[] = {&a, &c};
    MatrixRef<float> two(logits.data(), 2, 50);
    decoder().decode_together(rest, std::span(next).first(2), two, ws);
    x.decode(7);
    z.decode(8);
    CHECK(difference(a, x) + difference(c, z) == "");
  }
}

TEST_CASE("heads that end up uneven at cache positions are refused while nothing has changed", "[model]") {
  const Policies policies{HeavyHitter{.heavy = 3, .recent = 3}, TurnsUneven{.rows = 6, .from = 8}};
  auto session = decoder().start(std::span(policies)), twin = decoder().start(std::span(policies));
  session.prefill(some(0, 7));
  twin.prefill(some(0, 7));
  CHECK_THROWS_WITH(session.decode(some(20, 3)), contains("heads must agree"));
  REQUIRE(difference(session, twin) == "");
  session.decode(1);
  twin.decode(1);
  refuses<StateError>(
      session, twin, [](auto& s) { s.decode(5); }, 0);
  refuses<CapacityError>(
      session, twin, [](auto& s) { s.prefill(some(20, 9)); }, 0);
  session.clear();
  twin.clear();
  CHECK(Matrix<float>(session.prefill(some(3, 4))) == Matrix<float>(twin.prefill(some(3, 4))));
}

TEST_CASE("an observer that throws on a pool's worker has been joined, and what it interrupted is taken back", "[model]") {
  for (const Index threads : {1, 2, 3, 4})
    for (const Index kv_head : {0, 1}) {
      CAPTURE(threads, kv_head);
      ThreadPool pool(threads);
      const Shy shy{.kv_head = kv_head};
      const Policies policies{HeavyHitter{.heavy = 3, .recent = 3}, shy};
      auto session = decoder().start(std::span(policies), {.executor = pool}), twin = decoder().start(std::span(policies));
      for (int again = 0; again < 5; ++again) {
        *shy.afraid = true;
        CHECK_THROWS_WITH(session.prefill(some(0, 20)), contains("too many eyes"));
        *shy.afraid = false;
        REQUIRE(difference(session, twin) == "");
      }
      CHECK(Matrix<float>(session.prefill(some(0, 20))) == Matrix<float>(twin.prefill(some(0, 20))));
      for (int again = 0; again < 5; ++again) {
        session.checkpoint();
        *shy.afraid = true;
        CHECK_THROWS_WITH(session.decode(some(30, 3)), contains("too many eyes"));
        *shy.afraid = false;
        session.crop(session.next_position());
        REQUIRE(difference(session, twin) == "");
      }
      CHECK(Matrix<float>(session.decode(some(30, 3))) == Matrix<float>(twin.decode(some(30, 3))));
    }
}

TEST_CASE("a refusal behind a prefix, and under an adapter with a prompt of its own, has not been either", "[model]") {
  const Policies policies{HeavyHitter{.heavy = 3, .recent = 3}, Hoards{.rows = 8, .says_so = true}};
  auto reader = decoder().start(Dense{});
  reader.prefill(some(60, 11));
  const KvPrefix prefix = reader.freeze();
  auto behind = decoder().start(std::span(policies), {.prefix = prefix}), twin = decoder().start(std::span(policies), {.prefix = prefix});
  CHECK_THROWS_AS(behind.prefill(some(0, 12)), CapacityError);
  REQUIRE(difference(behind, twin) == "");
  behind.prefill(some(0, 4));
  twin.prefill(some(0, 4));
  refuses<CapacityError>(behind, twin, [](auto& s) { s.prefill(some(20, 12)); });

  const Matrix<float> soft = Matrix<float>::Constant(3, 24, .25f);
  const ModelAdapter<float> adapter(decoder().adapter_target(), {.prompt = soft});
  auto adapted = decoder().start(std::span(policies)), other = decoder().start(std::span(policies));
  adapted.use(&adapter);
  other.use(&adapter);
  CHECK_THROWS_AS(adapted.prefill(some(0, 12)), CapacityError);
  CHECK_THROWS_WITH(adapted.prefill(some(0, 12), {.masses = std::vector<float>(11, 1.f)}), contains("11 masses for 12 tokens"));
  REQUIRE(difference(adapted, other) == "");
  adapted.prefill(some(0, 2));
  other.prefill(some(0, 2));
  CHECK(adapted.next_position() == 5);
  refuses<CapacityError>(adapted, other, [](auto& s) { s.prefill(some(20, 12)); });
  adapted.clear();
  adapted.use(nullptr);
}

TEST_CASE("the second turn of a prompt-only policy: an answer evicts nothing, the next prompt all over the budget", "[model]") {
  const std::vector<AnyPolicy<float>> all{SnapKv{.keep = 8, .window = 4, .kernel = 3}, PromptOnly(HeavyHitter{.heavy = 4, .recent = 4}),
                                          Adaptive(SnapKv{.keep = 8, .window = 4, .kernel = 3})};
  for (const AnyPolicy<float>& policy : all) {
    const SessionOptions options{.max_prompt = 40, .max_generated = 60};
    auto session = decoder().start(policy, options), twin = decoder().start(policy, options);
    session.prefill(some(0, 20));
    twin.prefill(some(0, 20));
    for (std::size_t i = 20; i < 25; ++i) session.decode(tokens()[i]);
    for (std::size_t i = 20; i < 25; ++i) twin.decode(tokens()[i]);
    Index rows = 0;
    for (Index h = 0; h < 2; ++h) rows += session.caches()[0].size(h);
    CHECK(rows == 2 * (8 + 5));  // an answer evicts nothing
    session.checkpoint();
    session.decode(some(60, 4));
    CHECK_THROWS_WITH(session.prefill(some(30, 9)), contains("cannot be taken back"));
    CHECK_THROWS_AS(session.decode(some(60, 6)), StateError);  // 4 and 6 are more than the journal takes back
    session.crop(25);
    CHECK(Matrix<float>(session.prefill(some(30, 15))) == Matrix<float>(twin.prefill(some(30, 15))));
    rows = 0;
    for (Index h = 0; h < 2; ++h) rows += session.caches()[0].size(h);
    CHECK(rows == 2 * 8);
    for (Index h = 0; h < 2; ++h) CHECK(session.caches()[1].positions(h).back() <= 39);
    CHECK(difference(session, twin) == "");
  }
}
