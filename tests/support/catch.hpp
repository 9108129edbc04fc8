#pragma once

#include <stdexcept>
#include <string>

namespace pith_test {

/// What a broken invariant of the library becomes in a test.
struct BrokenInvariant : std::logic_error {
  using std::logic_error::logic_error;
};

}  // namespace pith_test

// CMake includes this header before anything else in every test, so that all of a program agrees on it.
#ifndef PITH_ASSERT
#define PITH_ASSERT(condition) ((condition) ? static_cast<void>(0) : throw pith_test::BrokenInvariant("broken invariant: " #condition))
#endif

#define CATCH_CONFIG_FAST_COMPILE  // no handler of exceptions in each check: what throws in one ends its test case
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

namespace pith_test {

/// For CHECK_THROWS_WITH: the message has this in it.
inline auto contains(const std::string& part) {
#if __has_include(<catch2/catch_all.hpp>)
  return Catch::Matchers::ContainsSubstring(part);
#else
  return Catch::Matchers::Contains(part);
#endif
}

}  // namespace pith_test
