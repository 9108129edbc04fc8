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

/// A regular expression with bounded time and stack for any input: the part of Python's `re` that adapter configs use, over ASCII.
///
/// Literals, `.`, classes, groups, `|`, `* + ? {m,n}` (greedy or lazy: the result is the same), `^ $ \A \Z \b \B`, `\d \w \s` and their
/// opposites, lookahead. All states advance together through the text, without backtracking, so that a hostile expression cannot exhaust
/// time or stack, as it can with std::regex.
///
/// Throws   FormatError for a broken expression, or one that takes too long; UnsupportedError for back references, lookbehind,
///          flags, possessive repetitions and other letters after a backslash
class Pattern {
 public:
  /// `where`: file and key, for messages.
  Pattern(std::string_view expression, std::string_view where)
      : source_(expression), where_(where), program_(PatternReader(expression, where).program()) {}

  /// Whether the whole text matches. `steps` is the remaining budget, shared by many calls.
  bool matches(std::string_view name, std::size_t& steps) const { return walk(0, name, 0, true, steps); }
  /// Whether some beginning of the text matches, as re.match() has it.
  bool begins(std::string_view name, std::size_t& steps) const { return walk(0, name, 0, false, steps); }
  std::size_t states() const { return program_.code.size(); }  ///< its size in memory

 private:
  /// Whether acceptance is reached from a state and a position: at the end of the text, or anywhere.
  bool walk(std::size_t start, std::string_view name, std::size_t from, bool to_end, std::size_t& steps) const {
    steps -= (std::min)(steps, 32 + program_.code.size() / 16);  // for the allocation below
    std::vector<std::size_t> now, then{start};
    std::vector<std::size_t> seen(program_.code.size(), 0);  // 1 + the last position at which the state was entered
    for (std::size_t at = from;; ++at) {
      now.swap(then);
      then.clear();
      while (!now.empty()) {
        const std::size_t state = now.back();
        now.pop_back();
        if (std::exchange(seen[state], at + 1) == at + 1) continue;
        if (steps == 0)
          raise<FormatError>(where_, ": expression ", in_quotes(source_), " takes too long on ", in_quotes(name), ": write a simpler one");
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
