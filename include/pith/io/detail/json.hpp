#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/io/detail/file_bytes.hpp>
#include <pith/io/detail/json_parser.hpp>
#include <pith/io/detail/json_text.hpp>
#include <pith/io/detail/json_value.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/limits.hpp>

// Parses JSON text under limits on size and memory.
namespace pith { inline namespace v0 { namespace detail {

/// Gives the parser a text byte by byte, with NaN, Infinity and -Infinity as numbers of as many digits; `word` says which of them was given
/// last.
class JsonBytes {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;

  JsonBytes(std::string_view rest, std::string_view& word) : rest_(rest), word_(&word) { look(); }

  char operator*() const { return left_ > 0 && rest_.front() != '-' ? '1' : rest_.front(); }
  JsonBytes& operator++() {
    const char at = rest_.front();
    if (at == '"' && !escaped_) quoted_ = !quoted_;
    escaped_ = quoted_ && at == '\\' && !escaped_;
    if (left_ > 0) *word_ = here_, --left_;  // not before: the parser looks one byte beyond a number
    rest_.remove_prefix(1);
    if (!quoted_ && json_separators.find(at) != std::string_view::npos) look();
    return *this;
  }
  bool operator==(const JsonBytes& other) const { return rest_.size() == other.rest_.size(); }

 private:
  void look() {
    if (rest_.empty() || (rest_.front() != 'N' && rest_.front() != 'I' && rest_.front() != '-')) return;
    const std::string_view here = rest_.substr(0, rest_.find_first_of(json_separators));
    for (const std::string_view word : json_words)
      if (here == word) here_ = word, left_ = word.size();
  }

  std::string_view rest_;
  std::string_view* word_;
  std::string_view here_;
  std::size_t left_ = 0;  // bytes of the word here
  bool quoted_ = false, escaped_ = false;
};

/// Builds a JsonDocument from parser events; measure_json() has found it large enough.
class JsonBuilder {
 public:
  JsonBuilder(std::string_view json, std::string_view file, std::string_view& word, JsonDocument& out)
      : json_(json), file_(file), word_(word), out_(out) {}

  bool null() { return put(Json::Kind::null), true; }
  bool boolean(bool value) { return put(Json::Kind::boolean).boolean_ = value, true; }
  bool number_integer(std::int64_t value) { return !word_.empty() ? put_word() : (put(Json::Kind::whole).whole_ = value, true); }
  bool number_unsigned(std::uint64_t value) { return !word_.empty() ? put_word() : (put(Json::Kind::natural).natural_ = value, true); }
  bool number_float(double value, const std::string&) { return put(Json::Kind::real).real_ = value, true; }
  bool binary(nlohmann::json::binary_t&) { return false; }  // occurs only in binary formats
  bool string(std::string& value) {
    const std::string_view kept = keep(value);
    Json& to = put(Json::Kind::string);
    to.letters_ = kept.data();
    to.length_ = static_cast<std::uint32_t>(kept.size());
    return true;
  }
  bool key(std::string& name) {
    key_ = keep(name);
    return true;
  }
  bool start_object(std::size_t) { return open(Json::Kind::object); }
  bool start_array(std::size_t) { return open(Json::Kind::list); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    raise<FormatError>("pith: ", in_quotes(file_), ": not valid JSON at ", json_place(json_, position), ": ", json_reason(error.what()));
  }

 private:
  Json& put(Json::Kind kind) {
    Json& value = out_.values_.at(next_++);
    value.kind_ = kind;
    value.key_ = key_;
    key_ = {};
    if (depth_ > 0) ++open_[depth_ - 1]->count_;
    return value;
  }

  bool put_word() {
    using Limits = std::numeric_limits<double>;
    put(Json::Kind::real).real_ = word_ == "NaN" ? Limits::quiet_NaN() : word_ == "Infinity" ? Limits::infinity() : -Limits::infinity();
    word_ = {};
    return true;
  }

  std::string_view keep(const std::string& letters) {
    char* to = out_.text_.data() + used_;
    if (letters.empty()) return "";
    PITH_ASSERT(letters.size() <= out_.text_.size() - used_);  // an escape is never shorter than its character
    std::memcpy(to, letters.data(), letters.size());
    used_ += letters.size();
    return {to, letters.size()};
  }

  bool open(Json::Kind kind) {
    Json& value = put(kind);
    open_.at(depth_++) = &value;
    return true;
  }

  bool close() {
    Json& value = *open_[--depth_];
    value.extent_ = static_cast<std::uint32_t>(&out_.values_[0] + next_ - &value);
    std::uint32_t* const first = out_.children_.data() + children_;
    children_ += value.count_;
    std::uint32_t* to = first;
    for (const Json& child : value) *to++ = static_cast<std::uint32_t>(&child - &value);
    if (value.is_object()) {
      const Json* const base = &value;
      std::sort(first, to, [base](std::uint32_t a, std::uint32_t b) { return base[a].key_ < base[b].key_; });
      const auto twice = std::adjacent_find(first, to, [base](std::uint32_t a, std::uint32_t b) { return base[a].key_ == base[b].key_; });
      if (twice != to) raise<FormatError>("pith: ", in_quotes(file_), ": key ", in_quotes(base[*twice].key_), " is given twice");
    }
    value.children_ = first;
    return true;
  }

  std::string_view json_, file_, key_;
  std::string_view& word_;  // the number that comes next is this word
  JsonDocument& out_;
  std::size_t next_ = 0, used_ = 0, children_ = 0, depth_ = 0;
  std::array<Json*, JsonLimits::deepest> open_{};
};

/// Parses a JSON object; keys keep their order. `json` is not needed afterwards.
///
/// NaN and Infinity are numbers that are not finite, as Python reads and writes them: who reads a key that needs a number refuses them, and
/// a key that nobody reads may have them (time_step_limit of Mamba hybrids).
///
/// Heap     64 MB at most, under the limits of any file that pith reads
/// Throws   FormatError naming the file: not JSON, over a limit, a repeated key, not an object
inline JsonDocument parse_json(std::string_view json, std::string_view file, const JsonLimits& limits = {}) {
  const JsonExtent extent = measure_json(json, file, limits);
  JsonDocument document(extent.values, extent.text_bytes);
  std::string_view word;
  JsonBuilder builder(json, file, word, document);
  read_events(JsonBytes(json, word), JsonBytes({}, word), builder);
  if (!document.root().is_object()) raise<FormatError>("pith: ", in_quotes(file), ": expected a JSON object at the top");
  return document;
}

/// parse_json() of a file; a file over the limit is refused before it is read.
inline JsonDocument read_json(const std::filesystem::path& path, const JsonLimits& limits = {.bytes = max_config_bytes}) {
  const FileBytes file = FileBytes::read(path, limits.bytes);
  return parse_json(file.text(), file.name(), limits);
}

}}}  // namespace pith::v0::detail
