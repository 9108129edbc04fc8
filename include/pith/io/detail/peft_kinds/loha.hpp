#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include <pith/core/products.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>
#include <pith/peft/kronecker_change.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// LoHa: ΔW = (alpha / r) (w1_a w1_b) ∘ (w2_a w2_b), which is a LoRA of rank r²: the products of all pairs of components. Where these take
/// more memory than ΔW, it is ΔW itself.
class LohaKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "LOHA";
  static constexpr std::array<std::string_view, 6> keys{"r",           "alpha", "rank_pattern", "alpha_pattern", "use_effective_conv2d",
                                                        "init_weights"};
  explicit LohaKind(const JsonFields& c) { c.boolean("use_effective_conv2d", false); }

  std::span<const std::string_view> endings() const override { return names; }
  void check(const KindModule& m) const override {
    need(m, {0, 1, 2, 3});
    m.expect(0, {-1, m.rank}, " by r and rank_pattern");
    m.expect(1, {m.rank, -1}, " by r and rank_pattern");
    m.expect(2, {m.shape(0)[0], m.rank}, " by hada_w1_a");
    m.expect(3, {m.rank, m.shape(1)[1]}, " by hada_w1_b");
  }
  KindShape shape(const KindModule& m) const override { return {m.shape(0)[0], m.shape(1)[1]}; }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    LinearAdapter<S> out;
    const Index rank = checked_product("LoHa", m.rank, m.rank);
    if (checked_product("LoHa", rank, place.in() + place.out()) > place.in() * place.out())
      out.more.push_back(whole<S>(m, place));
    else
      out.terms.push_back(factors<S>(m, place));
    return out;
  }

 private:
  static constexpr std::array<std::string_view, 4> names{"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"};

  template <class S> static LowRankTerm<S> factors(const KindModule& m, const KindPlace<S>& place) {
    const Matrix<S> a1 = m.load<S>(0).middleRows(place.first, place.out()), b1 = m.load<S>(1),
                    a2 = m.load<S>(2).middleRows(place.first, place.out()), b2 = m.load<S>(3);
    const Index r = m.rank, rank = r * r;
    LowRankTerm<S> term{Matrix<S>(rank, place.in()), Matrix<S>(rank, place.out()), Vector<S>::Constant(rank, m.scale<S>())};
    for (Index i = 0; i < r; ++i)
      for (Index j = 0; j < r; ++j) {
        term.a_rows.row(i * r + j) = b1.row(i).cwiseProduct(b2.row(j));
        term.b_rows.row(i * r + j) = a1.col(i).cwiseProduct(a2.col(j)).transpose();
      }
    return term;
  }
  template <class S> static std::shared_ptr<const KroneckerChange<S>> whole(const KindModule& m, const KindPlace<S>& place) {
    const auto product = [&](std::size_t a, std::size_t b) {
      return times<double>(m.load<double>(a).middleRows(place.first, place.out()), m.load<double>(b));
    };
    const Matrix<S> delta = (double(m.scale<S>()) * product(0, 1).cwiseProduct(product(2, 3))).template cast<S>();
    return std::make_shared<const KroneckerChange<S>>(Matrix<S>(Matrix<S>::Ones(1, 1)), ConstMatrixRef<S>(delta));
  }
};

}}}  // namespace pith::v0::detail
