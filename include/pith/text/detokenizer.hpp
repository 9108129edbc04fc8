#pragma once

#include <string>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/text/detail/token_decoder.hpp>
#include <pith/text/tokenizer.hpp>

namespace pith { inline namespace v0 {

/// Text from tokens as a model makes them: what is final comes at once, halves of a character wait for the rest.
///
///   Detokenizer text(tokenizer, {.skip_special = true});
///   generate(session, logits, options, rng, [&](Token t) { std::cout << text.add(t) << std::flush; });
///   std::cout << text.finish();
///
/// Law      all that add() and finish() return, in a row, is what decode() makes of the whole list; but for tokens <0xHH> whose bytes are
/// no
///          UTF-8 as a whole, where decode() would take back characters that were shown
class Detokenizer {
 public:
  explicit Detokenizer(Tokenizer tokenizer, bool skip_special = false)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special), stream_(tokenizer_.parts_->decoder, true) {}

  /// The text that is certain once this token is known.
  std::string add(Token id) {
    std::string out;
    if (const auto piece = tokenizer_.parts_->piece(id, skip_special_)) stream_.add(*piece, out);
    return out;
  }
  /// What was waiting. The next add() begins a new text.
  std::string finish() {
    std::string out;
    stream_.finish(out);
    return out;
  }

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  detail::TextStream stream_;
};

}}  // namespace pith::v0
