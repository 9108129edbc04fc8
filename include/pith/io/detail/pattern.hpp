#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/pattern_program.hpp>
#include <pith/io/detail/text.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// A regular expression that takes bounded time and stack whatever it says: what adapter configs use of Python's `re`, over ASCII.
///
/// Literals, `.`, classes, groups, `|`, `* + ? {m,n}` (lazy or not: whether there is a match is the same), `^ $ \A \Z \b \B`,
/// `\d \w \s` and their opposites, lookahead. All states of the expression walk along the text at once, so nothing backtracks;
/// std::regex would follow a hostile expression until the stack or the year ends.
///
/// Throws   FormatError for a broken expression, or one that takes too long; UnsupportedError for back references, lookbehind,
///          flags, possessive repetitions and other letters after a backslash
class Pattern {
 public:
  /// `where`: file and key, for messages.
  Pattern(std::string_view expression, std::string_view where)
      : source_(expression), where_(where), program_(PatternReader(expression, where).program()) {}

  /// Whether the whole text matches. `steps` is what may still be spent, over many calls.
  bool matches(std::string_view name, std::size_t& steps) const { return walk(0, name, 0, true, steps); }
  std::size_t states() const { return program_.code.size(); }  ///< what it takes in memory

 private:
  /// From a state and a place in the text to acceptance: at the end of the text, or anywhere.
  bool walk(std::size_t start, std::string_view name, std::size_t from, bool to_end, std::size_t& steps) const {
    steps -= (std::min)(steps, 32 + program_.code.size() / 16);  // the memory below
    std::vector<std::size_t> now, then{start};
    std::vector<std::size_t> seen(program_.code.size(), 0);  // 1 + the last place where the state was entered
    for (std::size_t at = from;; ++at) {
      now.swap(then);
      then.clear();
      while (!now.empty()) {
        const std::size_t state = now.back();
        now.pop_back();
        if (std::exchange(seen[state], at + 1) == at + 1) continue;
        if (steps == 0)
          raise<FormatError>(
              text(where_, ": expression ", in_quotes(source_), " takes too long on ", in_quotes(name), ": write a simpler one"));
        --steps;
        const PatternProgram::Instruction& i = program_.code[state];
        const bool boundary = (at > 0 && PatternProgram::is_word(name[at - 1])) != (at < name.size() && PatternProgram::is_word(name[at]));
        switch (i.op) {
          case PatternProgram::Op::accept:
            if (!to_end || at == name.size()) return true;
            break;
          case PatternProgram::Op::set: {
            const auto c = at < name.size() ? static_cast<unsigned char>(name[at]) : 0x80u;
            if (c < 0x80 && program_.sets[i.x].test(c)) then.push_back(state + 1);
            break;
          }
          case PatternProgram::Op::split:
            now.push_back(i.x);
            now.push_back(i.y);
            break;
          case PatternProgram::Op::begin:
            if (at == 0) now.push_back(state + 1);
            break;
          case PatternProgram::Op::end:
            if (at == name.size()) now.push_back(state + 1);
            break;
          case PatternProgram::Op::word:
          case PatternProgram::Op::not_word:
            if (boundary == (i.op == PatternProgram::Op::word)) now.push_back(state + 1);
            break;
          case PatternProgram::Op::ahead:
          case PatternProgram::Op::not_ahead:
            if (walk(state + 1, name, at, false, steps) == (i.op == PatternProgram::Op::ahead)) now.push_back(i.x);
        }
      }
      if (at == name.size() || then.empty()) return false;
    }
  }

  std::string source_, where_;
  PatternProgram program_;
};

}}}  // namespace pith::v0::detail
