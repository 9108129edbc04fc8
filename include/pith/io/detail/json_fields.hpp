#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/json_value.hpp>
#include <pith/io/detail/text.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Typed access to the keys of a JSON object. null counts as absent; 4 and 4.0 are the same number.
///
/// Throws   FormatError naming file, key, found and expected
class JsonFields {
 public:
  JsonFields(std::string_view file, const Json& object, std::string prefix = {})
      : file_(file), object_(object), prefix_(std::move(prefix)) {
    if (!object.is_object()) raise<FormatError>("pith: ", in_quotes(file), ": ", prefix_, "* is ", shown(object), ", expected an object");
  }

  std::string_view file() const { return file_; }
  /// A key with those of the objects around it: rope_scaling.factor.
  std::string path(std::string_view key) const { return text(prefix_, key); }

  const Json* find(const char* key) const {
    const Json* at = object_.find(key);
    return at == nullptr || at->is_null() ? nullptr : at;
  }
  /// Whether the key is present and null, for the few keys where null is not absence.
  bool is_null(const char* key) const {
    const Json* at = object_.find(key);
    return at != nullptr && at->is_null();
  }

  [[noreturn]] void refuse(const char* key, std::string_view expected) const {
    const Json* at = object_.find(key);
    raise<FormatError>("pith: ", in_quotes(file_), ": key '", prefix_, key, "' is ", at == nullptr ? "missing" : shown(*at), ", expected ",
                       expected);
  }

  /// A whole number in [least, most].
  Index size(const char* key, std::optional<Index> otherwise = {}, Index least = 1,
             Index most = (std::numeric_limits<Token>::max)()) const {
    const Json* value = find(key);
    if (value == nullptr && otherwise) return *otherwise;
    static const Json missing{};
    return whole(key, value == nullptr ? missing : *value, least, most);
  }
  Index whole(const char* key, const Json& value, Index least, Index most) const {
    const double number = value.is_number() ? value.get<double>() : std::nan("");  // exact up to 2^53, far above any `most`
    if (!(number >= static_cast<double>(least) && number <= static_cast<double>(most)) || number != std::floor(number))
      refuse(key, text("a whole number from ", least, " to ", most));
    return static_cast<Index>(number);
  }

  double number(const char* key, std::optional<double> otherwise = {}) const {
    const Json* value = find(key);
    if (value == nullptr && otherwise) return *otherwise;
    if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>())) refuse(key, "a finite number");
    return value->get<double>();
  }
  double positive(const char* key, std::optional<double> otherwise = {}) const {
    const double value = number(key, otherwise);
    if (value <= 0) refuse(key, "a number above 0");
    return value;
  }

  bool boolean(const char* key, bool otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) refuse(key, "true or false");
    return value->get<bool>();
  }

  std::string string(const char* key, std::optional<std::string> otherwise = {}) const {
    const Json* value = find(key);
    if (value == nullptr && otherwise) return *otherwise;
    if (value == nullptr || !value->is_string()) refuse(key, "text");
    return value->get<std::string>();
  }

 private:
  static std::string shown(const Json& value) {
    if (value.is_structured()) return text(value.is_object() ? "an object" : "a list", " of ", value.size());
    return in_quotes(value.dump());
  }

  std::string_view file_;
  const Json& object_;
  std::string prefix_;
};

}}}  // namespace pith::v0::detail
