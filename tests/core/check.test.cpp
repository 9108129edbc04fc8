#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include <pith/core/check.hpp>

#include "support/catch.hpp"

using pith::any_extent;
using pith::check_shape;
using pith::Index;
using pith::ShapeError;

namespace {
std::string message_of(const Eigen::Ref<const Eigen::MatrixXf>& x, Index rows, Index cols) {
  try {
    check_shape("Linear", "x", x, rows, cols);
  } catch (const ShapeError& error) {
    return error.what();
  }
  return "";
}
}  // namespace

TEST_CASE("every error type is a standard exception of the matching kind") {
  static_assert(std::is_base_of_v<std::invalid_argument, pith::ShapeError>);
  static_assert(std::is_base_of_v<std::length_error, pith::CapacityError>);
  static_assert(std::is_base_of_v<std::logic_error, pith::StateError>);
  static_assert(std::is_base_of_v<std::runtime_error, pith::FormatError>);
  static_assert(std::is_base_of_v<std::runtime_error, pith::UnsupportedError>);
  static_assert(std::is_base_of_v<std::runtime_error, pith::Cancelled>);
  CHECK_THROWS_AS(pith::raise<pith::StateError>("x"), pith::StateError);
  CHECK_THROWS_WITH(pith::raise<pith::FormatError>("what, where"), "what, where");
}

TEST_CASE("messages hold text and numbers of every type as std::to_string writes them") {
  using pith::detail::text;
  const std::string name = "weight";
  const std::string_view part = std::string_view(name).substr(1, 3);
  CHECK(text(name, '[', part, "] ", std::string()) == "weight[eig] ");
  CHECK(text(std::int8_t{-5}, ' ', std::uint8_t{200}, ' ', -7, ' ', 7u, ' ', true) == "-5 200 -7 7 1");
  CHECK(text((std::numeric_limits<long long>::min)(), ' ', (std::numeric_limits<std::uint64_t>::max)()) ==
        "-9223372036854775808 18446744073709551615");
  CHECK(text(0.5f, ' ', -1.25, ' ', 1e-9, ' ', std::numeric_limits<double>::infinity()) == "0.500000 -1.250000 0.000000 inf");
  CHECK_THROWS_WITH(pith::raise<ShapeError>("x has ", Index{3}, " rows, expected ", std::size_t{4}, ", at ", 0.25f),
                    "x has 3 rows, expected 4, at 0.250000");
}

TEST_CASE("check_shape says what, where, expected and found") {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Zero(3, 5);
  CHECK(message_of(x, 3, 5).empty());
  CHECK(message_of(x, any_extent, 5).empty());
  CHECK(message_of(x, 3, any_extent).empty());
  CHECK(message_of(x, any_extent, any_extent).empty());
  CHECK(message_of(x, 4, 5) == "pith::Linear: x is [3, 5], expected [4, 5]");
  CHECK(message_of(x, any_extent, 6) == "pith::Linear: x is [3, 5], expected [*, 6]");
  CHECK(message_of(x, 2, any_extent) == "pith::Linear: x is [3, 5], expected [2, *]");
}

TEST_CASE("check_shape suggests the transpose where that would fit") {
  CHECK(message_of(Eigen::MatrixXf::Zero(3, 5), 5, 3) == "pith::Linear: x is [3, 5], expected [5, 3]; did you mean x.transpose()?");
  CHECK(message_of(Eigen::VectorXf::Zero(4096), any_extent, 4096) ==
        "pith::Linear: x is [4096, 1], expected [*, 4096]; did you mean x.transpose()?");
  CHECK(message_of(Eigen::MatrixXf::Zero(4, 4), any_extent, 5) == "pith::Linear: x is [4, 4], expected [*, 5]");
}

TEST_CASE("sizes from outside are multiplied without overflow") {
  constexpr Index most = std::numeric_limits<Index>::max();
  CHECK(pith::detail::checked_product("f", 3, 4) == 12);
  CHECK(pith::detail::checked_product("f", 0, most) == 0);
  CHECK(pith::detail::checked_product("f", 1, most) == most);
  CHECK_THROWS_AS(pith::detail::checked_product("f", 2, most), pith::CapacityError);
  CHECK_THROWS_AS(pith::detail::checked_product("f", -1, 1), pith::CapacityError);
  CHECK_THROWS_WITH(pith::detail::checked_product("read", most, most), pith_test::contains("pith::read: 9223372036854775807 x"));
}

TEST_CASE("messages are put together from text, letters and numbers") {
  CHECK(pith::detail::text("a", std::string("b"), 'c', 1, -2L, 3u, true) == "abc1-231");
  CHECK(pith::detail::shape_text(any_extent, 7) == "[*, 7]");
}

TEST_CASE("a broken invariant is an exception in tests") {
  CHECK_NOTHROW(PITH_ASSERT(1 + 1 == 2));
  CHECK_THROWS_AS(PITH_ASSERT(1 + 1 == 3), pith_test::BrokenInvariant);
}
