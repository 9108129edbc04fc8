#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/io/detail/text.hpp>

// Measures JSON text before it is parsed, and refuses it over a limit.
namespace pith { inline namespace v0 { namespace detail {

/// Limits on JSON text; the defaults are those of a configuration. A document of 32 MB takes at most 64 MB besides its text, for any
/// content.
struct JsonLimits {
  std::size_t bytes = std::size_t{16} << 20;   ///< of the whole text
  std::size_t values = std::size_t{1} << 18;   ///< objects, lists, texts, numbers and literals
  std::size_t longest = std::size_t{1} << 20;  ///< bytes of one text between its quotes
  bool words = true;                           ///< whether a number may be NaN, Infinity or -Infinity, which Python writes
  static constexpr std::size_t deepest = 32;   ///< nesting of objects and lists
  static constexpr std::size_t digits = 1024;  ///< bytes of a number or literal
};

/// Upper bounds of a JSON text's content.
struct JsonExtent {
  std::size_t values = 0, objects = 0, text_bytes = 0;
};

inline constexpr std::string_view json_separators(" \t\n\r,:[]{}\"\0", 12);  ///< bytes that end a number or literal

/// What Python writes for numbers that are not finite, and JSON does not have.
inline constexpr std::array<std::string_view, 3> json_words{"NaN", "Infinity", "-Infinity"};

/// The place of a byte, for a message.
inline std::string json_place(std::string_view json, std::size_t byte) {
  const auto before = json.substr(0, byte);
  return text("byte ", byte, " (line ", 1 + std::count(before.begin(), before.end(), '\n'), ")");
}

/// Refuses a Git LFS pointer: git leaves one in place of a large file if cloned without LFS.
inline void refuse_lfs_pointer(std::string_view bytes, std::string_view file) {
  if (bytes.starts_with("version https://git-lfs.github.com/spec/v1")) [[unlikely]]
    raise<FormatError>("pith: ", in_quotes(file),
                       " is a Git LFS pointer, not the file that it points to: run git lfs pull in its folder, or download the file");
}

/// Bounds the memory that parsing will need, in one pass over quotes and brackets, without allocating. `base` is the text's offset in its
/// file.
///
/// Throws   FormatError naming file and place: over a limit, a zero byte, NaN or Infinity unless limits.words, a Git LFS pointer
inline JsonExtent measure_json(std::string_view json, std::string_view file, const JsonLimits& limits = {}, std::size_t base = 0) {
  const auto refuse = [&](std::size_t byte, std::string_view what) {
    raise<FormatError>("pith: ", in_quotes(file), ": not valid JSON at ",
                       base == 0 ? json_place(json, byte) : text("byte ", base + byte, " of the file"), ": ", what);
  };
  if (json.size() > limits.bytes)
    raise<FormatError>("pith: ", in_quotes(file), " has ", json.size(), " bytes, expected at most ", limits.bytes);
  refuse_lfs_pointer(json, file);
  JsonExtent extent{.values = 1};
  std::size_t depth = 0;
  for (std::size_t at = 0; at < json.size(); ++at) {
    switch (json[at]) {
      case ' ':
      case '\t':
      case '\n':
      case '\r':
      case ':':
        break;
      case '\0':
        refuse(at, "a zero byte, expected JSON text");
        break;
      case '{':
        ++extent.objects;
        [[fallthrough]];
      case '[':
        if (++depth > limits.deepest) refuse(at, text("JSON nested deeper than ", limits.deepest));
        [[fallthrough]];
      case ',':
        if (++extent.values > limits.values) refuse(at, text("more than ", limits.values, " values"));
        break;
      case '}':
      case ']':
        depth -= depth > 0;
        break;
      case '"': {
        const std::size_t first = ++at;
        for (; at < json.size() && json[at] != '"' && json[at] != '\0'; ++at) at += json[at] == '\\';
        at = (std::min)(at, json.size());
        if (at - first > limits.longest) refuse(first, text("a text of ", at - first, " bytes, expected at most ", limits.longest));
        if (at < json.size() && json[at] == '\0') refuse(at, "a zero byte, expected JSON text");
        extent.text_bytes += at - first;
        break;
      }
      default: {  // a number or literal
        const std::size_t first = at;
        at = (std::min)(json.find_first_of(json_separators, at), json.size());
        const std::string_view word = json.substr(first, at-- - first);
        if (word.size() > limits.digits)
          refuse(first, text("a number or word of ", word.size(), " bytes, expected at most ", limits.digits));
        if (!limits.words && std::find(json_words.begin(), json_words.end(), word) != json_words.end())
          refuse(first, text(word, ", but JSON has no NaN and no Infinity: write a finite number or null"));
      }
    }
  }
  return extent;
}

/// The parser's own reason, short enough for a message.
inline std::string json_reason(std::string_view reason) {
  constexpr std::size_t longest = 200;
  return std::string(reason.substr(0, longest)) + (reason.size() > longest ? "…" : "");
}

}}}  // namespace pith::v0::detail
