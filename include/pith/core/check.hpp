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

/// A piece of a message: text or a number, of any type, as one type, so that all messages are put together by the same code.
/// It refers to the text that it is given.
class TextPart {
 public:
  constexpr TextPart(const char* letters) : letters_(letters), size_(c_string) {}
  constexpr TextPart(std::string_view letters) : letters_(letters.data()), size_(letters.size()) {}
  TextPart(const std::string& letters) : letters_(letters.data()), size_(letters.size()) {}
  constexpr TextPart(char letter) : whole_(letter), size_(one_letter) {}
  constexpr TextPart(double number) : real_(number), size_(real) {}
  template <class N>
  requires std::is_integral_v<N>
  constexpr TextPart(N number) {
    if constexpr (std::is_signed_v<N>) {
      whole_ = number;
      size_ = whole;
    } else {
      natural_ = number;
      size_ = natural;
    }
  }

  void append_to(std::string& out) const {
    switch (size_) {
      case c_string:
        out.append(letters_);
        break;
      case one_letter:
        out.push_back(static_cast<char>(whole_));
        break;
      case whole:
        out.append(std::to_string(whole_));
        break;
      case natural:
        out.append(std::to_string(natural_));
        break;
      case real:
        out.append(std::to_string(real_));
        break;
      default:
        out.append(letters_, size_);
    }
  }

 private:
  // Sizes that no text has name the other kinds: a part is two words, and a call that may fail stays short.
  static constexpr std::size_t c_string = ~std::size_t{0}, one_letter = c_string - 1, whole = c_string - 2, natural = c_string - 3,
                               real = c_string - 4;
  union {
    const char* letters_;
    long long whole_;
    unsigned long long natural_;
    double real_;
  };
  std::size_t size_;
};

[[gnu::cold, gnu::noinline]] inline std::string join_text(const TextPart* parts, std::size_t n) {
  std::string out;
  for (std::size_t i = 0; i < n; ++i) parts[i].append_to(out);
  return out;
}

/// Concatenates pieces of text and numbers; for error messages only, never on a hot path.
template <class... Pieces> [[gnu::always_inline]] inline std::string text(const Pieces&... pieces) {
  const TextPart parts[] = {TextPart(pieces)...};
  return join_text(parts, sizeof...(pieces));
}

inline std::string shape_text(Index rows, Index cols) {
  const auto extent = [](Index n) { return n < 0 ? std::string("*") : std::to_string(n); };
  return text("[", extent(rows), ", ", extent(cols), "]");
}

}  // namespace detail

namespace detail {
template <class Error> [[noreturn, gnu::cold, gnu::noinline]] void raise_parts(const TextPart* parts, std::size_t n) {
#if PITH_HAS_EXCEPTIONS
  throw Error(join_text(parts, n));
#else
  std::fprintf(stderr, "%s\n", join_text(parts, n).c_str());
  std::abort();
#endif
}
}  // namespace detail

/// Throws Error with these pieces of text and numbers as its message; in a build without exceptions, prints it and aborts. Every error of
/// the library is raised here.
template <class Error, class... Pieces> [[noreturn, gnu::always_inline]] inline void raise(const Pieces&... pieces) {
  const detail::TextPart parts[] = {detail::TextPart(pieces)...};
  detail::raise_parts<Error>(parts, sizeof...(pieces));
}

inline constexpr Index any_extent = -1;  ///< in check_shape(): accepts any extent

namespace detail {
[[noreturn, gnu::cold, gnu::noinline]] inline void raise_shape(std::string_view where, std::string_view what, Index rows, Index cols,
                                                               Index want_rows, Index want_cols) {
  const auto fits = [](Index n, Index want) { return want < 0 || n == want; };
  const bool transposed = fits(cols, want_rows) && fits(rows, want_cols);
  raise<ShapeError>("pith::", where, ": ", what, " is ", shape_text(rows, cols), ", expected ", shape_text(want_rows, want_cols),
                    transposed ? text("; did you mean ", what, ".transpose()?") : std::string());
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
    raise<CapacityError>("pith::", where, ": ", a, " x ", b, " is negative or too large");
  return product;
}
}  // namespace detail

}}  // namespace pith::v0
