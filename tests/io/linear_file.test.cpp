#include <vector>

#include <pith/io.hpp>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;

TEST_CASE("a linear layer comes out of a file, with its bias or without, and refuses to be another shape", "[io]") {
  const pith_test::TempFolder folder;
  const auto path = folder / "projector.safetensors";
  const Matrix<float> weight = pith_test::random_matrix<float>(4, 6, 1), bias = pith_test::random_matrix<float>(1, 4, 2);
  const auto write = [&](const std::vector<Index>& weight_shape, const std::vector<Index>& bias_shape) {
    SafetensorsWriter writer;
    writer.add("vision.weight", DType::f32, weight_shape, std::as_bytes(std::span(weight.data(), 24)));
    writer.add("vision.bias", DType::f32, bias_shape, std::as_bytes(std::span(bias.data(), 4)));
    writer.add("head.weight", DType::f32, {2, 12}, std::as_bytes(std::span(weight.data(), 24)));
    writer.write(path);
  };
  write({4, 6}, {4});
  const Linear<float> layer = load_linear(path, "vision.");
  CHECK(layer.weight() == weight);
  CHECK(Matrix<float>(layer.bias().transpose()) == bias);
  const Linear<double> wide = load_linear<double>(path, "head.");
  CHECK(wide.in() == 12);
  CHECK(wide.bias().size() == 0);
  CHECK_THROWS_WITH(load_linear(path), contains("'weight'"));
  write({4, 6}, {2, 2});
  CHECK_THROWS_WITH(load_linear(path, "vision."), contains("tensor 'vision.bias' is [2, 2], expected [4]"));
  write({2, 2, 6}, {4});
  CHECK_THROWS_WITH(load_linear(path, "vision."), contains("tensor 'vision.weight' is [2, 2, 6], expected [out, in]"));
}
