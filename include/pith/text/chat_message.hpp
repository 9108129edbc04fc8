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

/// A conversation as the model wants to read it.
struct RenderedChat {
  std::string text;
  std::vector<TextRange> contents;  ///< where the messages' own words stand; the rest is the format's
};

}}  // namespace pith::v0
