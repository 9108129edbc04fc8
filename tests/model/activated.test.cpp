// Activated LoRA in sessions: rows before the invocation are the base's, bit for bit, and everything knows where the adapter began.
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"
#include "support/same_session.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::difference;
using pith_test::same_bits;

namespace {

const std::vector<Token> invocation_of_tests{7, 11, 7};

ModelAdapter<float> activated_adapter(const Decoder<float>& decoder, std::uint64_t seed) {
  AdapterParts<float> parts = pith_test::random_adapter<float>(decoder, 3, seed).parts();
  parts.layers.back()[NormPlace::pre_mlp] =
      RmsNorm<float>(Vector<float>(pith_test::random_matrix<float>(decoder.config().hidden_size, 1, seed).col(0)));
  parts.invocation = invocation_of_tests;
  return {decoder.adapter_target(), std::move(parts)};
}

/// Text without the invocation.
std::vector<Token> plain_text(std::size_t n, std::uint64_t seed) {
  std::vector<Token> text = pith_test::random_tokens(n, 7, seed);
  return text;
}
std::vector<Token> joined(std::vector<Token> a, const std::vector<Token>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

TEST_CASE("activated LoRA: it reads rows of the base, and no other adapter reads its rows", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const ModelAdapter<float> one = activated_adapter(decoder, 100), other = activated_adapter(decoder, 200),
                            always = pith_test::random_adapter<float>(decoder, 3, 300);
  const std::vector<Token> text = plain_text(150, 5), call = joined(plain_text(6, 6), joined(invocation_of_tests, {1, 2}));
  const std::vector<Token> whole = joined(text, call);
  const Position start = 156;

  auto session = decoder.start(), base = decoder.start(), at_once = decoder.start();
  session.prefill(text);  // under the base
  session.use(&one);
  CHECK(session.adapter_start() == -1);
  session.prefill(call);
  CHECK(session.adapter_start() == start);
  at_once.use(&one);
  at_once.prefill(whole);
  CHECK(at_once.adapter_start() == start);
  CHECK(difference(session, at_once) == "");
  base.prefill(whole);
  CHECK_FALSE(same_bits(Matrix<float>(base.logits()), Matrix<float>(session.logits())));

  // Generated tokens invoke nothing; a prompt that would is refused before anything changes.
  session.decode(invocation_of_tests);
  CHECK(session.adapter_start() == start);
  const auto kept = session.snapshot();
  CHECK_THROWS_WITH(session.prefill(call), contains("the adapter began at position 156, and token 6 of this prompt invokes it again"));
  CHECK(session.adapter_start() == start);
  CHECK(session.next_position() == static_cast<Position>(whole.size()) + 3);
  CHECK_THROWS_WITH(session.use(nullptr), contains("crop(156), where it began, or clear() first"));
  CHECK_THROWS_AS(session.use(&other), StateError);
  CHECK_THROWS_AS(session.use(&always), StateError);
  CHECK_NOTHROW(session.use(&one));
  CHECK(session.adapter_start() == start);

  // Rows before the invocation, bit for bit the base's: in the base, and under another adapter.
  session.crop(start);
  CHECK(session.adapter_start() == -1);
  session.use(nullptr);
  auto same = decoder.start();
  same.prefill(std::span(whole).first(static_cast<std::size_t>(start)));
  CHECK(session.decode(3).isApprox(session.logits(), 0));
  same.decode(3);
  CHECK(difference(session, same) == "");
  CHECK_THROWS_AS(session.use(&always), StateError);  // plain LoRA changes every row
  session.crop(start);
  session.use(&other);
  session.prefill(std::span(call).subspan(6));
  auto other_alone = decoder.start();
  other_alone.use(&other);
  other_alone.prefill(whole);
  CHECK(difference(session, other_alone) == "");

  // A snapshot knows where the adapter began, and rows of the base alone are everybody's.
  auto restored = decoder.start();
  restored.use(&one);
  restored.restore(kept);
  CHECK(restored.adapter_start() == start);
  CHECK(difference(restored, at_once) != "");
  at_once.decode(invocation_of_tests);
  CHECK(difference(restored, at_once) == "");
  CHECK(kept.adapter == one.fingerprint());
  auto wrong = kept;
  wrong.adapter_start = -1;
  CHECK(contains("filled under an adapter that began at -1").match(restored.problem(wrong)));
  wrong = kept;
  wrong.adapter = other.fingerprint();
  CHECK(restored.problem(wrong) != "");
  auto base_snapshot = decoder.start();
  base_snapshot.prefill(text);
  CHECK(restored.problem(base_snapshot.snapshot()) == "");
  restored.restore(base_snapshot.snapshot());
  CHECK(restored.adapter_start() == -1);
  CHECK(base_snapshot.problem(kept) != "");

  // Prefixes: one of the base, one that holds the invocation.
  base_snapshot.use(&one);
  auto with_prefix = decoder.start(Dense{}, {.prefix = base_snapshot.freeze()});
  with_prefix.use(&one);
  with_prefix.prefill(call);
  CHECK(with_prefix.adapter_start() == start);
  auto base_prefix = decoder.start(Dense{}, {.prefix = base_snapshot.freeze()}), again = decoder.start();
  base_prefix.prefill(std::span(call).first(6));  // read by the base before the adapter comes
  base_prefix.use(&one);
  base_prefix.prefill(std::span(call).subspan(6));
  CHECK(difference(base_prefix, with_prefix) == "");
  again.use(&one);
  again.prefill(whole);
  CHECK(pith_test::near(Matrix<float>(with_prefix.logits()), Matrix<float>(again.logits()), 1e-4));
  auto begun = decoder.start(Dense{}, {.prefix = at_once.freeze()});
  CHECK_THROWS_AS(begun.decode(3), StateError);
  begun.use(&one);
  CHECK(pith_test::near(Matrix<float>(begun.decode(4)), Matrix<float>(at_once.decode(4)), 1e-4));
}

TEST_CASE("activated LoRA: pieces, embeddings, undone calls and clear()", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const ModelAdapter<float> adapter = activated_adapter(decoder, 100);
  const std::vector<Token> whole = joined(plain_text(90, 5), joined(invocation_of_tests, plain_text(70, 6)));
  auto at_once = decoder.start(), pieces = decoder.start();
  at_once.use(&adapter);
  pieces.use(&adapter);
  at_once.prefill(whole);
  REQUIRE(at_once.adapter_start() == 90);
  const auto piece = [&](std::size_t first, std::size_t n, Index from) {
    pieces.prefill(std::span(whole).subspan(first, n), {.more = first + n < whole.size(), .adapted_from = from});
  };
  piece(0, 91, 90);  // the invocation straddles two pieces
  piece(91, 10, -1);
  piece(101, 62, -1);
  CHECK(difference(pieces, at_once) == "");
  CHECK_THROWS_AS(pieces.prefill(std::vector<Token>{1, 2}, {.adapted_from = 3}), ShapeError);
  CHECK_THROWS_WITH(pieces.prefill(std::vector<Token>{1, 2}, {.adapted_from = 1}), contains("invokes it again"));

  auto rows = decoder.start();
  rows.use(&adapter);
  Matrix<float> embeddings(5, decoder.config().hidden_size);
  decoder.weights().embed_tokens.gather(std::vector<Token>{1, 2, 3, 4, 5}, embeddings);
  CHECK_THROWS_WITH(rows.prefill(embeddings), contains("embeddings under an activated LoRA"));
  rows.prefill(embeddings, {}, {.adapted_from = 2});
  CHECK(rows.adapter_start() == 2);
  rows.clear();
  CHECK(rows.adapter_start() == -1);
  CHECK_THROWS_AS(rows.prefill(whole, {.progress = [](const PrefillProgress& p) { return p.layers_done < 2; }}), Cancelled);
  CHECK(rows.adapter_start() == -1);
  CHECK(rows.next_position() == 0);
  rows.prefill(whole);
  CHECK(difference(rows, at_once) == "");
  const auto copy = rows.clone();
  CHECK(copy.adapter_start() == 90);

  AdapterParts<float> parts = adapter.parts();
  parts.invocation = {static_cast<Token>(decoder.vocab_size())};
  CHECK_THROWS_AS((ModelAdapter<float>(decoder.adapter_target(), parts)), ShapeError);
  parts.invocation = invocation_of_tests;
  parts.prompt = Matrix<float>::Zero(2, decoder.config().hidden_size);
  CHECK_THROWS_AS((ModelAdapter<float>(decoder.adapter_target(), parts)), UnsupportedError);
}

TEST_CASE("activated LoRA: speculation, policies and batches", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const ModelAdapter<float> adapter = activated_adapter(decoder, 100);
  const std::vector<Token> whole = joined(plain_text(90, 5), joined(invocation_of_tests, plain_text(20, 6)));
  const auto started = [&](const ModelAdapter<float>* used, AnyPolicy<float> policy) {
    auto session = decoder.start(policy);
    session.use(used);
    return session;
  };
  for (const AnyPolicy<float>& policy : {AnyPolicy<float>(Dense{}), AnyPolicy<float>(SinkWindow{.sinks = 2, .window = 30}),
                                         AnyPolicy<float>(HeavyHitter{.heavy = 20, .recent = 12})}) {
    auto alone = started(&adapter, policy), target = started(&adapter, policy);
    std::minstd_rand rng(1);
    const std::vector<Token> expected = generate(alone, whole, {.max_tokens = 24, .sampler = {.temperature = 0}}, rng);
    PromptLookup<float> draft(decoder.vocab_size(), {.ngram = 2});
    SpeculativeDecoder speculative(target, draft, {.draft_tokens = 3, .sampler = {.temperature = 0}});
    speculative.prefill(whole);
    std::vector<Token> found;
    generate(speculative, {.max_tokens = 24}, rng, [&](Token token) { found.push_back(token); });
    CHECK(found == expected);
    CHECK(target.adapter_start() == 90);

    auto invoked = started(&adapter, policy), uninvoked = started(&adapter, policy), base = started(nullptr, policy);
    auto invoked_alone = started(&adapter, policy), base_alone = started(nullptr, policy);
    for (auto* session : {&invoked, &invoked_alone}) session->prefill(whole);
    for (auto* session : {&uninvoked, &base, &base_alone}) session->prefill(std::span(whole).first(90));
    const std::vector<Session<float>*> batch{&uninvoked, &invoked, &base};
    Workspace ws(decoder.together_workspace_bytes(batch));
    Matrix<float> logits(3, decoder.vocab_size());
    decoder.decode_together(batch, std::vector<Token>(3, 3), logits, ws);
    CHECK(same_bits(Matrix<float>(logits.row(1)), Matrix<float>(invoked_alone.decode(3))));
    CHECK(same_bits(Matrix<float>(logits.row(2)), Matrix<float>(base_alone.decode(3))));
    CHECK(same_bits(Matrix<float>(logits.row(0)), Matrix<float>(logits.row(2))));
  }
}
