#pragma once

#include <string>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/text/detail/token_decoder.hpp>
#include <pith/text/tokenizer.hpp>

namespace pith { inline namespace v0 {

/// Turns tokens into text as they are generated; incomplete characters wait for their remaining bytes.
///
///   Detokenizer text(tokenizer, true);  // skips special tokens
///   generate(session, logits, options, rng, [&](Token t) { std::cout << text.add(t) << std::flush; });
///   std::cout << text.finish();
///
/// Law      the concatenated results of add() and finish() equal decode() of all tokens, except for runs of <0xHH> that are not UTF-8
///          as a whole: decode() would take back characters already shown
class Detokenizer {
 public:
  explicit Detokenizer(Tokenizer tokenizer, bool skip_special = false)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special), stream_(tokenizer_.parts_->decoder, true) {}

  /// Adds a token and returns the text that is now final.
  std::string add(Token id) {
    std::string out;
    if (const auto piece = tokenizer_.parts_->piece(id, skip_special_)) stream_.add(*piece, out);
    return out;
  }
  /// Returns the remaining text. The next add() begins a new text.
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
