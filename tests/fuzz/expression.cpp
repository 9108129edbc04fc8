// An expression of an adapter config and a module's name, a line each: it is refused, or says what a plain matcher says.
#include <bitset>

#include <pith/io/detail/pattern.hpp>

#include "fuzz/fuzz.hpp"

namespace pith_fuzz {
namespace {

/// Matches by following sets of places in the text, straight along the expression: short texts, and only the forms that all dialects
/// agree on. `ok` is false for the others.
class PlainMatcher {
 public:
  using Places = std::bitset<33>;
  explicit PlainMatcher(std::string_view text) : text_(text) {}

  bool matches(std::string_view expression) {
    e_ = expression;
    at_ = 0;
    const Places ends = either(Places{1});
    ok = ok && at_ == e_.size();
    return ends[text_.size()];
  }
  bool ok = true;

 private:
  bool more() const { return ok && at_ < e_.size(); }
  Places either(Places from) {
    Places out = sequence(from);
    while (more() && e_[at_] == '|') {
      ++at_;
      out |= sequence(from);
    }
    return out;
  }
  Places sequence(Places from) {
    while (more() && e_[at_] != '|' && e_[at_] != ')') from = repeated(from);
    return from;
  }
  /// One atom with what repeats it; the atom's text is walked once for every time it may be taken.
  Places repeated(Places from) {
    const std::size_t begin = at_;
    Places once = atom(from);
    if (!more()) return once;
    const char how = e_[at_];
    if (how == '{') ok = false;
    if (how != '*' && how != '+' && how != '?') return once;
    const std::size_t end = ++at_;
    if (more() && (e_[at_] == '*' || e_[at_] == '+' || e_[at_] == '?' || e_[at_] == '{')) ok = false;  // lazy or possessive
    Places all = how == '+' ? once : from | once;
    for (std::size_t round = 0; ok && how != '?' && round <= text_.size(); ++round) {
      at_ = begin;
      all |= atom(all);
    }
    at_ = end;
    return all;
  }
  Places atom(Places from) {
    if (++walked_ > 50'000) return ok = false, from;  // repetitions of repetitions
    const char c = e_[at_++];
    if (c == '(') {
      if (more() && e_[at_] == '?') ok = false;
      const Places out = ok ? either(from) : from;
      if (!more() || e_[at_] != ')') return ok = false, from;
      ++at_;
      return out;
    }
    if (c == '[') return letters(from);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
    if (!plain && c != '.') return ok = false, from;
    return step(from, [&](char letter) { return c == '.' || letter == c; });
  }
  Places letters(Places from) {
    std::bitset<128> set;
    const bool inverted = more() && e_[at_] == '^';
    if (inverted) ++at_;
    std::size_t count = 0;
    for (; more() && e_[at_] != ']'; ++at_, ++count) {
      const char c = e_[at_];
      if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_')) return ok = false, from;
      set.set(static_cast<std::size_t>(c));
    }
    if (!more() || count == 0) return ok = false, from;
    ++at_;
    return step(from, [&](char letter) { return set[static_cast<std::size_t>(letter)] != inverted; });
  }
  template <class F> Places step(Places from, F&& takes) const {
    Places out;
    for (std::size_t i = 0; i < text_.size(); ++i)
      if (from[i] && takes(text_[i])) out.set(i + 1);
    return out;
  }

  std::string_view text_, e_;
  std::size_t at_ = 0, walked_ = 0;
};

bool is_plain_text(std::string_view text) {
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) return false;
  return true;
}

}  // namespace

void run_expression(Bytes bytes) {
  const std::string_view text = text_of(bytes);
  const std::size_t line = std::min(text.find('\n'), text.size());
  const std::string expression(text.substr(0, line)), name(text.substr(std::min(line + 1, text.size())));
  bool matched = false;
  const Outcome outcome = attempt([&] {
    std::size_t steps = std::size_t{1} << 18;
    const pith::detail::Pattern pattern(expression, "input");
    matched = pattern.matches(name, steps);
  });
  demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::unsupported, "an expression is refused by a reason");
  if (outcome != Outcome::done) return;

  // A group around it, and an alternative that is itself, change nothing.
  for (const std::string& same : {"(?:" + expression + ")", expression + "|" + expression}) {
    std::size_t steps = std::size_t{1} << 20;
    bool again = matched;
    attempt([&] { again = pith::detail::Pattern(same, "input").matches(name, steps); });  // may be too large now
    demand(again == matched, "a group and a repeated alternative change nothing");
  }
  if (name.size() > 32 || expression.size() > 64 || !is_plain_text(name)) return;
  PlainMatcher plain(name);
  const bool expected = plain.matches(expression);
  if (plain.ok) demand(matched == expected, "an expression matches what a plain matcher says");
}

}  // namespace pith_fuzz
