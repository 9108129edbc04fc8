#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <pith/decode/token_model.hpp>

#include "laws/token_model_laws.hpp"
#include "support/catch.hpp"
#include "support/markov_model.hpp"

namespace {

using pith::ConstMatrixRef;
using pith::Index;
using pith::Position;
using pith::Token;
using pith_test::broken_token_model_law;
using pith_test::contains;
using pith_test::MarkovModel;

struct Whole {
  using Scalar = float;
  Index vocab_size() const { return 2; }
  Position next_position() const { return 0; }
  ConstMatrixRef<float> decode(std::span<const Token>) { return {}; }
  void checkpoint() {}
  void crop(Position) {}
};
struct WithoutScalar {
  Index vocab_size() const { return 2; }
  Position next_position() const { return 0; }
  ConstMatrixRef<float> decode(std::span<const Token>) { return {}; }
  void checkpoint() {}
  void crop(Position) {}
};
struct WithoutCrop : Whole {
  void crop() {}
};
struct OneRowOfNothing : Whole {
  std::vector<float> decode(std::span<const Token>) { return {}; }
};
struct WidePosition : Whole {
  Index next_position() const { return 0; }
};
struct Returning : Whole {
  pith::Matrix<float> decode(std::span<const Token>) { return {}; }
};

static_assert(pith::TokenModel<Whole> && pith::TokenModel<Returning> && pith::TokenModel<MarkovModel<float>>);
static_assert(pith::TokenModel<MarkovModel<double>>);
static_assert(!pith::TokenModel<WithoutScalar> && !pith::TokenModel<WithoutCrop> && !pith::TokenModel<OneRowOfNothing>);
static_assert(!pith::TokenModel<WidePosition> && !pith::TokenModel<int>);

/// Right positions, but what follows a crop still depends on what was cropped.
struct StaleCrop : MarkovModel<float> {
  using MarkovModel<float>::MarkovModel;
  bool stale = false;
  void crop(Position p) {
    stale = p < next_position();
    MarkovModel<float>::crop(p);
  }
  pith::Matrix<float> decode(std::span<const Token> tokens) {
    pith::Matrix<float> rows = MarkovModel<float>::decode(tokens);
    if (std::exchange(stale, false)) std::swap(rows(0, 0), rows(0, 1));
    return rows;
  }
};

/// Every row of a chunk is the one after its last token: a projection done once too few.
struct LastRowOnly : MarkovModel<float> {
  using MarkovModel<float>::MarkovModel;
  pith::Matrix<float> decode(std::span<const Token> tokens) {
    const auto rows = MarkovModel<float>::decode(tokens);
    return rows.bottomRows(1).replicate(rows.rows(), 1);
  }
};

/// A rounding that depends on how many tokens ride along.
struct Rounding : MarkovModel<float> {
  using MarkovModel<float>::MarkovModel;
  pith::Matrix<float> decode(std::span<const Token> tokens) {
    pith::Matrix<float> rows = MarkovModel<float>::decode(tokens);
    if (tokens.size() > 2) rows(1, 1) = std::nextafter(rows(1, 1), 0.f);
    return rows;
  }
};

/// Counts positions wrongly when all is accepted.
struct LosesLast : MarkovModel<float> {
  using MarkovModel<float>::MarkovModel;
  void crop(Position p) { MarkovModel<float>::crop(p == next_position() ? p - 1 : p); }
};

template <class M> auto maker() {
  return [] {
    M model(pith_test::three_token_chain_of_two<typename M::Scalar>());
    model.prefill(std::vector<Token>{2, 0, 1});
    return model;
  };
}

}  // namespace

TEST_CASE("The Markov model keeps the laws of a token model", "[decode][laws]") {
  CHECK(broken_token_model_law(maker<MarkovModel<float>>()) == "");
  CHECK(broken_token_model_law(maker<MarkovModel<double>>(), {.max_tokens = 9, .rounds = 3, .seed = 77}) == "");
  CHECK(broken_token_model_law([] { return MarkovModel(pith_test::three_token_chain()); }) == "");
}

TEST_CASE("The laws find a broken model", "[decode][laws]") {
  using pith_test::chunk_law, pith_test::crop_law, pith_test::checkpoint_law;
  CHECK(chunk_law(maker<StaleCrop>()) == "");
  CHECK_THAT(crop_law(maker<StaleCrop>()), contains("crop: after it logit ["));
  CHECK_THAT(chunk_law(maker<LastRowOnly>()), contains("chunk: logit [0, "));
  CHECK_THAT(chunk_law(maker<Rounding>()), contains("chunk: logit [1, 1]"));
  CHECK_THAT(crop_law(maker<LosesLast>()), contains("crop: next_position() is"));
  CHECK_THAT(checkpoint_law(maker<LosesLast>()), contains("accepting all"));
}

TEST_CASE("The Markov model gives the logarithms of its transitions, and refuses what it cannot do", "[decode]") {
  const auto transition = pith_test::three_token_chain_of_two<double>();
  MarkovModel model(transition);
  const std::vector<Token> text{2, 1, 0};
  const pith::Matrix<double> logits = model.decode(text);
  for (Index c = 0; c < 3; ++c) {  // before the text: token 0
    CHECK(logits(0, c) == std::log(transition(0 * 3 + 2, c)));
    CHECK(logits(1, c) == std::log(transition(2 * 3 + 1, c)));
    CHECK(logits(2, c) == std::log(transition(1 * 3 + 0, c)));
  }
  CHECK_THROWS_AS(model.crop(1), pith::StateError);
  model.checkpoint();
  CHECK_THROWS_AS(model.crop(2), pith::StateError);
  CHECK_THROWS_AS(model.crop(4), pith::StateError);
  CHECK_THROWS_AS(model.prefill(text), pith::StateError);
  model.crop(3);
  const std::vector<Token> foreign{0, 3};
  CHECK_THROWS_AS(model.decode(foreign), pith::StateError);
  CHECK_THROWS_AS(model.decode({}), pith::ShapeError);
  CHECK(model.next_position() == 3);
}

TEST_CASE("A row without a guess is all -inf", "[decode]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  pith::Matrix<float> rows = pith::Matrix<float>::Constant(2, 4, -inf);
  rows(1, 3) = -1e30f;
  const ConstMatrixRef<float> logits = rows;
  CHECK(pith::no_guess<float>(logits.row(0)));
  CHECK_FALSE(pith::no_guess<float>(logits.row(1)));
  rows(1, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(pith::no_guess<float>(logits.row(1)));
}
