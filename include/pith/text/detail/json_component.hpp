#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/text/detail/utf8.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// A component of tokenizer.json and its path, for messages.
class Component {
 public:
  Component(std::string_view file, const Json& value, std::string path) : file_(file), value_(value), path_(std::move(path)) {
    if (!value.is_object()) refuse(text("is ", value.dump(), ", expected an object"));
  }

  std::string type() const { return string("type"); }
  [[noreturn]] void refuse(std::string_view what) const { raise<FormatError>("pith: ", in_quotes(file_), ": ", path_, " ", what); }
  [[noreturn]] void unsupported(std::string_view what) const {
    raise<UnsupportedError>("pith: ", in_quotes(file_), ": ", path_, " ", what);
  }
  /// Returns the value of a key; nullptr if absent or null.
  const Json* find(const char* key) const {
    const Json* at = value_.find(key);
    return at == nullptr || at->is_null() ? nullptr : at;
  }
  std::string string(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr || !value->is_string()) refuse(text("has no text '", key, "'"));
    return value->get<std::string>();
  }
  bool boolean(const char* key, bool otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) refuse(text("has '", key, "' ", value->dump(), ", expected true or false"));
    return value->get<bool>();
  }
  /// Reads a whole number >= 0.
  std::size_t count(const char* key, std::size_t otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    const double number = value->is_number() ? value->get<double>() : -1;
    if (!(number >= 0 && number <= 1e9)) refuse(text("has '", key, "' ", value->dump(), ", expected a whole number from 0"));
    return static_cast<std::size_t>(number);
  }
  /// Reads a single character.
  std::string character(const char* key) const {
    std::string value = string(key);
    if (value.empty() || code_point(value, 0).size != value.size())
      refuse(text("has '", key, "' ", in_quotes(value), ", expected one character"));
    return value;
  }
  /// Reads pattern.String; or pattern.Regex into `regex`, if given.
  std::string pattern(std::string* regex = nullptr) const {
    const Json* value = find("pattern");
    const Json *plain = value == nullptr ? nullptr : value->find("String"), *expression = value == nullptr ? nullptr : value->find("Regex");
    if (regex != nullptr && expression != nullptr && expression->is_string()) {
      *regex = expression->get<std::string>();
      return {};
    }
    if (plain == nullptr || !plain->is_string() || plain->get<std::string_view>().empty())
      unsupported(regex == nullptr ? "has a pattern that is not {\"String\": text}"
                                   : "has a pattern that is neither {\"String\": text} nor {\"Regex\": text}");
    return plain->get<std::string>();
  }
  /// Calls visit(component) for this one or, if it is a Sequence, in order for the members of `list`.
  template <class Visit> void flatten(const char* list, Visit&& visit, int depth = 0) const {
    if (type() != "Sequence") return visit(*this);
    if (depth == deepest) refuse(text("nests Sequence deeper than ", deepest));
    const Json* inner = find(list);
    if (inner == nullptr || !inner->is_array()) refuse(text("has no list '", list, "'"));
    for (std::size_t i = 0; i < inner->size(); ++i)
      Component(file_, (*inner)[i], text(path_, ".", list, "[", i, "]")).flatten(list, visit, depth + 1);
  }

 private:
  static constexpr int deepest = 8;
  std::string_view file_;
  const Json& value_;
  std::string path_;
};

}}}  // namespace pith::v0::detail
