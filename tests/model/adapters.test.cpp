#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::random_adapter;
using pith_test::same_bits;
using pith_test::thorough_adapter;

namespace {

/// A projection with its adapter built in, written by hand.
struct Adapted {
  using Scalar = float;
  AnyLinear<float> base;
  LinearAdapter<float> overlay;
  Index in() const { return base.in(); }
  Index out() const { return base.out(); }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Workspace& ws) const { forward_adapted(base, &overlay, x, y, ws); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    return base.workspace_bytes(tokens, workers) + linear_adapter_workspace_bytes<float>(tokens, workers);
  }
};

/// The decoder that an adapter makes of another one.
Decoder<float> adapted(const Decoder<float>& decoder, const ModelAdapter<float>& adapter) {
  DecoderWeights<float> weights = decoder.weights();
  const AdapterParts<float>& parts = adapter.parts();
  for (std::size_t l = 0; l < weights.layers.size(); ++l) {
    LayerWeights<float>& layer = weights.layers[l];
    AnyLinear<float>* const all[] = {&layer.q_proj,    &layer.k_proj,  &layer.v_proj,   &layer.o_proj,
                                     &layer.gate_proj, &layer.up_proj, &layer.down_proj};
    for (std::size_t p = 0; p < num_projections; ++p) *all[p] = AnyLinear<float>(Adapted{*all[p], parts.layers[l].projections[p]});
    if (const auto& norm = parts.layers[l][NormPlace::pre_attention]; norm.size() > 0) layer.pre_attention_norm = norm.weight();
    if (const auto& norm = parts.layers[l][NormPlace::pre_mlp]; norm.size() > 0) layer.pre_mlp_norm = norm.weight();
  }
  weights.lm_head = AnyLinear<float>(Adapted{weights.lm_head, parts.lm_head});
  if (parts.norm.size() > 0) weights.norm = parts.norm.weight();
  if (parts.embed_tokens.rows() > 0) weights.embed_tokens = parts.embed_tokens;
  return Decoder<float>(decoder.config(), std::move(weights));
}

Matrix<float> adapter_run(Session<float>& session, const std::vector<Token>& tokens) {
  Matrix<float> all(12, session.vocab_size());
  all.row(0) = session.prefill(std::span(tokens).first(70)).row(0);
  for (Index i = 0; i < 8; ++i) all.row(i + 1) = session.decode(tokens[static_cast<std::size_t>(70 + i)]).row(0);
  all.bottomRows(3) = session.decode(std::span(tokens).subspan(78, 3));
  return all;
}

std::vector<Matrix<float>> all_weights(const Decoder<float>& decoder) {
  std::vector<Matrix<float>> out;
  const auto add = [&](const AnyLinear<float>& linear) {
    out.emplace_back(linear.out(), linear.in());
    linear.copy_weight(0, out.back());
  };
  for (const LayerWeights<float>& layer : decoder.weights().layers)
    for (std::size_t p = 0; p < num_projections; ++p) add(detail::projection_of(layer, Projection(p)));
  add(decoder.weights().lm_head);
  return out;
}

const std::vector<AnyPolicy<float>>& adapter_policies() {
  static const std::vector<AnyPolicy<float>> all{Dense{}, SinkWindow{.sinks = 2, .window = 9}, HeavyHitter{.heavy = 6, .recent = 6}};
  return all;
}

Matrix<float> soft_rows(Index n) { return pith_test::random_matrix<float>(n, pith_test::tiny_config().hidden_size, 77); }

}  // namespace

TEST_CASE("a session under an adapter has the bits of a decoder made of adapted layers", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(81, 50);
  ThreadPool pool(2);
  for (const ModelAdapter<float>& adapter :
       {random_adapter(decoder, 4, 1), random_adapter(decoder, 150, 2), thorough_adapter(decoder, 3)}) {
    const Decoder<float> other = adapted(decoder, adapter);
    CHECK(adapter.bytes() > 0);
    for (const AnyPolicy<float>& policy : adapter_policies()) {
      auto session = decoder.start(policy, {.max_prompt = 70}), expected = other.start(policy, {.max_prompt = 70});
      auto threaded = decoder.start(policy, {.max_prompt = 70, .executor = pool});
      session.use(&adapter);
      threaded.use(&adapter);
      const Matrix<float> logits = adapter_run(session, tokens);
      CHECK(same_bits(logits, adapter_run(expected, tokens)));
      CHECK(same_bits(logits, adapter_run(threaded, tokens)));
      CHECK_FALSE(logits == adapter_run(*std::make_unique<Session<float>>(decoder.start(policy, {.max_prompt = 70})), tokens));
    }
  }
}

TEST_CASE("an adapter that adds nothing, and none, are the plain model; a thousand of them come and go and leave nothing", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(81, 50);
  const std::vector<Matrix<float>> before = all_weights(decoder);
  auto plain = decoder.start(Dense{}, {.max_prompt = 70});
  const Matrix<float> expected = adapter_run(plain, tokens);

  AdapterParts<float> zero = random_adapter(decoder, 4, 1).parts();
  for (auto& layer : zero.layers)
    for (auto& overlay : layer.projections) overlay.terms[0].b_rows.setZero();  // B = 0, as training begins
  zero.lm_head.terms[0].b_rows.setZero();
  const ModelAdapter<float> nothing(decoder.adapter_target(), std::move(zero)), thorough = thorough_adapter(decoder, 5);
  auto session = decoder.start(Dense{}, {.max_prompt = 70});
  session.use(&nothing);
  CHECK(adapter_run(session, tokens) == expected);

  session.clear();
  for (int i = 0; i < 1000; ++i) {
    session.use(&thorough);
    session.decode(tokens[static_cast<std::size_t>(i % 80)]);
    session.clear();
    session.use(nullptr);
  }
  CHECK(session.adapter() == nullptr);
  CHECK(same_bits(adapter_run(session, tokens), expected));
  const std::vector<Matrix<float>> after = all_weights(decoder);
  for (std::size_t i = 0; i < before.size(); ++i) CHECK(same_bits(before[i], after[i]));
}

TEST_CASE("rows cached under one adapter are refused under another", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(10, 50);
  const ModelAdapter<float> a = random_adapter(decoder, 2, 1), b = random_adapter(decoder, 2, 2), again = random_adapter(decoder, 2, 1);
  auto session = decoder.start();
  session.use(&a);
  session.use(&b);  // nothing is cached
  session.use(&a);
  const Matrix<float> first = session.prefill(tokens);
  CHECK_THROWS_AS(session.use(&b), StateError);
  CHECK_THROWS_WITH(session.use(nullptr), contains("pith::Session::use: rows are cached under adapter " + std::to_string(a.fingerprint()) +
                                                   ", which are of no use under no adapter: clear() first"));
  CHECK(session.adapter() == &a);
  CHECK_NOTHROW(session.use(&again));  // the same numbers
  session.crop(0);
  CHECK_NOTHROW(session.use(&b));
  CHECK_FALSE(session.prefill(tokens) == first);
  session.clear();
  session.use(&a);
  CHECK(session.prefill(tokens) == first);

  DecoderConfig larger = pith_test::tiny_config();
  larger.intermediate_size += 8;
  const Decoder<float> other = pith_test::random_decoder<float>(larger);
  auto elsewhere = other.start();
  CHECK_THROWS_AS(elsewhere.use(&a), ShapeError);
  CHECK_THROWS_WITH(elsewhere.use(&a), contains("an adapter of another decoder: load it for this one"));
}

TEST_CASE("snapshots and prefixes know the adapter that filled them", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens =
      pith_test::random_tokens(32, 50);  // a block of attention: behind a prefix of that many the bits are the same
  const ModelAdapter<float> a = random_adapter(decoder, 2, 1), b = random_adapter(decoder, 2, 2);
  auto session = decoder.start();
  session.use(&a);
  session.prefill(tokens);
  const auto snapshot = session.snapshot();
  const KvPrefix prefix = session.freeze();
  const Matrix<float> next = session.decode(Token{7});

  auto other = decoder.start();
  CHECK(other.problem(snapshot) == "filled under adapter " + std::to_string(a.fingerprint()) + "; this session uses no adapter");
  CHECK_THROWS_AS(other.restore(snapshot), ShapeError);
  other.use(&b);
  CHECK_THROWS_WITH(other.restore(snapshot), contains("this session uses adapter " + std::to_string(b.fingerprint())));
  other.use(&a);
  other.restore(snapshot);
  CHECK(same_bits(Matrix<float>(other.decode(Token{7})), next));

  CHECK(prefix.adapter() == a.fingerprint());
  CHECK_FALSE(prefix.learned());
  auto behind = decoder.start(Dense{}, {.prefix = prefix});
  CHECK_THROWS_AS(behind.decode(Token{7}), StateError);
  CHECK_THROWS_WITH(behind.prefill(tokens), contains("its prefix was read under adapter " + std::to_string(a.fingerprint()) +
                                                     " and it uses no adapter: use() the adapter of the prefix"));
  behind.use(&a);
  CHECK(same_bits(Matrix<float>(behind.decode(Token{7})), next));
}

TEST_CASE("a soft prompt goes before the first token", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(8, 50);
  const Matrix<float> soft = soft_rows(5);
  const ModelAdapter<float> adapter(decoder.adapter_target(), {.prompt = soft});
  Matrix<float> rows(13, 24);
  prepend(soft, decoder.weights().embed_tokens, tokens, rows);
  for (const AnyPolicy<float>& policy : adapter_policies()) {
    auto expected = decoder.start(policy), session = decoder.start(policy), embedded = decoder.start(policy);
    session.use(&adapter);
    embedded.use(&adapter);
    const Matrix<float> first = expected.prefill(rows);
    CHECK(same_bits(Matrix<float>(session.prefill(tokens)), first));
    const std::vector<TokenKind> kinds(8, TokenKind::image);
    CHECK(same_bits(Matrix<float>(embedded.prefill(rows.bottomRows(8), kinds)), first));
    const auto& cache = embedded.caches()[0];
    for (Index row = 0; row < cache.size(0); ++row) {
      const auto at = static_cast<std::size_t>(row);
      CHECK((cache.kinds(0)[at] == TokenKind::text) == (cache.positions(0)[at] < 5));
    }
    CHECK(session.next_position() == 13);
    CHECK(same_bits(Matrix<float>(session.decode(Token{3})), Matrix<float>(expected.decode(Token{3}))));
    CHECK(same_bits(Matrix<float>(session.prefill(tokens)), Matrix<float>(expected.prefill(tokens))));  // the next turn has none
    session.clear();
    CHECK(same_bits(Matrix<float>(session.prefill(tokens)), first));
  }
  auto weighed = decoder.start(Dense{}, {.keep_masses = true}), expected = decoder.start(Dense{}, {.keep_masses = true});
  weighed.use(&adapter);  // masses of the rows behind it; the prompt's own stand for themselves
  std::vector<float> masses{2, 1, 3, 1, 1, 4, 1, 1}, all(5, 1.f);
  all.insert(all.end(), masses.begin(), masses.end());
  CHECK(same_bits(Matrix<float>(weighed.prefill(rows.bottomRows(8), {}, {.masses = masses})),
                  Matrix<float>(expected.prefill(rows, {}, {.masses = all}))));
  CHECK_THROWS_AS(weighed.prefill(rows, {}, {.masses = masses}), ShapeError);

  auto session = decoder.start(Dense{}, {.max_prompt = 12});
  session.use(&adapter);
  CHECK_THROWS_AS(session.decode(Token{3}), StateError);
  CHECK_THROWS_WITH(session.decode(Token{3}), contains("the adapter's prompt goes before the first token: begin with prefill()"));
  CHECK_THROWS_AS(session.prefill(tokens), CapacityError);
  CHECK_THROWS_WITH(session.prefill(tokens), contains("8 tokens, expected at most max_prompt = 12 less the 5 of the adapter's prompt"));
  session.prefill(std::span(tokens).first(7));
  CHECK_THROWS_AS(session.crop(3), StateError);
  CHECK_THROWS_WITH(session.crop(3), contains("position 3 is inside the adapter's prompt: crop(0) drops all of it"));
  session.crop(5);
  session.crop(0);
  CHECK_NOTHROW(session.use(nullptr));
  auto narrow = decoder.start(Dense{}, {.max_prompt = 5});
  CHECK_THROWS_AS(narrow.use(&adapter), CapacityError);
  CHECK_THROWS_WITH(narrow.use(&adapter), contains("the adapter's prompt has 5 rows, expected fewer than max_prompt = 5"));

  auto frozen = decoder.start();  // what is frozen under it begins with it
  frozen.use(&adapter);
  frozen.prefill(pith_test::random_tokens(27, 50));
  auto behind = decoder.start(Dense{}, {.prefix = frozen.freeze()});
  behind.use(&adapter);
  CHECK(same_bits(Matrix<float>(behind.decode(Token{9})), Matrix<float>(frozen.decode(Token{9}))));
}

TEMPLATE_TEST_CASE("sessions decoded together have the bits of each alone, for all adapters and policies", "[model]", float, bfloat16, Q8) {
  DecoderConfig config = pith_test::tiny_config();
  config.head_dim = 32;
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(200, 50);
  const ModelAdapter<float> a = random_adapter(decoder, 4, 1), b = random_adapter(decoder, 150, 2), c = thorough_adapter(decoder, 3);
  const ModelAdapter<float> prompt(decoder.adapter_target(), {.prompt = pith_test::random_matrix<float>(3, 24, 4)});
  const ModelAdapter<float>* const adapters[] = {&a, nullptr, &c, &a, &b, &prompt, nullptr};
  ThreadPool pool(2);
  for (const std::size_t count : {1u, 2u, 7u, 70u}) {
    std::vector<Session<float, TestType>> together, alone;
    for (std::size_t i = 0; i < count; ++i)
      for (auto* sessions : {&together, &alone}) {
        sessions->push_back(decoder.start<TestType>(adapter_policies()[i % 3], {.max_prompt = 20, .max_tokens = 40, .max_draft = 2}));
        sessions->back().use(adapters[i % 7]);
        sessions->back().prefill(std::span(tokens).subspan(i, 1 + i % 13));
      }
    std::vector<Session<float, TestType>*> pointers;
    for (auto& session : together) pointers.push_back(&session);
    const ExecutorRef executor = count % 2 == 0 ? ExecutorRef(pool) : ExecutorRef(serial);
    Workspace ws(decoder.together_workspace_bytes<TestType>(pointers, executor.size()), executor);
    Matrix<float> logits(static_cast<Index>(count), 50);
    for (std::size_t step = 0; step < (count == 70 ? 3 : 15); ++step) {
      const std::span<const Token> next = std::span(tokens).subspan(step, count);
      decoder.decode_together<TestType>(pointers, next, logits, ws);
      for (std::size_t i = 0; i < count; ++i)
        CHECK(same_bits(Matrix<float>(logits.row(static_cast<Index>(i))), Matrix<float>(alone[i].decode(next[i]))));
    }
    CHECK(ws.used() == 0);
    for (std::size_t i = 0; i < count; ++i) {
      CHECK(same_bits(Matrix<float>(together[i].logits()), Matrix<float>(alone[i].logits())));
      const auto ours = together[i].snapshot(), theirs = alone[i].snapshot();
      for (std::size_t layer = 0; layer < 2; ++layer) {
        CHECK(std::memcmp(ours.layers[layer].keys.data(), theirs.layers[layer].keys.data(),
                          ours.layers[layer].keys.size() * sizeof(TestType)) == 0);
        CHECK(ours.layers[layer].positions == theirs.layers[layer].positions);
      }
      CHECK(same_bits(Matrix<float>(together[i].decode(Token{1})), Matrix<float>(alone[i].decode(Token{1}))));
    }
  }
}

TEST_CASE("decode_together refuses before any session changes", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config()),
                       other = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens{1, 2, 3};
  auto a = decoder.start(), b = decoder.start(), full = decoder.start(Dense{}, {.max_tokens = 2}), foreign = other.start();
  for (auto* session : {&a, &b, &full, &foreign}) session->prefill(std::span(tokens).first(2));
  const ModelAdapter<float> prompt(decoder.adapter_target(), {.prompt = soft_rows(2)});
  auto unbegun = decoder.start();
  unbegun.use(&prompt);
  Workspace ws(1 << 20);
  Matrix<float> logits(2, 50);
  using Sessions = std::vector<Session<float>*>;
  const auto refused = [&]<class Error>(Error, const Sessions& sessions, const std::vector<Token>& next, MatrixRef<float> out,
                                        const std::string& text) {
    CHECK_THROWS_AS(decoder.decode_together(sessions, next, out, ws), Error);
    CHECK_THROWS_WITH(decoder.decode_together(sessions, next, out, ws), contains(text));
  };
  refused(ShapeError(""), {}, {}, logits, "pith::Decoder::decode_together: no sessions, expected 1 or more");
  refused(ShapeError(""), {&a, &b}, {1}, logits, "1 tokens for 2 sessions, expected one of each");
  refused(ShapeError(""), {&a, &b}, {1, 2}, logits.topRows(1), "logits is [1, 50], expected [2, 50]");
  refused(ShapeError(""), {&a, nullptr}, {1, 2}, logits, "session 1 is a null pointer");
  refused(ShapeError(""), {&a, &a}, {1, 2}, logits, "session 1 is given twice");
  refused(ShapeError(""), {&a, &foreign}, {1, 2}, logits, "session 1 is another decoder's");
  refused(ShapeError(""), {&a, &b}, {1, 50}, logits, "token 50 at index 1 is outside the vocabulary of 50");
  refused(ShapeError(""), {&a, &b}, {1, -1}, logits, "token -1 at index 1 is outside the vocabulary of 50");
  refused(CapacityError(""), {&a, &full}, {1, 2}, logits, "full");
  refused(StateError(""), {&a, &unbegun}, {1, 2}, logits, "begin with prefill()");
  Workspace small(64);
  CHECK_THROWS_AS(decoder.decode_together(Sessions{&a, &b}, tokens, logits, small), ShapeError);
  CHECK_THROWS_AS(decoder.decode_together(Sessions{&a, &b}, std::span(tokens).first(2), logits, small), CapacityError);
  CHECK_THROWS_WITH(decoder.decode_together(Sessions{&a, &b}, std::span(tokens).first(2), logits, small),
                    contains("the workspace has 64 bytes left, expected ") && contains("together_workspace_bytes(sessions, workers)"));
  for (auto* session : {&a, &b, &full}) CHECK(session->next_position() == 2);
  Workspace exact(decoder.together_workspace_bytes(Sessions{&a, &b}));
  CHECK_NOTHROW(decoder.decode_together(Sessions{&a, &b}, std::span(tokens).first(2), logits, exact));
}
