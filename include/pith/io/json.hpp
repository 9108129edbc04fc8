#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/file_bytes.hpp>
#include <pith/io/text.hpp>

namespace pith::inline v0::detail {

/// Looks at JSON before it is turned into values: syntax, depth, and that no object gives a key twice.
class JsonGuard {
 public:
  explicit JsonGuard(std::string_view file) : file_(file) {}

  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(std::int64_t) { return true; }
  bool number_unsigned(std::uint64_t) { return true; }
  bool number_float(double, const std::string&) { return true; }
  bool binary(nlohmann::json::binary_t&) { return true; }
  bool string(std::string&) { return true; }
  bool start_object(std::size_t) { return open(); }
  bool start_array(std::size_t) { return open(); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second)
      raise<FormatError>(text("pith: ", in_quotes(file_), ": key ", in_quotes(name), " is given twice"));
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    raise<FormatError>(text("pith: ", in_quotes(file_), ": not valid JSON at byte ", position, ": ", error.what()));
  }

 private:
  static constexpr std::size_t deepest = 32;
  bool open() {
    if (keys_.size() == deepest) raise<FormatError>(text("pith: ", in_quotes(file_), ": JSON nested deeper than ", deepest));
    keys_.emplace_back();
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  std::string_view file_;
  std::vector<std::unordered_set<std::string>> keys_;
};

/// An object read from JSON text; as nlohmann::ordered_json it keeps the order of its keys.
///
/// Throws   FormatError naming the file: not JSON, nested too deep, a key twice, no object
template <class Json = nlohmann::json> Json parse_json(std::string_view json, std::string_view file) {
  if (json.find('\0') != std::string_view::npos)
    raise<FormatError>(text("pith: ", in_quotes(file), ": a zero byte at byte ", json.find('\0'), ", expected JSON text"));
  JsonGuard guard(file);
  nlohmann::json::sax_parse(json.begin(), json.end(), &guard);
  Json value = Json::parse(json.begin(), json.end(), nullptr, false);
  if (!value.is_object()) raise<FormatError>(text("pith: ", in_quotes(file), ": expected a JSON object at the top"));
  return value;
}

inline nlohmann::json read_json(const std::filesystem::path& path) {
  const FileBytes file = FileBytes::read(path);
  constexpr std::size_t longest = 64 << 20;
  if (file.size() > longest)
    raise<FormatError>(text("pith: ", in_quotes(file.name()), " has ", file.size(), " bytes, expected at most ", longest));
  return parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.size()}, file.name());
}

}  // namespace pith::inline v0::detail
