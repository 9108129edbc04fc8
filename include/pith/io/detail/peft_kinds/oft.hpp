#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <pith/core/products.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/cayley.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// OFT: x' = x diag(R₁ … R_D), each R a function of a skew matrix Q: the first terms of a series, or the exact Cayley transform.
///
///   N terms: R = I + 2Q + … + 2Q^(N-2) + Q^(N-1) from 4 on (3 counts as 4), I + 2Q for 2, I for 1    exact: R = (I + Q)⁻¹ (I - Q)
class OftKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "OFT";
  static constexpr std::array<std::string_view, 8> keys{
      "r", "oft_block_size", "coft", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms", "init_weights"};
  explicit OftKind(const JsonFields& c)
      : blocks_(c.size("r", 0, 0)),
        shared_(c.boolean("block_share", false)),
        terms_(c.boolean("use_cayley_neumann", true) ? c.size("num_cayley_neumann_terms", 5, 1, most_terms) : 0) {
    const auto refuse = [&](std::string_view what) { raise<UnsupportedError>("pith: ", in_quotes(c.file()), ": ", what); };
    if (c.boolean("coft", false)) refuse("key 'coft' is true: the constrained form projects its weights again on every call");
    if (c.find("oft_block_size") == nullptr)
      refuse("no key 'oft_block_size': PEFT before 0.14 had another parametrisation; train or convert it again");
    if ((blocks_ == 0) == (c.size("oft_block_size", 0, 0) == 0)) c.refuse("oft_block_size", "0 where r is not, and the other way round");
    if (terms_ > 0 && !version_from(c.string("peft_version", ""), 18))
      refuse("use_cayley_neumann of PEFT before 0.18 (peft_version) has another parametrisation: save the adapter again with a newer one");
  }

  std::span<const std::string_view> endings() const override { return names; }
  void check(const KindModule& m) const override {
    m.expect(0, {shared_ ? Index(1) : Index(-1), -1}, shared_ ? " by block_share" : "");
    const Index b = size(m);
    if (b * (b - 1) / 2 != m.shape(0)[1]) m.refuse(0, text("has ", m.shape(0)[1], " columns, expected b (b - 1) / 2 for a block size b"));
    if (!shared_ && blocks_ > 0 && m.shape(0)[0] != blocks_)
      m.refuse(0, text("has ", m.shape(0)[0], " blocks, expected ", blocks_, " by r"));
  }
  KindShape shape(const KindModule& m) const override {
    return {.in = shared_ ? any_extent : checked_product("OFT", m.shape(0)[0], size(m))};
  }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    const Index b = size(m), count = place.in() / b;
    if (count * b != place.in() || (shared_ && blocks_ > 0 && count != blocks_))
      m.refuse(0, text("has blocks of ", b, ", which do not fill the decoder's ", place.in(), " inputs"));
    const Matrix<double> packed = m.load<double>(0);
    BlockTurn<S> turn{.blocks = Matrix<S>(place.in(), b)};
    for (Index i = 0; i < (shared_ ? 1 : count); ++i) turn.blocks.middleRows(i * b, b) = rotation<double>(packed, i, b).template cast<S>();
    for (Index i = 1; i < count && shared_; ++i) turn.blocks.middleRows(i * b, b) = turn.blocks.topRows(b);
    LinearAdapter<S> out;
    out.turns.push_back(std::move(turn));
    return out;
  }

 private:
  static constexpr std::array<std::string_view, 1> names{"oft_R.weight"};
  static constexpr Index most_terms = 32;  ///< each costs a product of the blocks; PEFT takes 5

  static Index size(const KindModule& m) { return static_cast<Index>(std::lround((1 + std::sqrt(1 + 8 * double(m.shape(0)[1]))) / 2)); }
  /// Whether a version is 0.minor or later.
  static bool version_from(const std::string& version, int minor) {
    int parts[2] = {0, 0};
    const char *at = version.data(), *end = at + version.size();
    for (int& part : parts) {
      const auto read = std::from_chars(at, end, part);
      if (read.ptr == at) return false;
      at = read.ptr == end ? end : read.ptr + 1;
    }
    return parts[0] > 0 || parts[1] >= minor;
  }
  template <class T> Matrix<T> rotation(const Matrix<T>& packed, Index block, Index b) const {
    Matrix<T> q = Matrix<T>::Zero(b, b);
    for (Index i = 0, k = 0; i < b; ++i)
      for (Index j = i + 1; j < b; ++j, ++k) q(i, j) = packed(block, k), q(j, i) = -packed(block, k);
    if (terms_ == 0) return cayley(q);
    Matrix<T> sum = Matrix<T>::Identity(b, b), power = sum;
    const Index last = terms_ == 3 ? 3 : terms_ - 1;
    for (Index n = 1; n <= last; ++n) {
      power = times<T>(power, q);
      sum += T(n == last && last > 1 ? 1 : 2) * power;
    }
    return sum;
  }

  Index blocks_;
  bool shared_;
  Index terms_;  ///< 0: the exact transform
};

}}}  // namespace pith::v0::detail
