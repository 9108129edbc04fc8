#pragma once

#include <string>
#include <vector>

#include <pith/text/text_range.hpp>

namespace pith { inline namespace v0 {

/// One turn of a conversation.
struct Message {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// A conversation as text in a model's chat format.
struct RenderedChat {
  std::string text;
  std::vector<TextRange> contents;  ///< ranges of the messages' contents; the rest belongs to the format
};

}}  // namespace pith::v0
