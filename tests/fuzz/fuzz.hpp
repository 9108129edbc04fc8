#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

#include "io/temp_folder.hpp"

namespace pith_fuzz {

using Bytes = std::span<const std::uint8_t>;

/// The fuzz programs: each takes any bytes, and ends the process if a law of the library breaks.
void run_safetensors(Bytes);
void run_config(Bytes);
void run_index(Bytes);
void run_adapter(Bytes);
void run_session_file(Bytes);
void run_expression(Bytes);
void run_policy(Bytes);
void run_cache(Bytes);
void run_session(Bytes);
void run_tokenizer(Bytes);

/// How a call ended.
enum class Outcome { done, shape, capacity, state, format, unsupported, memory, system };

/// Runs a call. Any exception but pith's own, std::bad_alloc and std::system_error passes through and ends the process.
template <class F> Outcome attempt(F&& call) {
  try {
    call();
  } catch (const pith::ShapeError&) {
    return Outcome::shape;
  } catch (const pith::CapacityError&) {
    return Outcome::capacity;
  } catch (const pith::StateError&) {
    return Outcome::state;
  } catch (const pith::FormatError&) {
    return Outcome::format;
  } catch (const pith::UnsupportedError&) {
    return Outcome::unsupported;
  } catch (const std::bad_alloc&) {
    return Outcome::memory;
  } catch (const std::system_error&) {
    return Outcome::system;
  }
  return Outcome::done;
}

/// p + delta and p - delta in 32 bits, which any numbers have.
inline pith::Position later(std::int64_t p, std::int64_t delta) {
  return static_cast<pith::Position>(static_cast<std::uint64_t>(p) + static_cast<std::uint64_t>(delta));
}
inline pith::Position earlier(std::int64_t p, std::int64_t delta) {
  return static_cast<pith::Position>(static_cast<std::uint64_t>(p) - static_cast<std::uint64_t>(delta));
}

/// Ends the process unless the law holds.
inline void demand(bool holds, const char* law) {
  if (holds) return;
  std::fprintf(stderr, "a law is broken: %s\n", law);
  std::abort();
}

/// Draws numbers from an input; behind its end everything is 0.
class Reader {
 public:
  explicit Reader(Bytes bytes) : bytes_(bytes) {}
  bool done() const { return at_ >= bytes_.size(); }
  std::uint8_t byte() { return done() ? std::uint8_t{0} : bytes_[at_++]; }
  bool flag() { return (byte() & 1) != 0; }
  /// 0 .. n - 1, n up to 256.
  pith::Index below(pith::Index n) { return byte() % n; }
  std::uint64_t seed() { return byte() * std::uint64_t{256} + byte(); }
  Bytes rest() { return bytes_.subspan(std::exchange(at_, bytes_.size())); }

  /// Mostly a small number, below 0 as well; else one at the edge of some type.
  pith::Index number() {
    constexpr pith::Index most = std::numeric_limits<pith::Index>::max(), most32 = std::numeric_limits<std::int32_t>::max();
    constexpr std::array<pith::Index, 20> edges{
        most,        most - 1,      most / 2, most / 2 + 1, -most - 1, -most,   most32,     most32 + 1,           most32 / 2,
        -most32 - 1, -most32,       -2,       1 << 16,      1 << 20,   1 << 24, most32 - 1, pith::Index(1) << 40, most / 4,
        most / 8,    most32 * 2 + 1};
    const pith::Index b = byte();
    return b < 220 ? b % 44 - 2 : edges[static_cast<std::size_t>(b - 220) % edges.size()];
  }
  /// Mostly a share of 1; else a number that no option should take.
  double real() {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    constexpr std::array<double, 11> odd{infinity, -infinity, std::numeric_limits<double>::quiet_NaN(), -1.0, -0.0, 1.5, 3.0, 1e300, -1e300,
                                         1e-320,   1e30};
    const int b = byte();
    return b < 200 ? b / 128.0 : odd[static_cast<std::size_t>(b - 200) % odd.size()];
  }

 private:
  Bytes bytes_;
  std::size_t at_ = 0;
};

/// The folder of this process, in memory where the system has one there.
inline const std::filesystem::path& scratch() {
  static const pith_test::TempFolder folder(std::filesystem::is_directory("/dev/shm") ? "/dev/shm"
                                                                                      : std::filesystem::temp_directory_path());
  return folder.path();
}

inline void write_file(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  demand(out.good(), "the scratch folder takes files");
}

inline std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

/// Splits an input into files: each begins behind a line "=== name". What comes before the first such line is the file `first`.
template <class F> void for_files(Bytes bytes, std::string_view first, F&& take) {
  constexpr std::string_view mark = "\n=== ";
  std::string_view rest = text_of(bytes), name = first;
  if (rest.starts_with(mark.substr(1))) rest.remove_prefix(mark.size() - 1), name = {};
  for (;;) {
    if (name.empty()) {
      const std::size_t line = rest.find('\n');
      if (line == std::string_view::npos) return;
      name = rest.substr(0, line);
      rest.remove_prefix(line + 1);
    }
    const std::size_t end = rest.find(mark);
    take(name, rest.substr(0, end));
    if (end == std::string_view::npos) return;
    rest.remove_prefix(end + mark.size());
    name = {};
  }
}

}  // namespace pith_fuzz
