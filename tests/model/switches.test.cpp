// Every switch of a decoder against one written down plainly in double, and the laws on models that turn many at once.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <pith/core.hpp>
#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/plain_decoder.hpp"
#include "support/switch_models.hpp"
#include "support/tiny_adapters.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::num_switch_configs;
using pith_test::PlainDecoder;
using pith_test::switch_length;
using pith_test::switch_model;

namespace {

double largest(const Matrix<double>& m) { return m.cwiseAbs().maxCoeff(); }

const std::vector<Token>& text_of_30() {
  static const std::vector<Token> tokens = pith_test::random_tokens(30, 50);
  return tokens;
}

SessionOptions room() { return {.max_prompt = 40, .max_tokens = 64}; }

}  // namespace

TEST_CASE("each switch does what a plain decoder does, and is seen in the logits", "[model]") {
  const struct {
    const char* name;
    std::function<void(DecoderConfig&)> turn;
  } switches[] = {
      {"nothing", [](DecoderConfig&) {}},
      {"window", [](auto& c) { c.layers[1].window = 4; }},
      {"no rope", [](auto& c) { c.layers[0].rope = LayerSpec::no_rope; }},
      {"a rope of its own", [](auto& c) { c.ropes.push_back({.theta = 20}), c.layers[1].rope = 1; }},
      {"partial rope", [](auto& c) { c.ropes[0].rotary_dim = 4; }},
      {"interleaved rope", [](auto& c) { c.ropes[0].interleaved = true; }},
      {"yarn",
       [](auto& c) { c.ropes[0].scaling = {.type = RopeType::yarn, .factor = 4, .original_max_position_embeddings = 32, .beta_fast = 3}; }},
      {"yarn with mscale",
       [](auto& c) {
         c.ropes[0].scaling = {.type = RopeType::yarn,
                               .factor = 8,
                               .original_max_position_embeddings = 64,
                               .beta_fast = 12,
                               .beta_slow = .6,
                               .truncate = false,
                               .mscale = 1.4,
                               .mscale_all_dim = .5};
       }},
      {"attention factor",
       [](auto& c) {
         c.ropes[0].scaling = {.type = RopeType::yarn, .factor = 4, .original_max_position_embeddings = 32, .attention_factor = 1.5};
       }},
      {"longrope beyond its short table", [](auto& c) { c.ropes = pith_test::switch_config(1).ropes; }},
      {"longrope within it",
       [](auto& c) {
         c.ropes = pith_test::switch_config(1).ropes;
         c.ropes[0].scaling.original_max_position_embeddings = 30;
       }},
      {"norms of heads", [](auto& c) { c.layers[0].qk_norm = QkNorm::head; }},
      {"norms of projections", [](auto& c) { c.layers[1].qk_norm = QkNorm::projection; }},
      {"no norm before attention", [](auto& c) { c.layers[0].pre_attention = false; }},
      {"no norm before the feed-forward block", [](auto& c) { c.layers[0].pre_mlp = false; }},
      {"norm after attention", [](auto& c) { c.layers[1].post_attention = true; }},
      {"norm after the feed-forward block", [](auto& c) { c.layers[1].post_mlp = true; }},
      {"parallel", [](auto& c) { c.layers[0].parallel = true, c.layers[0].pre_mlp = false; }},
      {"LayerNorm", [](auto& c) { c.norm = NormKind::layer; }},
      {"attention scale", [](auto& c) { c.layers[1].attention_scale = 0.9; }},
      {"attention cap", [](auto& c) { c.layers[1].attention_softcap = 0.5; }},
      {"residual scale", [](auto& c) { c.layers[1].residual_scale = 0.3; }},
      {"query scale", [](auto& c) { c.layers[1].query_scale = {.beta = 0.5, .length = 6}; }},
      {"tanh-GELU", [](auto& c) { c.activation = GateActivation::gelu_tanh; }},
      {"GELU", [](auto& c) { c.activation = GateActivation::gelu; }},
      {"embedding scale", [](auto& c) { c.embedding_scale = 3; }},
      {"input scale", [](auto& c) { c.input_scale = 0.25; }},
      {"logits scale", [](auto& c) { c.logits_scale = 0.5; }},
      {"logits cap", [](auto& c) { c.logits_softcap = 2; }},
  };
  Matrix<double> plain;
  for (const auto& one : switches) {
    INFO(one.name);
    DecoderConfig config = pith_test::tiny_config();
    one.turn(config.resolve());
    const Decoder<double> decoder = pith_test::random_decoder<double>(config, 7);
    const Matrix<double> found = decoder.forward(text_of_30());
    CHECK(largest(found - PlainDecoder<double>(decoder).forward(text_of_30())) < 1e-11 * (1 + largest(found)));
    if (plain.size() == 0)
      plain = found;
    else
      CHECK(largest(found - plain) > 1e-3);
  }
}

TEST_CASE("models with many switches agree with a plain decoder, cached or not", "[model]") {
  for (std::size_t which = 0; which < num_switch_configs; ++which) {
    CAPTURE(which);
    const Decoder<double> exact = switch_model<double>(which);
    const Matrix<double> expected = PlainDecoder<double>(exact).forward(text_of_30());
    CHECK(largest(exact.forward(text_of_30()) - expected) < 1e-10 * (1 + largest(expected)));

    const Decoder<float> decoder = switch_model<float>(which);
    const Matrix<float> full = decoder.forward(text_of_30());
    CHECK(largest(full.cast<double>() - PlainDecoder<float>(decoder).forward(text_of_30())) < 2e-4 * (1 + largest(expected)));
    if (which == 1) continue;  // its tokens are rotated by the length of the text: below
    auto session = decoder.start(Dense{}, room());
    CHECK(session.prefill(std::span(text_of_30()).first(11)).row(0) == full.row(10));
    CHECK(session.decode(std::span(text_of_30()).subspan(11, 5)) == full.middleRows(11, 5));
    for (std::size_t t = 16; t < 30; ++t) CHECK(session.decode(text_of_30()[t]).row(0) == full.row(static_cast<Index>(t)));
  }
}

TEST_CASE("batches, threads, rollback and prefixes keep every bit under every switch", "[model]") {
  ThreadPool pool(2);
  const std::span<const Token> text = text_of_30();
  for (std::size_t which = 0; which < num_switch_configs; ++which) {
    CAPTURE(which);
    const Decoder<float> decoder = switch_model<float>(which);
    const std::vector<AnyPolicy<float>> policies{Dense{},
                                                 SinkWindow{.sinks = 2, .window = 6},
                                                 HeavyHitter{.heavy = 4, .recent = 4},
                                                 AtCachePositions(HeavyHitter{.heavy = 4, .recent = 4}),
                                                 SnapKv{.keep = 8, .window = 4},
                                                 KeyDiff{.keep = 8}};
    for (std::size_t p = 0; p < policies.size(); ++p) {
      CAPTURE(p);
      std::vector<AnyPolicy<float>> layers(3, policies[p]);
      if (p == 3 && which != 1) layers[0] = Window{8};  // keys do not turn under a window
      SessionOptions options = room(), threaded = room();
      options.text_length = threaded.text_length = 100;
      threaded.executor = pool;
      auto one = decoder.start(layers, options), chunk = decoder.start(layers, options), other = decoder.start(layers, threaded);
      one.prefill(text.first(12));
      CHECK(chunk.prefill(text.first(12)).row(0) == one.logits().row(0));
      CHECK(other.prefill(text.first(12)).row(0) == one.logits().row(0));
      Matrix<float> single(8, 50);
      for (Index t = 0; t < 8; ++t) single.row(t) = one.decode(text[static_cast<std::size_t>(12 + t)]).row(0);
      chunk.checkpoint();
      CHECK(chunk.decode(text.subspan(12, 8)) == single);
      chunk.crop(15);
      CHECK(chunk.decode(text.subspan(15, 5)) == single.bottomRows(5));
      CHECK(other.decode(text.subspan(12, 8)) == single);
      // Together with another conversation.
      auto company = decoder.start(Dense{}, options);
      company.prefill(text.first(5));
      auto alone = decoder.start(Dense{}, options);
      alone.prefill(text.first(5));
      Session<float>* both[] = {&other, &company};
      const Token next[] = {text[20], text[5]};
      Workspace ws(decoder.together_workspace_bytes(both));
      Matrix<float> logits(2, 50);
      decoder.decode_together(both, next, logits, ws);
      CHECK(logits.row(0) == one.decode(text[20]).row(0));
      CHECK(logits.row(1) == alone.decode(text[5]).row(0));
      // A snapshot goes on as the session that it is of.
      auto restored = decoder.start(layers, options);
      restored.restore(one.snapshot());
      auto clone = one.clone();
      CHECK(restored.decode(text[21]).row(0) == one.decode(text[21]).row(0));
      CHECK(clone.decode(text[21]).row(0) == one.logits().row(0));
    }
    auto system = decoder.start(Dense{}, room());
    system.prefill(text.first(10));
    SessionOptions behind = room();
    behind.prefix = system.freeze();
    auto dialogue = decoder.start(Dense{}, behind);
    const auto same = [](ConstMatrixRef<float> a, ConstMatrixRef<float> b) { return (a - b).cwiseAbs().maxCoeff() < 2e-5f; };
    CHECK(same(dialogue.prefill(text.subspan(10, 6)), system.prefill(text.subspan(10, 6))));  // a prefix adds in other blocks
    CHECK(same(dialogue.decode(text[16]), system.decode(text[16])));
  }
}

TEST_CASE("adapters reach every norm and projection of every layer", "[model]") {
  const std::span<const Token> text = text_of_30();
  for (std::size_t which = 0; which < num_switch_configs; ++which) {
    CAPTURE(which);
    const Decoder<float> decoder = switch_model<float>(which);
    const AdapterTarget target = decoder.adapter_target();
    AdapterParts<float> parts = pith_test::random_adapter<float>(decoder, 2, 5).parts();
    const auto any = [&](Index features, std::uint64_t seed) {
      return AnyNorm<float>(target.norm, Vector<float>(pith_test::random_matrix<float>(features, 1, seed).col(0)), 1e-6f);
    };
    for (std::size_t l = 0; l < parts.layers.size(); ++l)
      for (std::size_t n = 0; n < num_norms; ++n)
        if (target.norms[l][n] > 0) parts.layers[l].norms[n] = any(target.norms[l][n], 10 * l + n);
    parts.norm = any(target.hidden, 99);
    const ModelAdapter<float> adapter(target, parts);
    auto session = decoder.start(Dense{}, room());
    session.use(&adapter);
    session.prefill(text.first(9));
    const PlainDecoder<float> plain(decoder, &adapter);
    for (Index t = 9; t < 14; ++t) {
      const auto before = session.snapshot();
      const Vector<double> found = session.decode(text[static_cast<std::size_t>(t)]).row(0).transpose().cast<double>();
      CHECK(largest(found - plain.next_logits(before, text[static_cast<std::size_t>(t)])) < 5e-4 * (1 + largest(found)));
    }
    // Rows of a batch under different adapters are as they are alone.
    auto adapted = decoder.start(Dense{}, room()), base = decoder.start(Dense{}, room());
    adapted.use(&adapter);
    auto adapted_alone = decoder.start(Dense{}, room()), base_alone = decoder.start(Dense{}, room());
    adapted_alone.use(&adapter);
    Session<float>* both[] = {&base, &adapted};
    Workspace ws(decoder.together_workspace_bytes(both));
    Matrix<float> logits(2, 50);
    for (std::size_t t = 0; t < 3; ++t) {
      const Token next[] = {text[t], text[t]};
      decoder.decode_together(both, next, logits, ws);
      CHECK(logits.row(0) == base_alone.decode(text[t]).row(0));
      CHECK(logits.row(1) == adapted_alone.decode(text[t]).row(0));
    }
    // A norm where the layer has none, and one of the other kind.
    AdapterParts<float> wrong = parts;
    for (std::size_t n = 0; n < num_norms; ++n)
      if (target.norms[0][n] == 0) {
        wrong.layers[0].norms[n] = any(24, 1);
        CHECK_THROWS_WITH(ModelAdapter<float>(target, wrong), contains("the decoder has no such norm"));
        break;
      }
    wrong = parts;
    if (target.norm == NormKind::layer)
      wrong.norm = RmsNorm<float>(Vector<float>::Ones(24));
    else
      wrong.norm = LayerNorm<float>(Vector<float>::Ones(24));
    CHECK_THROWS_WITH(ModelAdapter<float>(target, wrong), contains("expected the kind of the decoder's norms"));
  }
}

TEST_CASE("a scale of the lookup leaves given embeddings alone, a scale of the input does not", "[model]") {
  DecoderConfig scaled = pith_test::tiny_config(), plain = pith_test::tiny_config();
  scaled.embedding_scale = 3;
  scaled.input_scale = 0.5;
  const Decoder<double> decoder = pith_test::random_decoder<double>(scaled), base = pith_test::random_decoder<double>(plain);
  const std::vector<Token> tokens = pith_test::random_tokens(6, 50);
  Matrix<double> table(6, 24), looked_up(6, 24);
  base.weights().embed_tokens.gather(tokens, table);
  decoder.weights().embed_tokens.gather(tokens, looked_up);  // as splice() reads it
  CHECK(looked_up == 3 * table);
  const Matrix<double> expected = Matrix<double>(base.start().prefill(Matrix<double>(1.5 * table)));
  CHECK(largest(Matrix<double>(decoder.start().prefill(tokens)) - expected) < 1e-12);
  CHECK(largest(Matrix<double>(decoder.start().prefill(looked_up)) - expected) < 1e-12);
  Matrix<double> first;
  decoder.forward(tokens, [&](Index layer, ConstMatrixRef<double> hidden) {
    if (layer == 0) first = hidden;
  });
  CHECK(largest(first - 1.5 * table) < 1e-12);

  AdapterParts<double> parts;
  parts.embed_tokens = Embedding<double>(pith_test::random_matrix<double>(50, 24, 5));
  const ModelAdapter<double> adapter(decoder.adapter_target(), parts);  // a table of an adapter is scaled like the model's
  auto session = decoder.start();
  session.use(&adapter);
  Matrix<double> own(6, 24);
  parts.embed_tokens.gather(tokens, own);
  CHECK(largest(Matrix<double>(session.prefill(tokens)) - Matrix<double>(base.start().prefill(Matrix<double>(1.5 * own)))) < 1e-12);
}

TEST_CASE("sinks and turned keys read as if what lies between had never been, under every rope", "[model]") {
  const std::vector<Token> tokens = pith_test::random_tokens(40, 50);
  for (std::size_t which = 0; which < num_switch_configs; ++which)
    for (std::size_t layer = 0; layer < 3; ++layer) {
      CAPTURE(which, layer);
      DecoderConfig config = pith_test::switch_config(which);  // one layer: what is kept does not depend on what was evicted
      config.num_hidden_layers = 1;
      config.layers = {config.layers[layer]};
      config.layers[0].window = 0;
      const Decoder<double> decoder = pith_test::random_decoder<double>(config, 3, false);
      const SessionOptions options{.max_prompt = 40, .text_length = 100};
      auto stream = decoder.start(SinkWindow{.sinks = 3, .window = 6}, options);
      auto turning = decoder.start(AtCachePositions(HeavyHitter{.heavy = 0, .recent = 9}), options);
      for (std::size_t i = 0; i < 39; ++i) stream.decode(tokens[i]), turning.decode(tokens[i]);
      std::vector<Token> kept(tokens.begin(), tokens.begin() + 3);
      kept.insert(kept.end(), tokens.begin() + 33, tokens.end());
      CHECK(largest(Matrix<double>(stream.decode(tokens[39])) - Matrix<double>(decoder.start(Dense{}, options).prefill(kept))) < 1e-10);
      CHECK(turning.caches()[0].query_position() == 9);
      const Matrix<double> newest = decoder.start(Dense{}, options).prefill(std::span(tokens).last(10));
      CHECK(largest(Matrix<double>(turning.decode(tokens[39])) - newest) < 1e-10);
    }
}

TEST_CASE("expected attention is made for one layer: its rope, its scale, no cap", "[model]") {
  DecoderConfig config = pith_test::switch_config(0);
  for (LayerSpec& layer : config.layers) layer.attention_softcap = 0;
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  const auto policy = [&](Index layer) {
    return ExpectedAttention<float>{
        .rope = decoder.rope(layer), .keep = 8, .sinks = 2, .scale = static_cast<float>(decoder.config().layer(layer).attention_scale)};
  };
  CHECK_THROWS_WITH(decoder.start(policy(0)), contains("layers 0 and 1 have different ropes"));
  const std::vector<AnyPolicy<float>> layers{policy(0), policy(1), policy(2)};
  auto session = decoder.start(layers, room());
  session.prefill(text_of_30());
  CHECK(session.caches()[0].size(0) == 6);  // its window sees no more
  CHECK((session.caches()[1].size(0) == 8 && session.caches()[2].size(0) == 8));
  CHECK_THROWS_WITH(switch_model<float>(0).start(layers, room()), contains("layer 0 caps its scores at 3"));
  CHECK_THROWS_AS(decoder.rope(3), ShapeError);

  const Decoder<float> longrope = switch_model<float>(1);
  CHECK_THROWS_WITH(longrope.start(ExpectedAttention<float>{.rope = std::make_shared<const Rope<float>>(longrope.config().rope())}),
                    contains("under longrope"));
  CHECK_NOTHROW(longrope.start(ExpectedAttention<float>{.rope = longrope.rope(0)}));
}

TEST_CASE("a text that outgrows a longrope's short table is read again", "[model]") {
  const Decoder<float> decoder = switch_model<float>(1);
  const std::vector<Token>& tokens = text_of_30();
  const std::span<const Token> text = tokens;
  const auto whole = [&](std::size_t n) { return Matrix<float>(decoder.forward(text.first(n)).bottomRows(1)); };
  const auto last = [](ConstMatrixRef<float> logits) { return Matrix<float>(logits.bottomRows(1)); };
  const std::size_t limit = static_cast<std::size_t>(switch_length);
  SessionOptions small = room();
  small.max_prompt = 6;  // the text is read again in pieces
  SECTION("token by token, in a chunk over both sides, in a prompt, together with others") {
    auto session = decoder.start(Dense{}, small);
    for (std::size_t t = 0; t < 30; ++t) CHECK(last(session.decode(text[t])) == whole(t + 1));
    auto chunk = decoder.start(Dense{}, small);
    chunk.prefill(text.first(6));
    chunk.decode(text.subspan(6, 9));
    const Matrix<float> logits = chunk.decode(text.subspan(15, 9));
    for (Index t = 0; t < 9; ++t) CHECK(Matrix<float>(logits.row(t)) == whole(16 + static_cast<std::size_t>(t)));
    auto prompt = decoder.start(Dense{}, room());
    prompt.prefill(text.first(12));
    PrefillOptions cancelled;
    cancelled.progress = [](const PrefillProgress& at) { return at.layers_done < 2; };
    CHECK_THROWS_AS(prompt.prefill(text.subspan(12, 12), cancelled), Cancelled);
    CHECK((prompt.next_position() == 12 && last(prompt.logits()) == whole(12)));
    auto clone = prompt.clone();
    CHECK(last(clone.decode(text[12])) == whole(13));
    CHECK(last(clone.prefill(text.subspan(13, 9))) == whole(22));
    CHECK(last(prompt.prefill(text.subspan(12, 12))) == whole(24));
    auto a = decoder.start(Dense{}, small), b = decoder.start(Dense{}, small);
    a.prefill(text.first(3));
    for (std::size_t t = 3; t < limit; ++t) a.decode(text[t]);
    Session<float>* both[] = {&a, &b};
    Workspace ws(decoder.together_workspace_bytes(both));
    Matrix<float> rows(2, 50);
    const Token next[] = {text[limit], text[0]};
    decoder.decode_together(both, next, rows, ws);
    CHECK(Matrix<float>(rows.row(0)) == whole(limit + 1));
    CHECK(Matrix<float>(rows.row(1)) == whole(1));
  }
  SECTION("a clone goes on by itself") {
    auto session = decoder.start(Dense{}, small);
    session.prefill(text.first(6));
    auto clone = session.clone();
    for (std::size_t t = 6; t < 22; ++t) CHECK(last(clone.decode(text[t])) == whole(t + 1));
    for (std::size_t t = 6; t < 22; ++t) CHECK(last(session.decode(text[t])) == whole(t + 1));
  }
  SECTION("and again under the short table after a crop") {
    auto session = decoder.start(Dense{}, small);
    session.prefill(text.first(5));
    for (std::size_t t = 5; t < 18; ++t) session.decode(text[t]);
    session.checkpoint();
    session.decode(text.subspan(18, 6));
    session.crop(19);
    CHECK_THROWS_WITH(session.snapshot(), contains("decode() first"));
    CHECK_THROWS_WITH(session.freeze(), contains("decode() first"));
    CHECK(last(session.decode(text[19])) == whole(20));
    CHECK_NOTHROW(session.snapshot());
    CHECK(last(session.decode(text[20])) == whole(21));
    session.clear();
    CHECK(last(session.decode(text[0])) == whole(1));
  }
  SECTION("under speculation") {
    const SamplerOptions greedy{.temperature = 0};
    std::mt19937_64 rng(1);
    auto alone = decoder.start(Dense{}, room()), target = decoder.start(Dense{}, room());
    const std::vector<Token> expected = generate(alone, alone.prefill(text.first(14)), {.max_tokens = 14, .sampler = greedy}, rng);
    PromptLookup<float> draft(50, {.ngram = 1, .min_ngram = 1});
    SpeculativeDecoder spec(target, draft, {.draft_tokens = 3, .sampler = greedy});
    spec.prefill(text.first(14));
    std::vector<Token> found;
    generate(spec, {.max_tokens = 14}, rng, [&](Token token) { found.push_back(token); });
    CHECK(found == expected);
  }
  SECTION("under an adapter with a prompt of its own") {
    const ModelAdapter<float> adapter(decoder.adapter_target(), {.prompt = pith_test::random_matrix<float>(3, 24, 8)});
    auto session = decoder.start(Dense{}, small), all = decoder.start(Dense{}, room());
    session.use(&adapter);
    all.use(&adapter);
    session.prefill(text.first(2));
    for (std::size_t t = 2; t < 22; ++t) session.decode(text[t]);
    CHECK(last(all.prefill(text.first(22))) == last(session.logits()));
  }
  SECTION("where rows are lost or not tokens, it is refused before anything changes") {
    SessionOptions options = room();
    options.max_draft = 3;
    auto session = decoder.start(HeavyHitter{.heavy = 20, .recent = 20}, options);
    session.prefill(text.first(18));
    CHECK(session.room() == 2);
    session.decode(text.subspan(18, 1));
    const auto before = session.snapshot();
    const auto refused = [&](auto& of, std::size_t n) {
      CHECK_THROWS_AS(of.decode(text.subspan(19, n)), CapacityError);
      CHECK_THROWS_WITH(of.decode(text.subspan(19, n)),
                        contains(detail::text("a text of ", 19 + n, " tokens exceeds the 20")) && contains("text_length"));
    };
    refused(session, 2);
    CHECK(session.snapshot().layers == before.layers);
    CHECK(session.logits().row(0) == before.logits.row(0));
    session.decode(text.subspan(19, 1));
    CHECK_THROWS_AS(session.prefill(text.subspan(20, 3)), CapacityError);
    Session<float>* one[] = {&session};
    Workspace ws(decoder.together_workspace_bytes(one));
    Matrix<float> row(1, 50);
    CHECK_THROWS_AS(decoder.decode_together(one, std::span(tokens).first(1), row, ws), CapacityError);

    auto restored = decoder.start(Dense{}, options);
    auto source = decoder.start(Dense{}, options);
    source.prefill(text.first(19));
    restored.restore(source.snapshot());
    refused(restored, 2);
    CHECK(restored.room() == 1);
    auto embedded = decoder.start(Dense{}, options);
    Matrix<float> rows(19, 24);
    decoder.weights().embed_tokens.gather(text.first(19), rows);
    embedded.prefill(rows);
    refused(embedded, 2);
  }
  SECTION("a session made for a long text uses the long table from the first token") {
    SessionOptions made = room();
    made.text_length = switch_length + 1;
    auto session = decoder.start(HeavyHitter{.heavy = 20, .recent = 20}, made),
         all = decoder.start(HeavyHitter{.heavy = 20, .recent = 20}, room());
    session.prefill(text.first(10));
    CHECK(last(session.logits()) != whole(10));
    session.prefill(text.subspan(10, 14));
    all.prefill(text.first(24));
    CHECK(last(session.logits()) == last(all.logits()));
    CHECK(last(session.logits()) == whole(24));
    // Its rows are of no use to a session that would use the short table, nor the other way round.
    auto brief = decoder.start(Dense{}, made), other = decoder.start(Dense{}, room());
    brief.prefill(text.first(8));
    CHECK_THROWS_AS(other.restore(brief.snapshot()), ShapeError);
    CHECK_THROWS_AS(brief.freeze(), StateError);
    other.prefill(text.first(8));
    CHECK_THROWS_AS(brief.restore(other.snapshot()), ShapeError);
    made.prefix = other.freeze();
    CHECK_THROWS_WITH(decoder.start(Dense{}, made), contains("a prefix of 8 positions"));
    SessionOptions behind = room();
    behind.prefix = other.freeze();
    auto dialogue = decoder.start(Dense{}, behind);
    CHECK_THROWS_AS(dialogue.prefill(text.subspan(8, 13)), CapacityError);
    CHECK((last(dialogue.prefill(text.subspan(8, 12))) - whole(20)).cwiseAbs().maxCoeff() < 2e-5f);
  }
}
