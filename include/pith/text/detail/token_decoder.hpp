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

namespace pith::inline v0::detail {

/// How tokens become text.
struct TokenDecoder {
  enum class Kind : std::uint8_t { join, byte_level, metaspace, chain };  ///< join: a space between tokens
  struct Step {
    enum class Kind : std::uint8_t { replace, byte_fallback, fuse, strip } kind;
    std::string from = {}, to = {};  ///< replace
    std::string content = {};        ///< strip: a character,
    std::size_t start = 0;           ///< removed so often at most from the front
  };
  Kind kind = Kind::join;
  std::string replacement = {};                          ///< metaspace: stands for a space
  PrependScheme prepend_scheme = PrependScheme::always;  ///< metaspace
  std::vector<Step> steps = {};                          ///< chain; behind `fuse` only `strip`
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

/// The text of tokens whose list is complete.
class TextJoiner {
 public:
  explicit TextJoiner(const TokenDecoder& decoder) : decoder_(decoder) {}

  void add(std::string token) { tokens_.push_back(std::move(token)); }
  std::string text() {
    std::string out;
    switch (decoder_.kind) {
      case TokenDecoder::Kind::join:
        for (std::size_t i = 0; i < tokens_.size(); ++i) out.append(i == 0 ? "" : " ").append(tokens_[i]);
        return out;
      case TokenDecoder::Kind::byte_level: {  // one character may be spread over tokens
        std::string bytes;
        for (const std::string& t : tokens_) bytes += t;
        append_utf8(out, bytes);
        return out;
      }
      case TokenDecoder::Kind::metaspace:
        for (std::size_t i = 0; i < tokens_.size(); ++i)
          out += replaced(tokens_[i], decoder_.replacement, i == 0 && decoder_.prepend_scheme != PrependScheme::never ? "" : " ");
        return out;
      case TokenDecoder::Kind::chain:
        for (const TokenDecoder::Step& step : decoder_.steps) apply(step);
        for (const std::string& t : tokens_) out += t;
        return out;
    }
    return out;
  }

 private:
  void apply(const TokenDecoder::Step& step) {
    switch (step.kind) {
      case TokenDecoder::Step::Kind::replace:
        for (std::string& t : tokens_) t = replaced(t, step.from, step.to);
        return;
      case TokenDecoder::Step::Kind::strip:
        for (std::string& t : tokens_) {
          std::size_t most = step.start;
          t = std::string(without_front(t, step.content, most));
        }
        return;
      case TokenDecoder::Step::Kind::fuse: {
        std::string all;
        for (const std::string& t : tokens_) all += t;
        tokens_.assign(1, std::move(all));
        return;
      }
      case TokenDecoder::Step::Kind::byte_fallback:
        return join_bytes();
    }
  }
  // A run of bytes is a text, or as many U+FFFD.
  void join_bytes() {
    std::vector<std::string> out;
    std::string run;
    const auto end_run = [&] {
      if (run.empty()) return;
      if (valid_utf8(run) == run.size()) {
        out.push_back(run);
      } else {
        out.insert(out.end(), run.size(), std::string(replacement_character));
      }
      run.clear();
    };
    for (std::string& t : tokens_) {
      if (const auto byte = fallback_byte(t)) {
        run.push_back(*byte);
      } else {
        end_run();
        out.push_back(std::move(t));
      }
    }
    end_run();
    tokens_ = std::move(out);
  }

  const TokenDecoder& decoder_;
  std::vector<std::string> tokens_;
};

/// The text of tokens as they come, as early as it is certain.
class TextStream {
 public:
  explicit TextStream(const TokenDecoder& decoder) : decoder_(&decoder) {
    for (const TokenDecoder::Step& step : decoder.steps) strips_.push_back(step.start);
  }

  /// Appends what is final once `token` is known.
  void add(std::string_view token, std::string& out) {
    switch (decoder_->kind) {
      case TokenDecoder::Kind::join:
        out.append(first_ ? "" : " ").append(token);
        break;
      case TokenDecoder::Kind::byte_level: {
        held_.append(token);
        std::size_t done = 0;  // a character that more bytes could complete stays
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

  /// Appends what was held back: no more tokens come.
  void finish(std::string& out) {
    if (decoder_->kind == TokenDecoder::Kind::byte_level) {
      append_utf8(out, held_);
    } else {
      for (std::size_t k = 0; k < decoder_->steps.size(); ++k)
        if (decoder_->steps[k].kind == TokenDecoder::Step::Kind::byte_fallback) release(k + 1, out);
    }
    *this = TextStream(*decoder_);
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
        return pass(k + 1, replaced(token, step.from, step.to), out);
      case TokenDecoder::Step::Kind::fuse:
        fused_ = true;
        return pass(k + 1, token, out);
      case TokenDecoder::Step::Kind::strip: {
        std::size_t each = step.start;
        const std::string_view rest = without_front(token, step.content, fused_ ? strips_[k] : each);
        if (fused_ && !rest.empty()) strips_[k] = 0;  // the front of the text is past
        return pass(k + 1, rest, out);
      }
      case TokenDecoder::Step::Kind::byte_fallback: {
        if (const auto byte = fallback_byte(token)) {
          held_.push_back(*byte);
          if (valid_utf8(held_) != held_.size()) return;
          const std::string run = std::exchange(held_, {});
          return pass(k + 1, run, out);
        }
        release(k + 1, out);
        return pass(k + 1, token, out);
      }
    }
  }
  void release(std::size_t k, std::string& out) {
    const std::string run = std::exchange(held_, {});
    for (std::size_t i = 0; i < run.size(); ++i) pass(k, replacement_character, out);
  }

  const TokenDecoder* decoder_;
  std::string held_;                 // bytes of a character that is not complete
  std::vector<std::size_t> strips_;  // [steps] what a strip behind `fuse` may still remove
  bool first_ = true, fused_ = false;
};

}  // namespace pith::inline v0::detail
