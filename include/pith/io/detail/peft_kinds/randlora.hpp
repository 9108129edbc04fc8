#pragma once

#include <algorithm>
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

namespace pith { inline namespace v0 { namespace detail {

/// RandLoRA: ΔW = (alpha / r) UB UA of full rank, from random matrices A and B that all modules share and small trained ones. It becomes a
/// whole weight, since its factors are no smaller.
///
///   UA[k n_b + n, :] = λ[k, n] A[k, :m] ∘ γ[n, :]    UB = B[:M, :n_b, :] read as [M, n_b r]    m, M: the smaller and the larger side
class RandLoraKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "RANDLORA";
  static constexpr std::array<std::string_view, 7> keys{"r",      "randlora_alpha", "projection_prng_key", "save_projection",
                                                        "sparse", "very_sparse",    "init_weights"};
  explicit RandLoraKind(const JsonFields& c) : rank_(c.size("r", 32)), scale_(c.number("randlora_alpha", 640) / double(rank_)) {
    if (!c.boolean("save_projection", true))
      raise<UnsupportedError>("pith: ", in_quotes(c.file()),
                              ": save_projection is false: save the adapter again with true, since its projections cannot be drawn again");
  }

  std::span<const std::string_view> endings() const override { return names; }
  std::span<const std::string_view> shared_names() const override { return shared; }
  void check(const KindModule& m) const override {
    need(m, {0, 1});
    m.expect(0, {rank_, -1}, " by r");
    const Index blocks = m.shape(0)[1];
    m.expect(1, {blocks, -1}, " by randlora_lambda");
    if ((m.shape(1)[1] + rank_ - 1) / rank_ != blocks)
      m.refuse(1, text("is ", shape_list(m.shape(1)), ", expected ", (m.shape(1)[1] + rank_ - 1) / rank_, " rows for r ", rank_));
    for (std::size_t i = 0; i < shared.size(); ++i) {  // repeated under each module
      if (!m.has(2 + i)) continue;
      const TensorInfo* whole = m.file.find(text("base_model.", shared[i]));
      if (whole == nullptr || whole->shape != m.shape(2 + i) || whole->dtype != m.tensors[2 + i]->dtype ||
          !same_bytes(m.file.bytes(*whole), m.file.bytes(*m.tensors[2 + i])))
        m.refuse(2 + i, text("differs from 'base_model.", shared[i], "', which all modules share"));
    }
  }
  void check_shared(const Safetensors& file, const KindTensors& found) const override {
    for (std::size_t i = 0; i < shared.size(); ++i) {
      if (found[i] == nullptr) raise<FormatError>("pith: ", in_quotes(file.name()), ": holds no tensor 'base_model.", shared[i], "'");
      const std::vector<Index>& s = found[i]->shape;
      if (s.size() != 3 || (i == 0 ? s[0] != rank_ || s[1] != 1 : s[2] != rank_))
        raise<FormatError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(found[i]->name), " is ", shape_list(s), ", expected ",
                           i == 0 ? text("[", rank_, ", 1, in]") : text("[out, blocks, ", rank_, "]"), " by r");
    }
  }
  KindShape shape(const KindModule&) const override { return {}; }

  /// A [r, p] and B [q, blocks·r], as they are.
  template <class S> KindShared<S> projections(const Safetensors& file, const KindTensors& found, Index, Index) const {
    VeraProjections<S> out;
    out.a_rows.resize(rank_, found[0]->shape[2]);
    file.copy_values(*found[0], out.a_rows.data());
    out.b_rows.resize(found[1]->shape[0], found[1]->shape[1] * rank_);
    file.copy_values(*found[1], out.b_rows.data());
    return std::make_shared<const VeraProjections<S>>(std::move(out));
  }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    const Matrix<double> lambda = m.load<double>(0), gamma = m.load<double>(1);
    const Matrix<S>&a = place.shared->a_rows, &b = place.shared->b_rows;
    const Index shorter = (std::min)(place.module_out, place.in()), longer = (std::max)(place.module_out, place.in());
    const Index blocks = lambda.cols(), flat = blocks * rank_;
    if (const Index most = most_shared_rank(longer, shorter); rank_ > most)
      m.refuse(0, text("is of rank ", rank_, ", expected at most ", most, " for the decoder's ", shape_text(place.module_out, place.in())));
    if (gamma.cols() != shorter) m.refuse(1, text("is for a side of ", gamma.cols(), ", expected the decoder's ", shorter));
    if (a.cols() < shorter || b.rows() < longer || b.cols() < flat)
      m.refuse(0, text("needs shared matrices for ", shape_text(longer, shorter), ", which are smaller"));
    Matrix<double> ua(flat, shorter);
    for (Index k = 0; k < rank_; ++k)
      for (Index n = 0; n < blocks; ++n)
        ua.row(k * blocks + n) = lambda(k, n) * a.row(k).head(shorter).template cast<double>().cwiseProduct(gamma.row(n));
    const Matrix<double> delta = scale_ * times<double>(in_double<S>(b.topLeftCorner(longer, flat)), ua);  // [longer, shorter]
    Matrix<double> w = place.weight();
    if (place.in() > place.module_out)
      w += delta.middleCols(place.first, place.out()).transpose();
    else
      w += delta.middleRows(place.first, place.out());
    return place.replaced_by(w);
  }

 private:
  static constexpr std::array<std::string_view, 4> names{"randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"};
  static constexpr std::array<std::string_view, 2> shared{"randlora_A", "randlora_B"};
  static bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

  Index rank_;
  double scale_;
};

}}}  // namespace pith::v0::detail
