#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/text/detail/byte_map.hpp>
#include <pith/text/detail/pre_tokenizer.hpp>
#include <pith/text/detail/utf8.hpp>

// Turns tokens into text.
namespace pith { inline namespace v0 { namespace detail {

/// Decoder settings: how tokens become text.
struct TokenDecoder {
  enum class Kind : std::uint8_t { join, byte_level, metaspace, chain };  ///< join: a space between tokens
  struct Step {
    enum class Kind : std::uint8_t { replace, byte_fallback, fuse, strip } kind;
    std::string from = {}, to = {};  ///< replace
    std::string content = {};        ///< strip: the character to remove
    std::size_t start = 0;           ///< strip: the most to remove from the front
  };
  Kind kind = Kind::join;
  std::string replacement = {};                          ///< metaspace: replaces a space
  PrependScheme prepend_scheme = PrependScheme::always;  ///< metaspace
  std::vector<Step> steps = {};                          ///< chain; after `fuse` only `strip`
};

/// The byte of a token <0xHH>.
inline std::optional<char> fallback_byte(std::string_view token) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  const int high = digit(token[3]), low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high << 4 | low);
}

inline std::string_view without_front(std::string_view s, std::string_view content, std::size_t& most) {
  while (most > 0 && s.starts_with(content)) {
    s.remove_prefix(content.size());
    --most;
  }
  return s;
}

/// Joins the text of tokens, one after the other.
///
/// Eager: appends text as soon as it is final, and a run of <0xHH> as soon as its bytes are UTF-8, although only the end of the run decides
/// whether it is text. Not eager: waits for the end of each run.
class TextStream {
 public:
  TextStream(const TokenDecoder& decoder, bool eager) : decoder_(&decoder), eager_(eager) {
    for (const TokenDecoder::Step& step : decoder.steps) strips_.push_back(step.start);
  }

  /// Appends the text that is final after `token`.
  void add(std::string_view token, std::string& out) {
    switch (decoder_->kind) {
      case TokenDecoder::Kind::join:
        out.append(first_ ? "" : " ").append(token);
        break;
      case TokenDecoder::Kind::byte_level: {
        held_.append(token);
        std::size_t done = 0;  // stops at a character that more bytes could complete
        while (done < held_.size()) {
          const Utf8Front front = utf8_front(std::string_view(held_).substr(done));
          if (front.cut) break;
          done += front.size;
        }
        append_utf8(out, std::string_view(held_).substr(0, done));
        held_.erase(0, done);
        break;
      }
      case TokenDecoder::Kind::metaspace:
        out += replaced(token, decoder_->replacement, first_ && decoder_->prepend_scheme != PrependScheme::never ? "" : " ");
        break;
      case TokenDecoder::Kind::chain:
        pass(0, token, out);
        break;
    }
    first_ = false;
  }

  /// Appends the text held back; call after the last token.
  void finish(std::string& out) {
    if (decoder_->kind == TokenDecoder::Kind::byte_level) {
      append_utf8(out, held_);
    } else {
      for (std::size_t k = 0; k < decoder_->steps.size(); ++k)
        if (decoder_->steps[k].kind == TokenDecoder::Step::Kind::byte_fallback) release(k + 1, out);
    }
    *this = TextStream(*decoder_, eager_);
  }

 private:
  void pass(std::size_t k, std::string_view token, std::string& out) {
    if (k == decoder_->steps.size()) {
      out.append(token);
      return;
    }
    const TokenDecoder::Step& step = decoder_->steps[k];
    switch (step.kind) {
      case TokenDecoder::Step::Kind::replace:
        if (token.find(step.from) == std::string_view::npos) return pass(k + 1, token, out);
        return pass(k + 1, replaced(token, step.from, step.to), out);
      case TokenDecoder::Step::Kind::fuse:
        fused_ = true;
        return pass(k + 1, token, out);
      case TokenDecoder::Step::Kind::strip: {
        std::size_t each = step.start;
        const std::string_view rest = without_front(token, step.content, fused_ ? strips_[k] : each);
        if (fused_ && !rest.empty()) strips_[k] = 0;  // past the front of the text
        return pass(k + 1, rest, out);
      }
      case TokenDecoder::Step::Kind::byte_fallback: {
        if (const auto byte = fallback_byte(token)) {
          held_.push_back(*byte);
          if (eager_ && valid_utf8(held_) == held_.size()) release(k + 1, out);
          return;
        }
        release(k + 1, out);
        return pass(k + 1, token, out);
      }
    }
  }
  // A run of bytes is text, or one U+FFFD per byte.
  void release(std::size_t k, std::string& out) {
    if (held_.empty()) return;
    const std::string run = std::exchange(held_, {});
    if (valid_utf8(run) == run.size()) return pass(k, run, out);
    for (std::size_t i = 0; i < run.size(); ++i) pass(k, replacement_character, out);
  }

  const TokenDecoder* decoder_;
  std::string held_;                 // bytes of an incomplete character
  std::vector<std::size_t> strips_;  // [steps] how many characters a strip after `fuse` may still remove
  bool eager_;
  bool first_ = true, fused_ = false;
};

}}}  // namespace pith::v0::detail
