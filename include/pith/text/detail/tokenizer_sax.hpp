#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/json_text.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/text/detail/added_tokens.hpp>
#include <pith/text/detail/bpe.hpp>
#include <pith/text/detail/utf8.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Reads tokenizer.json from parser events: puts the long lists (vocabulary, merges, added tokens) into arrays and writes the rest, a few
/// hundred bytes, as JSON again. Loading thus costs the tables, without a JSON tree.
class TokenizerSax {
 public:
  TokenizerSax(std::string_view json, std::string_view file) : json_(json), file_(file) {}

  BpeFile bpe;
  std::vector<AddedToken> added;
  std::string rest;  ///< the file without model.vocab, model.merges and added_tokens
  bool has_vocab = false, has_merges = false;

  bool null() { return plain("null"); }
  bool boolean(bool value) {
    if (here() == Place::added_entry) return set_flag(value);
    return plain(value ? "true" : "false");
  }
  bool number_integer(std::int64_t value) { return number(value < 0 ? no_id : static_cast<std::uint64_t>(value), std::to_string(value)); }
  bool number_unsigned(std::uint64_t value) { return number(value, std::to_string(value)); }
  bool number_float(double, const std::string& digits) { return number(no_id, digits); }
  bool string(std::string& value) {
    switch (here()) {
      case Place::merges:
      case Place::merge:
        return add_merge(value);
      case Place::added_entry:
        if (key_ != "content") return wrong_added("text");
        return set(seen_content, [&] { added.back().content = value; });
      case Place::vocab:
        refuse_id(value);
      case Place::added:
        refuse(text("added_tokens[", added.size(), "] is text, expected an object"));
      case Place::ignored:
        return true;
      case Place::rest:
        break;
    }
    begin_value();
    append_json_text(rest, value);
    return true;
  }
  bool binary(nlohmann::json::binary_t&) { return true; }
  bool key(std::string& name) {
    key_ = name;
    if (here() == Place::rest && !hides()) {
      separate();
      append_json_text(rest, name);
      rest += ':';
      separated_ = true;
    }
    return true;
  }
  bool start_object(std::size_t) {
    if (places_.empty() || here() == Place::rest) return open(hides() && key_ == "vocab" ? Place::vocab : Place::rest, '{');
    if (here() == Place::added) {
      added.emplace_back();
      seen_ = 0;
      return open(Place::added_entry, '\0');
    }
    unexpected("an object");
    return open(Place::ignored, '\0');
  }
  bool end_object() {
    if (here() == Place::added_entry && seen_ != seen_all)
      refuse(text("added_tokens[", added.size() - 1, "] (", in_quotes(added.back().content), ") lacks one of id, content, single_word, ",
                  "lstrip, rstrip, normalized, special"));
    return close('}');
  }
  bool start_array(std::size_t) {
    if (places_.empty()) refuse("the file is a list, expected an object");
    if (here() == Place::rest)
      return open(!hides() || key_ == "vocab" ? Place::rest : key_ == "merges" ? Place::merges : Place::added, '[');
    if (here() == Place::merges) {
      if (bpe.merges.size() != 0 && !bpe.merges_in_pairs) mixed_merges();
      bpe.merges_in_pairs = true;
      parts_ = 0;
      return open(Place::merge, '\0');
    }
    unexpected("a list");
    return open(Place::ignored, '\0');
  }
  bool end_array() {
    if (here() == Place::merge && parts_ != 2)
      refuse(text("model.merges[", bpe.merges.size() / 2, "] has ", parts_, " parts, expected two"));
    return close(']');
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    raise<FormatError>("pith: ", in_quotes(file_), ": not valid JSON at ", json_place(json_, position), ": ", json_reason(error.what()));
  }

 private:
  // ignored: a list or object under an unknown key
  enum class Place : std::uint8_t { rest, vocab, merges, merge, added, added_entry, ignored };
  static constexpr std::size_t deepest = 64;
  static constexpr std::uint32_t largest_id = 1u << 24;  // tables are as long as the largest id
  static constexpr std::size_t added_bytes = 1 << 20;
  static constexpr unsigned seen_id = 1, seen_content = 2, seen_all = 127;

  [[noreturn]] void refuse(std::string_view what) const { raise<FormatError>("pith: ", in_quotes(file_), ": ", what); }
  [[noreturn]] void refuse_id(std::string_view found) const {
    refuse(text("model.vocab gives token ", in_quotes(key_), " the id ", in_quotes(found), ", expected a whole number below ", largest_id));
  }
  [[noreturn]] void mixed_merges() const { refuse("model.merges holds strings and lists, expected one of the two"); }

  Place here() const { return places_.empty() ? Place::rest : places_.back(); }
  bool top() const { return places_.size() == 1; }
  bool in_model() const { return places_.size() == 2 && model_; }
  // Whether the key just read names one of the long lists.
  bool hides() const { return (top() && key_ == "added_tokens") || (in_model() && (key_ == "vocab" || key_ == "merges")); }

  void separate() {
    if (!separated_) rest += ',';
    separated_ = false;
  }
  // Drops the key of a long list. If its value is no list, the key is written after all, so that reading `rest` refuses it.
  void begin_value() {
    separate();
    if (!hides()) return;
    append_json_text(rest, key_);
    rest += ':';
  }
  bool open(Place place, char bracket) {
    if (places_.size() == deepest) refuse(text("JSON nested deeper than ", deepest));
    if (place == Place::rest) {
      begin_value();
      if (top()) model_ = key_ == "model" && bracket == '{';
      rest += bracket;
      separated_ = true;
    } else if (place == Place::vocab || place == Place::merges || place == Place::added) {
      bool& seen = place == Place::vocab ? has_vocab : place == Place::merges ? has_merges : has_added_;
      if (seen) refuse(text("key ", in_quotes(key_), " is given twice"));
      seen = true;
    }
    places_.push_back(place);
    return true;
  }
  bool close(char bracket) {
    if (here() == Place::rest) {
      rest += bracket;
      separated_ = false;
    }
    places_.pop_back();
    return true;
  }
  bool unexpected(std::string_view found) const {
    switch (here()) {
      case Place::vocab:
        refuse_id(found);
      case Place::merges:
      case Place::merge:
        refuse(text("model.merges[", merge_index(), "] holds ", found, ", expected the two tokens as text"));
      case Place::added:
        refuse(text("added_tokens[", added.size(), "] is ", found, ", expected an object"));
      case Place::added_entry:
        return wrong_added(found);
      case Place::ignored:
      case Place::rest:
        return true;
    }
    return true;
  }
  bool wrong_added(std::string_view found) const {
    if (key_ == "id" || key_ == "content" || flag_bit() != 0)
      refuse(text("added_tokens[", added.size() - 1, "].", key_, " is ", found, ", expected ",
                  key_ == "id"        ? "a whole number"
                  : key_ == "content" ? "text"
                                      : "true or false"));
    return true;  // an unknown key
  }
  std::size_t merge_index() const { return bpe.merges.size() / (bpe.merges_in_pairs ? 2 : 1); }

  bool plain(std::string_view value) {
    if (here() != Place::rest) return unexpected(value);
    begin_value();
    rest += value;
    return true;
  }
  bool number(std::uint64_t value, const std::string& digits) {
    if (here() == Place::vocab) {
      if (value >= largest_id) refuse_id(digits);
      bpe.keys.push_back(key_);
      bpe.ids.push_back(static_cast<std::uint32_t>(value));
      return true;
    }
    if (here() == Place::added_entry && key_ == "id") {
      if (value >= largest_id)
        refuse(text("added_tokens[", added.size() - 1, "].id is ", digits, ", expected a whole number below ", largest_id));
      return set(seen_id, [&] { added.back().id = static_cast<Token>(value); });
    }
    return plain(digits);
  }
  bool add_merge(std::string_view value) {
    if (here() == Place::merge) {
      if (++parts_ > 2) refuse(text("model.merges[", bpe.merges.size() / 2, "] has more than two parts"));
    } else {
      if (bpe.merges_in_pairs) mixed_merges();
      if (value.starts_with("#version")) return true;
    }
    bpe.merges.push_back(value);
    return true;
  }

  unsigned flag_bit() const {
    return key_ == "single_word"  ? 4
           : key_ == "lstrip"     ? 8
           : key_ == "rstrip"     ? 16
           : key_ == "normalized" ? 32
           : key_ == "special"    ? 64
                                  : 0;
  }
  bool set_flag(bool value) {
    const unsigned bit = flag_bit();
    if (bit == 0) return wrong_added(value ? "true" : "false");
    AddedToken& t = added.back();
    return set(bit, [&] {
      (bit == 4 ? t.single_word : bit == 8 ? t.lstrip : bit == 16 ? t.rstrip : bit == 32 ? t.normalized : t.special) = value;
    });
  }
  template <class F> bool set(unsigned bit, F&& assign) {
    if ((seen_ & bit) != 0) refuse(text("added_tokens[", added.size() - 1, "]: key '", key_, "' is given twice"));
    seen_ |= bit;
    assign();
    if (bit == seen_content && (added_size_ += added.back().content.size()) > added_bytes)
      refuse(text("added_tokens hold more than ", added_bytes, " bytes of text"));
    return true;
  }

  std::string_view json_, file_;
  std::vector<Place> places_;
  std::string key_;
  bool model_ = false;     // the object at the second level is the model
  bool separated_ = true;  // no comma needed
  bool has_added_ = false;
  unsigned seen_ = 0;      // keys seen of the current added token
  std::size_t parts_ = 0;  // parts seen of the current merge
  std::size_t added_size_ = 0;
};

}}}  // namespace pith::v0::detail
