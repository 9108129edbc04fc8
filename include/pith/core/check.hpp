#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include <pith/core/types.hpp>

// Errors and argument checks: the exception types, how they are thrown, and the shape checks that every call makes.

/// Checks an invariant inside the library. Off in release; a test may define it before the first include to make it throw.
#ifndef PITH_ASSERT
#ifdef NDEBUG
#define PITH_ASSERT(condition) static_cast<void>(0)
#else
#define PITH_ASSERT(condition)        \
  ((condition) ? static_cast<void>(0) \
               : (std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition), std::abort()))
#endif
#endif

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define PITH_HAS_EXCEPTIONS 1
#else
#define PITH_HAS_EXCEPTIONS 0
#endif

namespace pith { inline namespace v0 {

/// Shapes or parameters are invalid or do not fit together.
struct ShapeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
/// Something is full or too long, or a workspace is too small.
struct CapacityError : std::length_error {
  using std::length_error::length_error;
};
/// A call is not allowed in the current state: the order of calls is wrong.
struct StateError : std::logic_error {
  using std::logic_error::logic_error;
};
/// A file violates its format.
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// A file or request is valid but asks for something that pith does not support.
struct UnsupportedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// A progress callback asked to stop.
struct Cancelled : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

inline void append_text(std::string& out, std::string_view piece) { out.append(piece); }
inline void append_text(std::string& out, char letter) { out.push_back(letter); }
template <class N>
requires std::is_arithmetic_v<N>
void append_text(std::string& out, N number) { out += std::to_string(number); }

/// Concatenates pieces of text and numbers; for error messages only, never on a hot path.
template <class... Pieces> [[gnu::cold, gnu::noinline]] std::string text(const Pieces&... pieces) {
  std::string out;
  (append_text(out, pieces), ...);
  return out;
}

inline std::string shape_text(Index rows, Index cols) {
  const auto extent = [](Index n) { return n < 0 ? std::string("*") : std::to_string(n); };
  return text("[", extent(rows), ", ", extent(cols), "]");
}

}  // namespace detail

/// Throws Error with this message; in a build without exceptions, prints it and aborts. Every error of the library is raised here.
template <class Error> [[noreturn, gnu::cold, gnu::noinline]] void raise(const std::string& message) {
#if PITH_HAS_EXCEPTIONS
  throw Error(message);
#else
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
#endif
}

inline constexpr Index any_extent = -1;  ///< in check_shape(): accepts any extent

namespace detail {
[[noreturn, gnu::cold, gnu::noinline]] inline void raise_shape(std::string_view where, std::string_view what, Index rows, Index cols,
                                                               Index want_rows, Index want_cols) {
  const auto fits = [](Index n, Index want) { return want < 0 || n == want; };
  const bool transposed = fits(cols, want_rows) && fits(rows, want_cols);
  raise<ShapeError>(text("pith::", where, ": ", what, " is ", shape_text(rows, cols), ", expected ", shape_text(want_rows, want_cols),
                         transposed ? text("; did you mean ", what, ".transpose()?") : std::string()));
}
}  // namespace detail

/// Checks that a matrix has the expected shape, in release builds as well; `any_extent` accepts anything.
///
/// Cost     two compares
/// Throws   ShapeError "pith::Linear: x is [4096, 1], expected [*, 4096]; did you mean x.transpose()?"
template <class M> void check_shape(std::string_view where, std::string_view what, const M& m, Index rows, Index cols) {
  if ((rows >= 0 && m.rows() != rows) || (cols >= 0 && m.cols() != cols)) [[unlikely]]
    detail::raise_shape(where, what, m.rows(), m.cols(), rows, cols);
}

namespace detail {
/// a * b; throws on overflow. Sizes from files are multiplied here before anything is allocated.
inline Index checked_product(std::string_view where, Index a, Index b) {
  Index product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product))
    raise<CapacityError>(text("pith::", where, ": ", a, " x ", b, " is negative or too large"));
  return product;
}
}  // namespace detail

}}  // namespace pith::v0
