// The shipped vision-language model on its images: what its README counts.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "../examples/support/scenes.hpp"
#include "support/catch.hpp"

using namespace pith;

namespace golden_vlm {

TEST_CASE("golden.vlm: the shipped model answers as its README counts", "[golden]") {
  const std::filesystem::path folder = std::filesystem::path(PITH_MODELS_DIR) / "tiny-vlm";
  const Decoder<float> decoder = load_decoder(folder);
  const Linear<float> projector = load_linear(folder / "projector.safetensors");
  REQUIRE(projector.out() == decoder.config().hidden_size);
  auto session = decoder.start(Dense{}, {.max_prompt = 100, .max_tokens = 300});
  example::Answers answers;
  for (const example::Scene& scene : example::load_scenes(folder)) {
    const Matrix<float> image = projector.forward(scene.patches);
    example::answer(session, decoder, scene, {.rows = image}, answers);
  }
  const int counted[example::question_kinds][2] = {{196, 198}, {165, 206}, {86, 196}};
  for (std::size_t kind = 0; kind < example::question_kinds; ++kind) {
    INFO(example::question_names[kind] << ": " << answers.right[kind] << " of " << answers.asked[kind]);
    CHECK(answers.asked[kind] == counted[kind][1]);
    CHECK(std::abs(answers.right[kind] - counted[kind][0]) <= 2);
  }
}

}  // namespace golden_vlm
