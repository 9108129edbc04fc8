#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/text/detail/unicode.hpp>
#include <pith/text/detail/utf8.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Normalises text before it is cut into words: NFC, a prefix, replacements, in file order.
class Normalizer {
 public:
  struct Step {
    enum class Kind { nfc, prepend, replace } kind;
    std::string from = {}, to = {};  ///< prepend uses `to` only
  };

  Normalizer() = default;
  explicit Normalizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  bool changes_nothing() const { return steps_.empty(); }
  std::string operator()(std::string_view text) const {
    std::string out(text);
    for (const Step& step : steps_) {
      switch (step.kind) {
        case Step::Kind::nfc:
          out = nfc(out);
          break;
        case Step::Kind::prepend:
          if (!out.empty()) out.insert(0, step.to);
          break;
        case Step::Kind::replace:
          out = replaced(out, step.from, step.to);
          break;
      }
    }
    return out;
  }

 private:
  std::vector<Step> steps_;
};

}}}  // namespace pith::v0::detail
