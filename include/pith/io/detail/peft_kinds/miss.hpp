#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// MiSS: init_weights names one of three formulas.
///
///   default, mini:  ΔW[o, i] = D[i mod r, o], a LoRA of rank r whose A pools inputs; mini repeats few columns of D
///   bat:            block (a, j) of W, r wide: W D_a + D_a, as a whole weight
class MissKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "MISS";
  static constexpr std::array<std::string_view, 3> keys{"r", "mini_r", "init_weights"};
  explicit MissKind(const JsonFields& c) : rank_(c.size("r", 64)), mini_(c.size("mini_r", 1)) {
    const auto* form = c.find("init_weights");
    if (form == nullptr || form->is_boolean()) return;
    const std::string name = c.string("init_weights");
    if (name != "mini" && name != "bat") c.refuse("init_weights", "true, false, \"mini\" or \"bat\"");
    form_ = name == "mini" ? Form::mini : Form::bat;
  }

  std::span<const std::string_view> endings() const override { return names; }
  void check(const KindModule& m) const override {
    if (form_ == Form::whole) m.expect(0, {rank_, -1}, " by r");
    if (form_ == Form::mini) m.expect(0, {rank_, mini_}, " by r and mini_r");
    if (form_ == Form::bat) m.expect(0, {-1, rank_, rank_}, " by r, where init_weights is \"bat\"");
  }
  KindShape shape(const KindModule& m) const override {
    if (form_ == Form::mini) return {};
    return {.out = form_ == Form::whole ? m.shape(0)[1] : checked_product("MiSS", m.shape(0)[0], rank_)};
  }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    if (form_ == Form::bat) return whole_weight<S>(m, place);
    if (form_ == Form::mini && place.module_out % mini_ != 0)
      m.refuse(0, text("has ", mini_, " columns, which do not divide the decoder's ", place.module_out, " outputs"));
    const Matrix<S> d = m.load<S>(0);
    const Index read = (std::min)(rank_, place.in());  // no input falls to the rows of D after these
    LowRankTerm<S> term{Matrix<S>::Zero(read, place.in()), Matrix<S>(read, place.out()), Vector<S>::Ones(read)};
    for (Index i = 0; i < place.in(); ++i) term.a_rows(i % read, i) = S(1);
    for (Index o = 0; o < place.out(); ++o) term.b_rows.col(o) = d.col((place.first + o) % d.cols()).head(read);
    LinearAdapter<S> out;
    out.terms.push_back(std::move(term));
    return out;
  }

 private:
  enum class Form : std::uint8_t { whole, mini, bat };
  static constexpr std::array<std::string_view, 1> names{"miss_block"};

  template <class S> LinearAdapter<S> whole_weight(const KindModule& m, const KindPlace<S>& place) const {
    if (place.in() % rank_ != 0 || place.first % rank_ != 0 || place.out() % rank_ != 0)
      m.refuse(0, text("has blocks of ", rank_, ", which do not fill the decoder's ", shape_text(place.out(), place.in())));
    const Matrix<double> all = m.load<double>(0);
    Matrix<double> w = place.weight();
    for (Index a = 0; a < place.out() / rank_; ++a) {
      const Eigen::Map<const Matrix<double>> d(all.data() + (place.first / rank_ + a) * rank_ * rank_, rank_, rank_);
      for (Index j = 0; j < place.in() / rank_; ++j) {
        auto block = w.block(a * rank_, j * rank_, rank_, rank_);
        block += (block * d).eval() + d;
      }
    }
    return place.replaced_by(w);
  }

  Index rank_, mini_;
  Form form_ = Form::whole;
};

}}}  // namespace pith::v0::detail
