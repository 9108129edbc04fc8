// Decoding with weights of integers over activations of integers allocates nothing, counted at malloc.
#include <span>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/io/checkpoint.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/tiny_model.hpp"

using namespace pith;

namespace {

void check_allocations(const LoadOptions& options) {
  if (!pith_test::counting_available()) return;
  const Decoder<float> decoder = load_decoder(PITH_MODELS_DIR "/tiny-prose", options);
  const std::vector<Token> tokens = pith_test::random_tokens(200, decoder.vocab_size());
  ThreadPool pool(2);
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(pool)}) {
    auto session = decoder.start(Dense{}, {.max_prompt = 150, .max_tokens = 400, .executor = executor});
    const auto before = pith_test::allocations();
    session.prefill(std::span(tokens).first(150));
    for (std::size_t t = 150; t < 190; ++t) session.decode(tokens[t]);
    session.checkpoint();
    const Position from = session.next_position();
    session.decode(std::span(tokens).first(9));
    session.crop(from + 3);
    CHECK(pith_test::allocations() == before);
  }
}

}  // namespace

TEST_CASE("four-bit weights: prefill and decode allocate nothing", "[hot_path]") { check_allocations({.weights = WeightsLayout::int4}); }

TEST_CASE("Compute::int15: prefill and decode allocate nothing", "[hot_path]") {
  check_allocations({.weights = WeightsLayout::int8, .compute = Compute::int15});
}
