#pragma once

#include <bitset>
#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/text.hpp>

// Matches module paths against many names in bounded time.
namespace pith { inline namespace v0 { namespace detail {

/// Spends n steps of a matching budget.
///
/// Throws   FormatError when the budget is exhausted
inline void spend_steps(std::size_t& steps, std::size_t n, std::string_view path) {
  if (steps < n) [[unlikely]]
    raise<FormatError>("pith: the names and expressions of an adapter config take too long on ", in_quotes(path),
                       ": write simpler ones, or fewer");
  steps -= n;
}

/// A set of module names that finds those a path ends in or lies in, without a scan: one look-up for each run of path components that
/// is as long as a name.
class NameIndex {
 public:
  static constexpr std::size_t longest = 512;  ///< bytes of a module's path; longer names match none
  static constexpr std::size_t look_up = 32;   ///< cost in steps

  NameIndex() = default;
  NameIndex(std::vector<std::string> names) : names_(std::move(names)) {
    for (std::size_t i = 0; i < names_.size(); ++i)
      if (!names_[i].empty() && names_[i].size() <= longest) {
        by_name_.emplace(names_[i], i);
        lengths_.set(names_[i].size());
      }
  }

  const std::vector<std::string>& names() const { return names_; }
  bool empty() const { return names_.empty(); }
  bool contains(std::string_view path) const { return by_name_.find(path) != by_name_.end(); }

  /// Whether the last components of `path` are one of the names.
  bool ends(std::string_view path, std::size_t& steps) const {
    for (std::size_t first = 0; first <= path.size(); first = next(path, first))
      if (found(path, path.substr(first), steps) != nullptr) return true;
    return false;
  }

  /// Calls use(name) for each name that equals one or several consecutive components of path; of equal names, the first.
  template <class Use> void each_within(std::string_view path, std::size_t& steps, const Use& use) const {
    for (std::size_t first = 0; first <= path.size(); first = next(path, first))
      for (std::size_t end = next(path, first) - 1;; end = next(path, end + 1) - 1) {
        if (const std::string* name = found(path, path.substr(first, end - first), steps)) use(*name);
        if (end >= path.size()) break;
      }
  }
  bool within(std::string_view path, std::size_t& steps) const {
    bool any = false;
    each_within(path, steps, [&](const std::string&) { any = true; });
    return any;
  }

  /// Calls use(name) for each name that path ends in, also within a component.
  template <class Use> void each_ending(std::string_view path, std::size_t& steps, const Use& use) const {
    for (std::size_t first = 0; first < path.size(); ++first)
      if (const std::string* name = found(path, path.substr(first), steps)) use(*name);
  }

 private:
  /// Start of the component after the one at `first`; beyond the end after the last.
  static std::size_t next(std::string_view path, std::size_t first) {
    const std::size_t dot = path.find('.', first);
    return dot == std::string_view::npos ? path.size() + 1 : dot + 1;
  }

  const std::string* found(std::string_view path, std::string_view part, std::size_t& steps) const {
    const bool possible = part.size() <= longest && lengths_.test(part.size());
    spend_steps(steps, possible ? look_up + part.size() / 16 : 1, path);
    const auto at = possible ? by_name_.find(part) : by_name_.end();
    return at == by_name_.end() ? nullptr : &at->first;
  }

  std::vector<std::string> names_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
  std::bitset<longest + 1> lengths_;
};

}}}  // namespace pith::v0::detail
