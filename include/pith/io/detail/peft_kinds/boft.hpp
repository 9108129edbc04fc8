#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/cayley.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// BOFT: y = (x M Wᵀ) ∘ s + b with M = B_{N-1} … B_0, each B block-diagonal between two permutations (butterflies).
class BoftKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "BOFT";
  static constexpr std::array<std::string_view, 4> keys{"boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "init_weights"};
  explicit BoftKind(const JsonFields& c)
      : size_(c.size("boft_block_size", 4, 0)), blocks_(c.size("boft_block_num", 0, 0)), factors_(c.size("boft_n_butterfly_factor", 1)) {
    if ((size_ == 0) == (blocks_ == 0)) c.refuse("boft_block_size", "0 where boft_block_num is not, and the other way round");
  }

  std::span<const std::string_view> endings() const override { return names; }
  void check(const KindModule& m) const override {
    need(m, {0, 1});
    const auto any = [](Index n) { return n > 0 ? n : Index(-1); };
    m.expect(0, {factors_, any(blocks_), any(size_), any(size_)}, " by the block size, their number and boft_n_butterfly_factor");
    if (m.shape(0)[2] != m.shape(0)[3]) m.refuse(0, text("is ", shape_list(m.shape(0)), ", expected square blocks"));
    const Index b = m.shape(0)[2];
    if (factors_ > 1 && (b % 2 != 0 || factors_ > 30 || (m.shape(0)[1] * 2) % (Index(1) << factors_) != 0))
      m.refuse(0, text("is ", shape_list(m.shape(0)), ", whose blocks do not make ", factors_, " butterflies"));
    m.expect(1, {-1, 1}, ": a scale for each output");
  }
  KindShape shape(const KindModule& m) const override { return {m.shape(1)[0], checked_product("BOFT", m.shape(0)[1], m.shape(0)[2])}; }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    const Matrix<double> all = m.load<double>(0);  // [factors, blocks·b·b]
    const Index b = m.shape(0)[2];
    LinearAdapter<S> out;
    for (Index f = factors_ - 1; f >= 0; --f) {
      BlockTurn<S> turn{.blocks = Matrix<S>(place.in(), b), .place = factors_ > 1 ? places(f, b, place.in()) : std::vector<Index>()};
      for (Index i = 0; i < m.shape(0)[1]; ++i) {
        const Eigen::Map<const Matrix<double>> r(all.data() + (f * m.shape(0)[1] + i) * b * b, b, b);
        turn.blocks.middleRows(i * b, b) = cayley<double>(0.5 * (r - r.transpose())).template cast<S>();
      }
      out.turns.push_back(std::move(turn));
    }
    out.out_scale = m.vector<S>(1).segment(place.first, place.out());
    if (const ConstVectorRef<S> bias = place.base.bias(); bias.size() > 0) out.bias = bias - out.out_scale.cwiseProduct(bias);
    return out;
  }

 private:
  static constexpr std::array<std::string_view, 2> names{"boft_R", "boft_s"};

  /// Half-blocks of b / 2 numbers, in groups of 2^(f + 1): of each group first the even ones, then the odd ones.
  static std::vector<Index> places(Index factor, Index b, Index in) {
    const Index half = b / 2, group = Index(1) << (factor + 1);
    std::vector<Index> out(static_cast<std::size_t>(in));
    for (Index i = 0; i < in; ++i) {
      const Index block = i / half, k = block % group, from = k < group / 2 ? 2 * k : 2 * (k - group / 2) + 1;
      out[static_cast<std::size_t>(i)] = (block - k + from) * half + i % half;
    }
    return out;
  }

  Index size_, blocks_, factors_;
};

}}}  // namespace pith::v0::detail
