#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/text.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The states of a compiled Pattern.
struct PatternProgram {
  enum class Op : std::uint8_t { accept, set, split, begin, end, word, not_word, ahead, not_ahead };
  using Letters = std::bitset<128>;
  struct Instruction {
    Op op = Op::accept;
    std::uint32_t x = 0, y = 0;  ///< a set; targets of a split; the state after a lookahead
  };
  std::vector<Letters> sets = {};
  std::vector<Instruction> code = {};

  static Letters only(char c) { return Letters().set(static_cast<unsigned char>(c)); }
  static Letters range(char first, char last) {
    Letters set;
    for (int c = first; c <= last; ++c) set.set(static_cast<std::size_t>(c));
    return set;
  }
  static const Letters& word_letters() {
    static const Letters set = range('a', 'z') | range('A', 'Z') | range('0', '9') | only('_');
    return set;
  }
  static bool is_word(char c) { return static_cast<unsigned char>(c) < 0x80 && word_letters().test(static_cast<unsigned char>(c)); }
};

/// Compiles an expression: recursive descent, then unfolding into states.
class PatternReader {
  using Letters = PatternProgram::Letters;
  using Op = PatternProgram::Op;
  using Instruction = PatternProgram::Instruction;

 public:
  /// `where`: file and key, for messages.
  PatternReader(std::string_view expression, std::string_view where) : source_(expression), where_(where) {
    if (source_.size() > longest) refuse(text("has ", source_.size(), " bytes, expected at most ", longest));
    for (const char c : source_)
      if (static_cast<unsigned char>(c) >= 0x80 || c == '\0') unsupported("letters beyond ASCII");
    const std::size_t root = alternatives();
    if (at_ < source_.size()) refuse(text("closes a group at byte ", at_, " that was not opened"));
    emit(root);
    code_.push_back({Op::accept});
  }

  PatternProgram program() && { return {std::move(sets_), std::move(code_)}; }

 private:
  enum class Kind : std::uint8_t { set, sequence, either, repeat, assertion, ahead };
  static constexpr std::size_t longest = 4096, largest = 8192, unbounded = ~std::size_t{0};
  static constexpr int deepest = 32;

  struct Node {
    Kind kind = Kind::sequence;
    Op op = Op::accept;                      ///< kind of an assertion or lookahead
    std::size_t set = 0;                     ///< index of the letters it matches
    std::size_t least = 0, most = 0;         ///< bounds of a repetition
    std::vector<std::size_t> children = {};  ///< nodes
  };

  [[noreturn]] void refuse(const std::string& what) const { raise<FormatError>(where_, ": expression ", in_quotes(source_), " ", what); }
  [[noreturn]] void unsupported(std::string_view what) const {
    raise<UnsupportedError>(where_, ": expression ", in_quotes(source_), " uses ", what, ", which pith does not read: list the names");
  }

  // ---------------------------------------------------------------------------------------------------------------- reading

  bool next_is(char c) const { return at_ < source_.size() && source_[at_] == c; }
  bool take(std::string_view word) {
    if (source_.compare(at_, word.size(), word) != 0) return false;
    at_ += word.size();
    return true;
  }
  std::size_t add(Node node) {
    tree_.push_back(std::move(node));
    return tree_.size() - 1;
  }
  std::size_t letters(const Letters& which) {
    sets_.push_back(which);
    return add({.kind = Kind::set, .set = sets_.size() - 1});
  }
  static Letters only(char c) { return PatternProgram::only(c); }
  static Letters range(char first, char last) { return PatternProgram::range(first, last); }

  std::size_t alternatives() {
    if (++depth_ > deepest) refuse(text("nests groups deeper than ", deepest));
    std::vector<std::size_t> all{sequence()};
    while (take("|")) all.push_back(sequence());
    --depth_;
    return all.size() == 1 ? all.front() : add({.kind = Kind::either, .children = std::move(all)});
  }

  std::size_t sequence() {
    std::vector<std::size_t> all;
    while (at_ < source_.size() && !next_is('|') && !next_is(')')) {
      std::size_t item = atom();
      std::size_t least = 0, most = 0;
      if (count(least, most)) {
        item = add({.kind = Kind::repeat, .least = least, .most = most, .children = {item}});
        if (next_is('+')) unsupported("a possessive repetition");
        take("?");  // lazy
        const std::size_t again = at_;
        if (count(least, most)) refuse(text("repeats a repetition at byte ", again));
      }
      all.push_back(item);
    }
    return add({.kind = Kind::sequence, .children = std::move(all)});
  }

  bool number(std::size_t& n) {
    const std::size_t first = at_;
    for (n = 0; at_ < source_.size() && source_[at_] >= '0' && source_[at_] <= '9'; ++at_)
      if ((n = n * 10 + static_cast<std::size_t>(source_[at_] - '0')) > largest) refuse(text("repeats more than ", largest, " times"));
    return at_ > first;
  }

  /// Reads a repetition, if there is one. As in Python, a brace that opens none is a literal.
  bool count(std::size_t& least, std::size_t& most) {
    if (take("*")) return least = 0, most = unbounded, true;
    if (take("+")) return least = 1, most = unbounded, true;
    if (take("?")) return least = 0, most = 1, true;
    const std::size_t first = at_;
    if (!take("{")) return false;
    const bool given = number(least);
    most = least;
    const bool range = take(",");
    if (range && !number(most)) most = unbounded;
    if ((!given && !range) || !take("}")) return at_ = first, false;
    if (least > most) refuse(text("repeats at least ", least, " and at most ", most, " times"));
    return true;
  }

  std::size_t atom() {
    if (take("(?:")) return closed(alternatives());
    if (take("(?=")) return look(Op::ahead);
    if (take("(?!")) return look(Op::not_ahead);
    if (take("(?P<")) {
      while (at_ < source_.size() && !next_is('>')) ++at_;
      if (!take(">")) refuse("names a group without an end");
      return closed(alternatives());
    }
    if (take("(?")) unsupported("a group of another kind than (?: (?= (?! and (?P<name>");
    if (take("(")) return closed(alternatives());
    if (take("[")) return letters(bracket());
    if (take(".")) return letters(~only('\n'));
    if (take("^")) return add({.kind = Kind::assertion, .op = Op::begin});
    if (take("$")) return add({.kind = Kind::assertion, .op = Op::end});
    if (next_is('*') || next_is('+') || next_is('?')) refuse(text("repeats nothing at byte ", at_));
    if (take("\\")) {
      if (take("b")) return add({.kind = Kind::assertion, .op = Op::word});
      if (take("B")) return add({.kind = Kind::assertion, .op = Op::not_word});
      if (take("A")) return add({.kind = Kind::assertion, .op = Op::begin});
      if (take("Z")) return add({.kind = Kind::assertion, .op = Op::end});
      return letters(escaped());
    }
    return letters(only(source_[at_++]));
  }
  std::size_t closed(std::size_t node) {
    if (!take(")")) refuse("opens a group that is not closed");
    return node;
  }
  std::size_t look(Op op) { return add({.kind = Kind::ahead, .op = op, .children = {closed(alternatives())}}); }

  /// Reads the part after a backslash.
  Letters escaped() {
    if (at_ == source_.size()) refuse("ends in a backslash");
    const char c = source_[at_++];
    const Letters space = range('\t', '\r') | only(' ') | range('\x1c', '\x1f');
    if (c == 'd') return range('0', '9');
    if (c == 'D') return ~range('0', '9');
    if (c == 'w') return PatternProgram::word_letters();
    if (c == 'W') return ~PatternProgram::word_letters();
    if (c == 's') return space;
    if (c == 'S') return ~space;
    if (PatternProgram::is_word(c) && c != '_') unsupported(text("'\\", c, "'"));
    return only(c);
  }

  Letters bracket() {
    const bool opposite = take("^");
    Letters set;
    for (bool first = true; first || !next_is(']'); first = false) {
      if (at_ >= source_.size()) refuse("opens a class that is not closed");
      const Letters from = take("\\") ? escaped() : only(source_[at_++]);
      set |= from;
      if (!next_is('-') || at_ + 1 >= source_.size() || source_[at_ + 1] == ']') continue;
      ++at_;
      const Letters to = take("\\") ? escaped() : only(source_[at_++]);
      if (from.count() != 1 || to.count() != 1 || lowest(from) > lowest(to)) refuse(text("has an impossible range before byte ", at_));
      set |= range(lowest(from), lowest(to));
    }
    ++at_;
    return opposite ? ~set : set;
  }
  static char lowest(const Letters& set) {
    std::size_t c = 0;
    while (!set.test(c)) ++c;
    return static_cast<char>(c);
  }

  // ---------------------------------------------------------------------------------------------------------------- states

  static std::uint32_t here(std::size_t state) { return static_cast<std::uint32_t>(state); }

  std::size_t push(Instruction instruction) {
    if (code_.size() >= largest) refuse(text("unfolds to more than ", largest, " states"));
    code_.push_back(instruction);
    return code_.size() - 1;
  }

  void emit(std::size_t n) {
    const Node& node = tree_[n];
    switch (node.kind) {
      case Kind::set:
        push({Op::set, here(node.set)});
        break;
      case Kind::assertion:
        push({node.op});
        break;
      case Kind::sequence:
        for (const std::size_t child : node.children) emit(child);
        break;
      case Kind::either: {
        std::vector<std::size_t> ends;
        for (std::size_t i = 0; i < node.children.size(); ++i) {
          const bool last = i + 1 == node.children.size();
          const std::size_t split = last ? 0 : push({Op::split});
          emit(node.children[i]);
          if (last) break;
          ends.push_back(push({Op::split}));
          code_[split] = {Op::split, here(split) + 1, here(code_.size())};
        }
        for (const std::size_t end : ends) code_[end] = {Op::split, here(code_.size()), here(code_.size())};
        break;
      }
      case Kind::repeat: {
        for (std::size_t i = 0, before = ~code_.size(); i < node.least && before != code_.size(); ++i) {
          before = code_.size();
          emit(node.children[0]);  // an empty repetition is empty
        }
        std::vector<std::size_t> skips;
        for (std::size_t i = node.least; i < node.most; ++i) {
          skips.push_back(push({Op::split}));
          emit(node.children[0]);
          if (node.most != unbounded) continue;
          push({Op::split, here(skips.back()), here(skips.back())});
          break;
        }
        for (const std::size_t skip : skips) code_[skip] = {Op::split, here(skip) + 1, here(code_.size())};
        break;
      }
      case Kind::ahead: {
        const std::size_t start = push({node.op});
        emit(node.children[0]);
        push({Op::accept});
        code_[start].x = here(code_.size());
      }
    }
  }

  std::string source_, where_;
  std::size_t at_ = 0;
  int depth_ = 0;
  std::vector<Node> tree_;
  std::vector<Letters> sets_;
  std::vector<Instruction> code_;
};

}}}  // namespace pith::v0::detail
