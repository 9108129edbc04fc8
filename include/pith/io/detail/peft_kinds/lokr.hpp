#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>
#include <pith/peft/kronecker_change.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// LoKr: ΔW = (alpha / r) w1 ⊗ w2; each of w1 and w2 is whole or a product of two.
class LokrKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "LOKR";
  static constexpr std::array<std::string_view, 9> keys{"r",
                                                        "alpha",
                                                        "rank_pattern",
                                                        "alpha_pattern",
                                                        "use_effective_conv2d",
                                                        "decompose_both",
                                                        "decompose_factor",
                                                        "rank_dropout_scale",
                                                        "init_weights"};
  explicit LokrKind(const JsonFields& c) { c.boolean("use_effective_conv2d", false); }

  std::span<const std::string_view> endings() const override { return names; }
  void check(const KindModule& m) const override {
    for (const std::size_t whole : {w1, w2}) {
      const std::size_t a = whole + 1, b = whole + 2;
      if (m.has(whole)) {
        for (const std::size_t part : {a, b})
          if (m.has(part)) m.refuse(part, text("is half of a factor that ", names[whole], " holds as a whole"));
        m.expect(whole, {-1, -1}, "");
      } else {
        need(m, {a, b});
        m.expect(a, {-1, m.rank}, " by r and rank_pattern");
        m.expect(b, {m.rank, -1}, " by r and rank_pattern");
      }
    }
  }
  KindShape shape(const KindModule& m) const override {
    const auto product = [](Index x, Index y) { return checked_product("LoKr", x, y); };
    return {product(rows(m, w1), rows(m, w2)), product(cols(m, w1), cols(m, w2))};
  }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    LinearAdapter<S> out;
    const Matrix<S> scaled = (m.scale<S>() * factor<double>(m, w1)).template cast<S>();
    out.more.push_back(std::make_shared<const KroneckerChange<S>>(
        scaled, ConstMatrixRef<S>(factor<double>(m, w2).template cast<S>().eval()), place.first, place.out()));
    return out;
  }

 private:
  static constexpr std::size_t w1 = 0, w2 = 3;
  static constexpr std::array<std::string_view, 6> names{"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"};

  static Index rows(const KindModule& m, std::size_t whole) { return m.shape(m.has(whole) ? whole : whole + 1)[0]; }
  static Index cols(const KindModule& m, std::size_t whole) { return m.shape(m.has(whole) ? whole : whole + 2)[1]; }
  template <class T> static Matrix<T> factor(const KindModule& m, std::size_t whole) {
    return m.has(whole) ? m.load<T>(whole) : Matrix<T>(m.load<T>(whole + 1) * m.load<T>(whole + 2));
  }
};

}}}  // namespace pith::v0::detail
