// What storages of rows cost the shipped model, over held-out windows: a prompt of 192 bytes, then 64 measured ones.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "../examples/support/held_out.hpp"
#include "../examples/support/scenes.hpp"
#include "support/catch.hpp"

using namespace pith;

namespace {

const std::filesystem::path prose_folder = PITH_MODELS_DIR "/tiny-prose";

std::size_t windows_measured() {
  const char* const given = std::getenv("PITH_STORAGE_WINDOWS");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 4;
}

struct Prose {
  Decoder<float> decoder = load_decoder(prose_folder);
  std::vector<Token> text = example::byte_tokens(prose_folder / "heldout.txt");
  example::Windows windows{text, windows_measured()};
  example::ShortRun dense = run<float>(0);

  template <class T> example::ShortRun run(double skip_below) const {
    auto session = decoder.start<T>(Dense{}, {.skip_below = skip_below});
    return example::run_short(session, windows.all());
  }
  template <class T> example::Quality quality(const char* name, double skip_below = 0) const {
    const example::ShortRun ours = run<T>(skip_below);
    const example::Quality q = example::compare(ours, dense, windows.all());
    std::printf("%-28s %8zu bytes  %.4f nats  %.2fe-4 from float rows\n", name, ours.bytes_held, q.nats, 1e4 * q.divergence);
    return q;
  }
};

}  // namespace

// PITH_STORAGE_WINDOWS=64 measures the ceilings over all of the windows that bench/README.md reports.
TEST_CASE("codes of keys and values cost the shipped model little", "[model]") {
  const Prose prose;
  const example::Quality exact = prose.quality<float>("float");
  CHECK(exact.divergence == 0);
  CHECK(prose.quality<bfloat16>("bfloat16").divergence < 1e-4);
  CHECK(prose.quality<Q8>("Q8").divergence < 2e-4);
  const example::Quality apart = prose.quality<Kv<Q8, Rotated<Q4>>>("Q8 keys, rotated Q4 values");
  CHECK(apart.divergence < 4.0e-3);
  CHECK(apart.divergence > 1e-4);
  const example::Quality four = prose.quality<Rotated<Q4>>("rotated Q4");
  CHECK(four.divergence < 1.4e-2);
  CHECK(four.nats - exact.nats < 1.072 - 1.0566);
  CHECK(prose.quality<Rotated<float>>("rotated float").divergence < 1e-6);
  CHECK(prose.quality<Q8>("Q8, skipping .01", .01).divergence < 1e-3);
}

TEST_CASE("of the shipped model's values few need to be read", "[model]") {
  const Prose prose;
  double last = 1;
  for (const auto& [share, most] : {std::pair{.001, .55}, std::pair{.01, .30}, std::pair{.1, .09}}) {  // for two query heads together
    auto session = prose.decoder.start<Q8>(Dense{}, {.skip_below = share});
    AttentionReads reads;
    for (const std::span<const Token> window : prose.windows.all()) {
      session.clear();
      session.prefill(window.first(example::prompt_bytes + 1));
      const AttentionReads before = session.reads();
      for (Index i = 1; i < example::measured; ++i) session.decode(window[static_cast<std::size_t>(example::prompt_bytes + i)]);
      reads.add({session.reads().rows - before.rows, session.reads().values - before.values});
    }
    const double read = static_cast<double>(reads.values) / static_cast<double>(reads.rows);
    std::printf("values read at %.3f: %.3f\n", share, read);
    CHECK(read < most);
    CHECK(read < last);
    last = read;
  }
}

// PITH_STORAGE_SCENES=40 asks all 240 questions of the ceiling.
TEST_CASE("codes of keys and values cost the shipped vision model few answers", "[model]") {
  const std::filesystem::path folder = PITH_MODELS_DIR "/tiny-vlm";
  const char* const given = std::getenv("PITH_STORAGE_SCENES");
  const Decoder<float> decoder = load_decoder(folder);
  const Linear<float> projector = load_linear(folder / "projector.safetensors");
  const std::vector<example::Scene> scenes = example::load_scenes(folder, given != nullptr ? std::strtoull(given, nullptr, 10) : 3);
  const auto ask = [&]<class T>(T, const char* name) {
    example::Answers answers;
    for (const example::Scene& scene : scenes) {
      const Matrix<float> image = projector.forward(scene.patches);
      const Index prompt = 1 + image.rows() + static_cast<Index>(scene.dialogue.front().question.size());
      auto session = decoder.start<T>(Dense{}, {.max_prompt = prompt});
      example::answer(session, decoder, scene, MediaRows<float>{.rows = image}, answers);
    }
    std::printf("%-28s %d of %d right\n", name, answers.all_right(), answers.asked[0] + answers.asked[1] + answers.asked[2]);
    return answers;
  };
  const example::Answers exact = ask(float{}, "float"), apart = ask(Kv<Q8, Rotated<Q4>>{}, "Q8 keys, rotated Q4 values"),
                         four = ask(Rotated<Q4>{}, "rotated Q4");
  const int asked = exact.asked[0] + exact.asked[1] + exact.asked[2];
  CHECK(apart.all_right() >= exact.all_right() - (asked + 59) / 60);  // 180 of 240, where float rows have 184
  CHECK(four.all_right() >= exact.all_right() - (asked + 59) / 60);
  CHECK(example::divergence(exact, apart) < 1e-3);
  CHECK(example::divergence(exact, four) < 2e-3);
}
