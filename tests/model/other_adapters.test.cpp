// Adapters beyond LoRA in sessions: any batch and any number of threads give the bits of each alone.
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::same_bits;

TEST_CASE("adapters in bfloat16: the session of the same numbers in float, activated or not", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  AdapterParts<float> parts = pith_test::random_adapter<float>(decoder, 3, 60).parts();
  ThreadPool two(2);
  const std::vector<Token> text = pith_test::random_tokens(90, decoder.vocab_size());
  for (const bool activated : {false, true}) {
    if (activated) parts.invocation = {text[40], text[41]};
    const ModelAdapter<float> exact(decoder.adapter_target(), parts), narrow = pith_test::narrowed<false>(exact),
                                                                      wide = pith_test::narrowed<true>(exact);
    CHECK(narrow.more_workspace_bytes(64) == 0);
    CHECK(narrow.fingerprint() == wide.fingerprint());  // rows that one has filled are the other's
    CHECK(narrow.fingerprint() != exact.fingerprint());
    CHECK(2 * narrow.bytes() < wide.bytes() + wide.bytes() / 10);
    const auto started = [&](const ModelAdapter<float>* adapter, ExecutorRef executor = serial) {
      auto session = decoder.start(Dense{}, {.executor = executor});
      session.use(adapter);
      session.prefill(std::span(text).first(80));
      return session;
    };
    auto alone = started(&narrow), threads = started(&narrow, two), as_float = started(&wide), base = started(nullptr);
    CHECK(alone.adapter_start() == as_float.adapter_start());
    CHECK((alone.adapter_start() >= 0) == activated);
    CHECK(same_bits(Matrix<float>(alone.logits()), Matrix<float>(as_float.logits())));
    CHECK(same_bits(Matrix<float>(alone.logits()), Matrix<float>(threads.logits())));
    CHECK_FALSE(same_bits(Matrix<float>(alone.logits()), Matrix<float>(base.logits())));
    const std::vector<Session<float>*> batch{&base, &alone, &as_float};
    Workspace ws(decoder.together_workspace_bytes(batch));
    Matrix<float> logits(3, decoder.vocab_size());
    decoder.decode_together(batch, std::vector<Token>(3, text[80]), logits, ws);
    CHECK(same_bits(Matrix<float>(logits.row(1)), Matrix<float>(logits.row(2))));
    CHECK(same_bits(Matrix<float>(logits.row(1)), Matrix<float>(threads.decode(text[80]))));
  }
}

TEST_CASE("adapters beyond LoRA: chunks, batches and threads", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const ModelAdapter<float> other = pith_test::other_adapter<float>(decoder, 40), lora = pith_test::random_adapter<float>(decoder, 3, 50);
  CHECK(other.more_workspace_bytes(1) > 0);
  CHECK(lora.more_workspace_bytes(64) == 0);
  CHECK(other.fingerprint() != pith_test::other_adapter<float>(decoder, 41).fingerprint());
  const std::vector<Token> text = pith_test::random_tokens(90, decoder.vocab_size());
  ThreadPool two(2);
  const auto started = [&](const ModelAdapter<float>* adapter, ExecutorRef executor = serial) {
    auto session = decoder.start(Dense{}, {.executor = executor});
    session.use(adapter);
    session.prefill(std::span(text).first(80));
    return session;
  };
  auto alone = started(&other), threads = started(&other, two), one_by_one = started(&other), base = started(nullptr),
       with_lora = started(&lora);
  CHECK(same_bits(Matrix<float>(alone.logits()), Matrix<float>(threads.logits())));
  const std::span<const Token> rest = std::span(text).subspan(80, 3);
  const Matrix<float> chunk = alone.decode(rest);
  for (Index i = 0; i < 3; ++i)
    CHECK(same_bits(Matrix<float>(one_by_one.decode(rest[static_cast<std::size_t>(i)])), Matrix<float>(chunk.row(i))));

  auto other_again = started(&other);
  const std::vector<Session<float>*> batch{&base, &other_again, &with_lora};
  Workspace ws(decoder.together_workspace_bytes(batch));
  Matrix<float> logits(3, decoder.vocab_size());
  decoder.decode_together(batch, std::vector<Token>(3, rest[0]), logits, ws);
  CHECK(same_bits(Matrix<float>(logits.row(1)), Matrix<float>(chunk.row(0))));
  auto base_alone = started(nullptr), lora_alone = started(&lora);
  CHECK(same_bits(Matrix<float>(logits.row(0)), Matrix<float>(base_alone.decode(rest[0]))));
  CHECK(same_bits(Matrix<float>(logits.row(2)), Matrix<float>(lora_alone.decode(rest[0]))));
  CHECK_FALSE(same_bits(Matrix<float>(logits.row(0)), Matrix<float>(logits.row(1))));
}
