#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/text/chat_message.hpp>
#include <pith/text/detail/unicode.hpp>
#include <pith/text/detail/utf8.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Builds a RenderedChat from markup and message contents.
class ChatWriter {
 public:
  ChatWriter& markup(std::string_view s) {
    out_.text += s;
    return *this;
  }
  ChatWriter& content(std::string_view s) {
    if (!s.empty()) out_.contents.push_back({out_.text.size(), out_.text.size() + s.size()});
    return markup(s);
  }
  RenderedChat take() { return std::move(out_); }

 private:
  RenderedChat out_;
};

/// Strips white space at both ends, like Python's str.strip().
inline std::string_view trimmed(std::string_view s) {
  const auto white = [&](std::size_t i) {
    const char32_t c = code_point(s, i).value;
    return is_white_space(c) || (c >= 0x1C && c <= 0x1F);
  };
  std::size_t begin = 0, end = s.size();
  while (begin < end && white(begin)) begin += code_point(s, begin).size;
  while (end > begin && white(before(s, end))) end = before(s, end);
  return s.substr(begin, end - begin);
}
inline std::string_view trimmed_right(std::string_view s) {
  const std::string_view all = trimmed(s);
  return all.empty() ? all : s.substr(0, static_cast<std::size_t>(all.data() + all.size() - s.data()));
}
inline std::string_view without_leading_newlines(std::string_view s) { return s.substr((std::min)(s.size(), s.find_first_not_of('\n'))); }
inline std::string_view without_trailing_newlines(std::string_view s) { return s.substr(0, s.find_last_not_of('\n') + 1); }

}}}  // namespace pith::v0::detail
