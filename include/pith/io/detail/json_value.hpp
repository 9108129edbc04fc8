#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/text.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// A value of a JsonDocument. Values lie in the order of the text, an object or list before its members, in one block: freeing a document
/// frees three blocks, however deeply it nests. Not movable; pass references.
class Json {
 public:
  enum class Kind : std::uint8_t { null, boolean, whole, natural, real, string, list, object };  ///< natural: a whole number >= 0

  Json() = default;  ///< null
  Json(const Json&) = delete;
  Json& operator=(const Json&) = delete;

  bool is_null() const { return kind_ == Kind::null; }
  bool is_boolean() const { return kind_ == Kind::boolean; }
  bool is_number() const { return kind_ == Kind::whole || kind_ == Kind::natural || kind_ == Kind::real; }
  bool is_string() const { return kind_ == Kind::string; }
  bool is_array() const { return kind_ == Kind::list; }
  bool is_object() const { return kind_ == Kind::object; }
  bool is_structured() const { return is_array() || is_object(); }

  std::size_t size() const { return count_; }  ///< of an object or list; else 0
  bool empty() const { return count_ == 0; }
  std::string_view key() const { return key_; }  ///< its key in the enclosing object

  /// Returns a bool, double, std::string or std::string_view. A whole number is exact up to 2^53.
  ///
  /// Throws   StateError for another type
  template <class T> T get() const {
    if constexpr (std::is_same_v<T, bool>) {
      expect(is_boolean());
      return boolean_;
    } else if constexpr (std::is_same_v<T, double>) {
      expect(is_number());
      return kind_ == Kind::real ? real_ : kind_ == Kind::whole ? static_cast<double>(whole_) : static_cast<double>(natural_);
    } else {
      static_assert(std::is_same_v<T, std::string> || std::is_same_v<T, std::string_view>);
      expect(is_string());
      return T(letters_, length_);
    }
  }
  friend bool operator==(const Json& a, std::string_view b) { return a.is_string() && a.letters() == b; }
  friend bool operator==(const Json& a, std::same_as<bool> auto b) { return a.is_boolean() && a.boolean_ == b; }

  /// Returns the value under a key, or nullptr if this is no object or has no such key. O(log size).
  const Json* find(std::string_view key) const {
    if (!is_object()) return nullptr;
    const auto before = [this](std::uint32_t member, std::string_view wanted) { return this[member].key_ < wanted; };
    const std::uint32_t *end = children_ + count_, *at = std::lower_bound(children_, end, key, before);
    return at != end && this[*at].key_ == key ? this + *at : nullptr;
  }
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  /// An element of a list.
  const Json& operator[](std::size_t i) const {
    expect(is_array() && i < count_);
    return this[children_[i]];
  }

  class Iterator {
   public:
    using value_type = Json;
    using difference_type = std::ptrdiff_t;
    using reference = const Json&;
    using pointer = const Json*;
    using iterator_category = std::forward_iterator_tag;
    Iterator() = default;
    explicit Iterator(const Json* at) : at_(at) {}
    const Json& operator*() const { return *at_; }
    Iterator& operator++() {
      at_ += at_->extent_;
      return *this;
    }
    Iterator operator++(int) {
      const Iterator old = *this;
      ++*this;
      return old;
    }
    bool operator==(const Iterator&) const = default;

   private:
    const Json* at_ = nullptr;
  };
  /// Iterates over the members of a list or object in the order of the text.
  Iterator begin() const { return Iterator(this + 1); }
  Iterator end() const { return Iterator(this + extent_); }

  /// Iterates over key and value: for (const auto& [key, value] : object.items()).
  struct Member {
    std::string_view key;
    const Json& value;
  };
  class Members {
   public:
    class MemberIterator : public Iterator {
     public:
      explicit MemberIterator(Iterator at) : Iterator(at) {}
      Member operator*() const { return {Iterator::operator*().key(), Iterator::operator*()}; }
    };
    explicit Members(const Json& of) : of_(of) {}
    MemberIterator begin() const { return MemberIterator(of_.begin()); }
    MemberIterator end() const { return MemberIterator(of_.end()); }

   private:
    const Json& of_;
  };
  Members items() const { return Members(*this); }

  /// JSON text for a message, at most about `longest` bytes.
  std::string dump(std::size_t longest = 120) const {
    std::string out;
    append(out, longest);
    return out;
  }

 private:
  friend class JsonBuilder;

  static void expect(bool good) {
    if (!good) [[unlikely]]
      raise<StateError>("pith::Json: the value is of another kind than it is read as");
  }

  std::string_view letters() const { return {letters_, length_}; }

  template <class N> static void append_number(std::string& out, N value) {
    if constexpr (std::is_floating_point_v<N>)
      if (!std::isfinite(value)) {
        out += value > 0 ? "Infinity" : value < 0 ? "-Infinity" : "NaN";
        return;
      }
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    out.append(digits, end);
    if (std::is_floating_point_v<N> && std::all_of(digits, end, [](char c) { return c == '-' || (c >= '0' && c <= '9'); })) out += ".0";
  }

  void append(std::string& out, std::size_t longest) const {
    if (out.size() > longest) return;
    switch (kind_) {
      case Kind::null:
        out += "null";
        break;
      case Kind::boolean:
        out += boolean_ ? "true" : "false";
        break;
      case Kind::whole:
        append_number(out, whole_);
        break;
      case Kind::natural:
        append_number(out, natural_);
        break;
      case Kind::real:
        append_number(out, real_);
        break;
      case Kind::string:
        append_json_text(out, whole_letters(letters(), longest));
        break;
      case Kind::list:
      case Kind::object: {
        const char *open = is_array() ? "[" : "{", *close = is_array() ? "]" : "}";
        out += open;
        for (const Json& child : *this) {
          if (out.size() > longest) return;
          if (&child != this + 1) out += ',';
          if (is_object()) {
            append_json_text(out, whole_letters(child.key_, longest));
            out += ':';
          }
          child.append(out, longest);
        }
        out += close;
      }
    }
  }

  Kind kind_ = Kind::null;
  std::uint32_t count_ = 0;   // number of members
  std::uint32_t length_ = 0;  // length of a text
  std::uint32_t extent_ = 1;  // number of values, itself and all descendants
  std::string_view key_;
  union {
    bool boolean_;
    std::int64_t whole_;
    std::uint64_t natural_ = 0;
    double real_;
    const std::uint32_t* children_;  // offsets of the members from here: a list's in order, an object's by key
    const char* letters_;
  };
};

/// A JSON text in memory. Moving it leaves its values in place.
class JsonDocument {
 public:
  JsonDocument(std::size_t values, std::size_t text_bytes) : values_(values), children_(values), text_(text_bytes) {}
  const Json& root() const { return values_.front(); }

 private:
  friend class JsonBuilder;
  std::vector<Json> values_;
  std::vector<std::uint32_t> children_;
  std::vector<char> text_;
};

}}}  // namespace pith::v0::detail
