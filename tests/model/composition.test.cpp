// Everything with everything: adapter × policy × merge × storage × speculation, against a decoder written down plainly in double.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/plain_decoder.hpp"
#include "support/switch_models.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::PlainDecoder;

namespace {

/// Whether two sessions hold the same bits in the same order.
template <class Session> bool same_rows(const Session& a, const Session& b) {
  const auto x = a.snapshot(), y = b.snapshot();
  for (std::size_t l = 0; l < x.layers.size(); ++l) {
    const auto &p = x.layers[l], &q = y.layers[l];
    const auto bytes = [](const auto& rows) { return std::as_bytes(std::span(rows)); };
    const auto same = [&](const auto& one, const auto& other) { return std::ranges::equal(bytes(one), bytes(other)); };
    if (p.next != q.next || p.heads != q.heads || p.positions != q.positions || !same(p.keys, q.keys) || !same(p.values, q.values) ||
        !same(p.masses, q.masses) || !same(p.gate, q.gate) || p.stats != q.stats)
      return false;
  }
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("every adapter, policy, merge and storage compose, with speculation and without", "[model]", float, bfloat16, Q8,
                   (Kv<Q8, Rotated<Q4>>)) {
  // A Llama under everything, and models of every switch under one policy of each kind.
  const std::size_t which = std::is_same_v<TestType, float> ? GENERATE(0u, 1u, 2u, 3u) : 0u;
  CAPTURE(which);
  const Decoder<float> decoder =
      which == 0 ? pith_test::random_decoder<float>(pith_test::tiny_config()) : pith_test::switch_model<float>(which - 1);
  const std::vector<const char*> policies =
      which == 0 ? std::vector{"dense", "window", "h2o", "scissorhands", "snapkv", "keydiff"} : std::vector{"window", "h2o", "snapkv"};
  const ModelAdapter<float> adapter = pith_test::random_adapter<float>(decoder, 2, 5);
  const std::vector<Token> tokens = pith_test::random_tokens(40, decoder.vocab_size());
  const std::span<const Token> prompt = std::span(tokens).first(24);
  Index merged = 0, accepted = 0;
  for (const char* policy : policies)
    for (const MergeEntry<float>& entry : merge_catalogue())
      for (const bool adapted : {false, true}) {
        const bool counted = entry.name == "mass-weighted";
        INFO(policy << ", " << entry.name << (adapted ? ", adapted" : ""));
        const auto start = [&] {
          auto session =
              decoder.start<TestType>(make_policy(policy, 10), {.max_prompt = 40, .max_tokens = 80, .keep_masses = counted}, entry.make());
          if (adapted) session.use(&adapter);
          return session;
        };
        // Against the plain decoder, over the rows that are there.
        const PlainDecoder<float> plain(decoder, adapted ? &adapter : nullptr, counted);
        auto session = start();
        session.prefill(prompt);
        for (const Token token : std::span(tokens).subspan(24, 6)) {
          const auto before = session.snapshot();
          const Vector<double> expected = plain.next_logits(before, token);
          const Vector<double> found = session.decode(token).row(0).transpose().template cast<double>();
          // Sums of at most 40 products in floats, two layers deep; of what is rounded besides, the new row may fall to the other side.
          const double step = std::is_same_v<TestType, float> ? 0 : std::is_same_v<TestType, bfloat16> ? 1. / 256 : 1. / 127;
          const double slack = (200 * std::numeric_limits<float>::epsilon() + step / 4) * (1 + expected.cwiseAbs().maxCoeff());
          REQUIRE((found - expected).cwiseAbs().maxCoeff() < slack);
        }
        for (const auto& cache : session.caches())
          if (const auto masses = cache.masses(0); masses.size() > 0) merged += masses.maxCoeff() > 1;
        // Speculation says what the target alone says, and leaves its cache as if it had never guessed.
        const SamplerOptions greedy{.temperature = 0};
        auto alone = start(), target = start();
        std::mt19937_64 rng(1);
        const std::vector<Token> expected = generate(alone, alone.prefill(prompt), {.max_tokens = 24, .sampler = greedy}, rng);
        PromptLookup<float> draft(decoder.vocab_size(), {.ngram = 2});
        SpeculativeDecoder spec(target, draft, {.draft_tokens = 3, .sampler = greedy});
        spec.prefill(prompt);
        std::vector<Token> found;
        generate(spec, {.max_tokens = 24}, rng, [&](Token token) { found.push_back(token); });
        REQUIRE(found == expected);
        REQUIRE(same_rows(alone, target));
        accepted += spec.stats().accepted;
      }
  CHECK(merged > (which == 0 ? 50 : 20));
  CHECK(accepted > (which == 0 ? 50 : 5));
}
