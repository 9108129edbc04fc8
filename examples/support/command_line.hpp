#pragma once

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

// Shared by all examples: reads the command line, reports errors and progress, writes files.
namespace example {

/// An invalid command line.
struct UsageError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// Parses all of `text` as a number of least .. most; `what` names it in the refusal.
template <class Number> Number number(const std::string& what, const std::string& text, Number least, Number most) {
  const char *const first = text.c_str(), *const last = first + text.size();
  Number value{};
  bool whole = false;
  if constexpr (std::is_floating_point_v<Number>) {
    char* end = nullptr;
    const bool begins = !text.empty() && (text[0] == '-' || text[0] == '.' || (text[0] >= '0' && text[0] <= '9'));
    value = static_cast<Number>(std::strtod(first, &end));
    whole = begins && end == last && std::isfinite(value);
  } else {
    const auto [end, error] = std::from_chars(first, last, value);
    whole = error == std::errc{} && end == last;
  }
  if (whole && value >= least && value <= most) return value;
  const auto shown = [](Number limit) {
    std::string digits = std::to_string(limit);
    if (std::is_floating_point_v<Number>) digits.erase(std::min(digits.find_last_not_of('0'), digits.find('.') - 1) + 1);
    return digits;
  };
  throw UsageError(what + " is '" + text + "', expected a " + (std::is_floating_point_v<Number> ? "" : "whole ") + "number from " +
                   shown(least) + " to " + shown(most));
}

/// Options, `--name VALUE` or `--name=VALUE`, and the other arguments in order. Take options first; done() refuses the rest.
class CommandLine {
 public:
  CommandLine(int argc, char** argv) : left_(argv + std::min(argc, 1), argv + argc) {}

  /// Whether the flag `name` is present.
  bool flag(std::string_view name) {
    const auto found = std::find(left_.begin(), left_.end(), name);
    if (found == left_.end()) return false;
    left_.erase(found);
    return true;
  }
  /// Throws   UsageError for an option without a value or given twice
  std::optional<std::string> option(std::string_view name) {
    std::optional<std::string> value;
    for (std::size_t i = 0; i < left_.size();) {
      const std::string& argument = left_[i];
      const bool joined = argument.size() > name.size() && argument.starts_with(name) && argument[name.size()] == '=';
      if (argument != name && !joined) {
        ++i;
        continue;
      }
      if (value) throw UsageError(std::string(name) + " is given twice");
      if (!joined && (i + 1 == left_.size() || left_[i + 1].starts_with("--"))) throw UsageError(std::string(name) + " needs a value");
      value = joined ? argument.substr(name.size() + 1) : left_[i + 1];
      const auto at = left_.begin() + static_cast<std::ptrdiff_t>(i);
      left_.erase(at, at + (joined ? 1 : 2));
    }
    return value;
  }
  std::string option(std::string_view name, std::string otherwise) { return option(name).value_or(std::move(otherwise)); }
  template <class Number> Number option(std::string_view name, Number otherwise, Number least, Number most) {
    const auto value = option(name);
    return value ? number(std::string(name), *value, least, most) : otherwise;
  }

  /// The next argument that is not an option.
  std::string next(std::string otherwise) {
    if (left_.empty()) return otherwise;
    refuse_option();
    std::string value = std::move(left_.front());
    left_.erase(left_.begin());
    return value;
  }
  template <class Number> Number next(const std::string& what, Number otherwise, Number least, Number most) {
    return left_.empty() ? otherwise : number(what, next(""), least, most);
  }
  bool more() const { return !left_.empty(); }
  void done() const {
    if (left_.empty()) return;
    refuse_option();
    throw UsageError("'" + left_.front() + "' is one argument too many");
  }

 private:
  void refuse_option() const {
    for (const std::string& argument : left_)
      if (argument.starts_with("--")) throw UsageError("unknown option " + argument);
  }

  std::vector<std::string> left_;
};

/// Runs the example's main: prints `usage` for --help; returns the result of main(CommandLine&) (void: 0), or 1 and one sentence on stderr.
template <class Main> int run(int argc, char** argv, const char* usage, Main&& main) {
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 14);  // a line appears as soon as it is written, also in a file or pipe
  for (int i = 1; i < argc; ++i)
    if (const std::string_view argument = argv[i]; argument == "--help" || argument == "-h") {
      std::printf("%s\n", usage);
      return 0;
    }
  const auto refused = [&](const char* what, const char* remedy) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s%s\n", argc > 0 ? std::filesystem::path(argv[0]).stem().string().c_str() : "example", what, remedy);
    return 1;
  };
  try {
    CommandLine line(argc, argv);
    int status = 0;
    if constexpr (std::is_void_v<decltype(main(line))>) {
      main(line);
    } else {
      status = main(line);
    }
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) return refused("standard output cannot be written", "");
    return status;
  } catch (const UsageError& error) {
    return refused(error.what(), "; --help says how it is called");
  } catch (const std::bad_alloc&) {
    return refused("memory ran out", "");
  } catch (const std::exception& error) {
    return refused(error.what(), "");
  }
}

/// Progress of a long run, on one terminal line; silent if stderr is a file or pipe.
class Progress {
 public:
  Progress() = default;
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  /// Updates at most ten times a second, so it can be called for every token.
  void show(const std::string& what, double done, double total) {
    if (!terminal_) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    next_ = now + std::chrono::milliseconds(100);
    std::fprintf(stderr, "\r%s: %.0f %%\x1b[K", what.c_str(), 100 * done / total);
    std::fflush(stderr);
    shown_ = true;
  }
  /// Clears the line; call before printing, since both may share a terminal.
  void clear() {
    if (!shown_) return;
    std::fprintf(stderr, "\r\x1b[K");
    std::fflush(stderr);
    shown_ = false;
  }

 private:
#ifdef _WIN32
  bool terminal_ = _isatty(_fileno(stderr)) != 0;
#else
  bool terminal_ = isatty(fileno(stderr)) != 0;
#endif
  bool shown_ = false;
  std::chrono::steady_clock::time_point next_{};
};

/// A text file with checked opening and writing.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path) : path_(std::move(path)), out_(path_) {
    if (!out_) throw std::runtime_error("'" + path_.string() + "' cannot be opened for writing");
  }
  template <class T> OutputFile& operator<<(const T& value) {
    out_ << value;
    return *this;
  }
  void close() {
    out_.close();
    if (!out_) throw std::runtime_error("'" + path_.string() + "' cannot be written");
  }

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace example
