#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// IA³: scales a projection's outputs, bias included, or its inputs. The shape of the vector says which.
///
///   [out, 1]: y ← l ∘ y    [1, in]: y ← (x ∘ l) Wᵀ + b
class Ia3Kind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "IA3";
  static constexpr std::array<std::string_view, 2> keys{"feedforward_modules", "init_ia3_weights"};
  explicit Ia3Kind(const JsonFields&) {}

  std::span<const std::string_view> endings() const override { return names; }
  void check(const KindModule& m) const override {
    if (m.shape(0).size() != 2 || m.tensors[0]->elements() < 1 || (m.shape(0)[0] != 1 && m.shape(0)[1] != 1))
      m.refuse(0, text("is ", shape_list(m.shape(0)), ", expected [out, 1] or [1, in]"));
  }
  KindShape shape(const KindModule& m) const override {
    return of_inputs(m) ? KindShape{.in = m.shape(0)[1]} : KindShape{.out = m.shape(0)[0]};
  }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    LinearAdapter<S> out;
    const Vector<S> scale = m.vector<S>(0);
    if (of_inputs(m))
      out.turns.push_back({.blocks = scale});
    else
      out.out_scale = scale.segment(place.first, place.out());
    return out;
  }

 private:
  static constexpr std::array<std::string_view, 1> names{"ia3_l"};
  static bool of_inputs(const KindModule& m) { return m.shape(0)[0] == 1; }
};

}}}  // namespace pith::v0::detail
