#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// VeRA: ΔW = diag(b) B diag(d) A with matrices A and B that all modules share. They are in the file, or drawn as PEFT draws them.
class VeraKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "VERA";
  static constexpr std::array<std::string_view, 5> keys{"r", "projection_prng_key", "save_projection", "d_initial", "init_weights"};
  explicit VeraKind(const JsonFields& c) : rank_(c.size("r", 256)), key_(key_of(c)), saved_(c.boolean("save_projection", true)) {}

  std::span<const std::string_view> endings() const override { return names; }
  std::span<const std::string_view> shared_names() const override { return shared; }
  void check(const KindModule& m) const override {
    need(m, {0, 1});
    m.expect(0, {-1}, ": a number for each output");
    m.expect(1, {rank_}, " by r");
  }
  void check_shared(const Safetensors& file, const KindTensors& found) const override {
    for (std::size_t i = 0; i < shared.size(); ++i) {
      if ((found[i] != nullptr) != saved_)
        raise<FormatError>("pith: ", in_quotes(file.name()), ": ", saved_ ? "holds no" : "holds a", " tensor 'base_model.", shared[i],
                           "', though save_projection is ", saved_ ? "true" : "false");
      if (!saved_) continue;
      const std::vector<Index>& shape = found[i]->shape;
      if (shape.size() != 2 || shape[i] != rank_)
        raise<FormatError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(found[i]->name), " is ", shape_list(shape),
                           ", expected ", i == 0 ? text("[", rank_, ", in]") : text("[out, ", rank_, "]"), " by r");
    }
  }
  KindShape shape(const KindModule& m) const override { return {.out = m.shape(0)[0]}; }

  template <class S> KindShared<S> projections(const Safetensors& file, const KindTensors& found, Index most_in, Index most_out) const {
    VeraProjections<S> out;
    if (saved_) {
      out.a_rows = file.load_matrix<S>(found[0]->name);
      out.b_rows = file.load_matrix<S>(found[1]->name).transpose();
      const auto least = [&](std::size_t i, Index has, Index wanted, std::string_view of) {
        if (has < wanted)
          raise<FormatError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(found[i]->name), " is for ", has, " ", of,
                             ", expected at least the ", wanted, " of the decoder");
      };
      least(0, out.a_rows.cols(), most_in, "inputs");
      least(1, out.b_rows.cols(), most_out, "outputs");
      out.a_rows = out.a_rows.leftCols(most_in).eval();
      out.b_rows = out.b_rows.leftCols(most_out).eval();
    } else {
      if (const Index most = most_shared_rank(most_out, most_in); rank_ > most)
        raise<FormatError>("pith: ", in_quotes(file.name()), ": r is ", rank_, " and save_projection false, expected an r of at most ",
                           most, " for the decoder's ", shape_text(most_out, most_in),
                           ": save the adapter again with save_projection true");
      std::mt19937 generator(key_);
      out.a_rows = drawn<S>(rank_, most_in, most_in, generator);
      out.b_rows = drawn<S>(most_out, rank_, rank_, generator).transpose();
    }
    return std::make_shared<const VeraProjections<S>>(std::move(out));
  }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    LinearAdapter<S> out;
    out.more.push_back(std::make_shared<const VeraChange<S>>(place.shared, place.in(), m.vector<S>(1),
                                                             m.vector<S>(0).segment(place.first, place.out()).eval(), place.first));
    return out;
  }

 private:
  static constexpr std::array<std::string_view, 2> names{"vera_lambda_b", "vera_lambda_d"};
  static constexpr std::array<std::string_view, 2> shared{"vera_A", "vera_B"};

  /// Only the low 32 bits of the key count.
  static std::uint32_t key_of(const JsonFields& c) {
    return static_cast<std::uint32_t>(static_cast<std::int64_t>(std::fmod(c.number("projection_prng_key", 0), 4294967296.0)));
  }
  /// Uniform in ±√3·√2/√fan, row by row, as PEFT draws it: one output of the generator a number, one rounding.
  template <class S> static Matrix<S> drawn(Index rows, Index cols, Index fan, std::mt19937& generator) {
    const auto most = static_cast<float>(std::sqrt(3.0) * (std::sqrt(2.0) / std::sqrt(double(fan))));
    Matrix<S> out(rows, cols);
    for (Index i = 0; i < out.size(); ++i) {
      const float part = static_cast<float>(static_cast<std::uint32_t>(generator()) & 0xFFFFFFu) * 0x1p-24f;
      out.data()[i] = static_cast<S>(std::fma(part, 2 * most, -most));
    }
    return out;
  }

  Index rank_;
  std::uint32_t key_;
  bool saved_;
};

}}}  // namespace pith::v0::detail
