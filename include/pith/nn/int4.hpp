#pragma once
// Linear layers with weights of four bits and a scale for each group of inputs.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/bulk.hpp>
#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/int4_columns.hpp>
#include <pith/nn/detail/int4_kernel.hpp>
#include <pith/nn/detail/int4_panels.hpp>
#include <pith/nn/detail/int4_rounding.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 {

/// The groups of a matrix of codes from a file.
struct Int4Groups {
  Index size = 0;                        ///< inputs that share a scale; 0 or less: all
  bool zeros = false;                    ///< whether there are zeros; otherwise every zero is 8
  std::vector<std::int32_t> order = {};  ///< the input at each place of the groups (act-order); empty: as they come
};

/// Some rows of codes from a file: w[o, k] = scale[o, g] · (code[o, k] - zero[o, g]), g being the group of input k.
///
/// Shapes   codes [n, in], each 0 … 15, by input · scales, zeros [n, groups], half or bfloat16, and 0 … 16
template <class T> struct Int4Rows {
  ConstMatrixRef<std::uint8_t> codes;
  ConstMatrixRef<T> scales;
  ConstMatrixRef<std::uint8_t> zeros = {};  ///< empty without Int4Groups::zeros
};

/// A weight matrix in four bits: w[o, k] = scale[o, g] · (code[o, k] - zero[o, g]) for groups g of inputs, rounded here or read from a
/// file.
///
/// It takes an eighth of the memory of float and a scale of 16 bits for each group: 4.5 bits a weight in groups of 32. Immutable, and
/// shared by copies.
///
/// Rounding: the codes -8 … 7 and the half scale, of either sign, that are nearest to a group by the sum of squares, of 19 candidates; no
/// zeros. A group that holds NaN or infinity, or numbers too large for a half scale, decodes to NaN.
///
/// Shapes   weight [out, in], float, bfloat16 or half
/// Heap     once, at construction, plus a panel of rows while it is constructed
/// Throws   CapacityError if the panels could not be addressed, ShapeError for a group that holds() refuses
/// Law      of a file's codes and scales copy_rows() returns every weight exactly
class Int4Weight {
 public:
  using Scalar = float;
  static constexpr Index default_group = 32;

  Int4Weight() = default;
  template <class T>
  explicit Int4Weight(ConstMatrixRef<T> weight, Index group = default_group)
      : Int4Weight(
            weight.rows(), weight.cols(), [&](Index first, Index n) { return weight.middleRows(first, n); }, group) {}
  template <detail::EigenDense W>
  explicit Int4Weight(const W& weight, Index group = default_group) : Int4Weight(ConstMatrixRef<detail::scalar_t<W>>(weight), group) {}

  /// Rounds rows from a callback, as PackedWeight takes them: rows_at(first, n) returns n rows of float, bfloat16 or half.
  template <class RowsAt> Int4Weight(Index out, Index in, const RowsAt& rows_at, Index group = default_group, ExecutorRef executor = {});

  /// Takes codes from a file by a callback: rows_at(first, n) returns Int4Rows<T> of n rows, or a struct that owns such rows. It
  /// is asked for each row once, at most 32 at a time, as PackedWeight asks.
  ///
  /// Throws   ShapeError if rows, codes, zeros or the order are not what they have to be
  template <class RowsAt> Int4Weight(Index out, Index in, const Int4Groups& groups, const RowsAt& rows_at, ExecutorRef executor = {});

  /// Whether groups of this many inputs can be held (0 or less: one for all): a multiple of 8 up to 128, or what such a number divides.
  static bool holds(Index in, Index group) { return detail::stored_group(in, group) != 0; }

  Index in() const { return shape_.in; }
  Index out() const { return shape_.out; }
  /// Inputs that share a stored scale; at most 128.
  Index group() const { return shape_.group; }
  std::size_t bytes() const { return static_cast<std::size_t>(shape_.bytes()) + order_.size() * sizeof(std::int32_t); }

  /// Writes the decoded rows first_row ….
  ///
  /// Shapes   rows [any, in]
  /// Throws   ShapeError if there are no such rows
  void copy_rows(Index first_row, MatrixRef<float> rows) const;

  const detail::Int4Shape& shape() const { return shape_; }
  detail::Int4Record record(Index panel, Index g) const {
    return {shape_, data_.get() + (panel * shape_.groups() + g) * shape_.record_bytes()};
  }
  const std::byte* records() const { return data_.get(); }
  detail::Int4Product<detail::FewLanes, detail::ManyLanes> product() const {
    return {{shape_, records(), order_.empty() ? nullptr : order_.data()}};
  }
  /// The input at each place of the groups; empty: as they come.
  const std::vector<std::int32_t>& order() const { return order_; }

 private:
  /// Allocates records and fills them, panel by panel: fill(first_row, rows, records), made once for each worker by fill_of().
  template <class FillOf> void build(ExecutorRef executor, const FillOf& fill_of) {
    const std::shared_ptr<std::byte[]> memory(detail::allocate_bulk(static_cast<std::size_t>(shape_.bytes())));
    std::byte* const records = memory.get();
    detail::for_panels(shape_.panels(), executor, [&] {
      return [&, fill = fill_of()](Index p) mutable {
        const Index first = p * detail::panel_width;
        fill(first, (std::min)(detail::panel_width, shape_.out - first), records + p * shape_.groups() * shape_.record_bytes());
      };
    });
    data_ = std::shared_ptr<const std::byte>(memory, records);
  }

  detail::Int4Shape shape_;
  std::shared_ptr<const std::byte> data_;
  std::vector<std::int32_t> order_;
};

template <class RowsAt> Int4Weight::Int4Weight(Index out, Index in, const RowsAt& rows_at, Index group, ExecutorRef executor) {
  using Stored = std::remove_cvref_t<decltype(*rows_at(0, 0).data())>;
  static_assert(std::is_same_v<arithmetic_t<Stored>, float>, "pith: int4 weights are computed in float: pass float, bfloat16 or half");
  constexpr Index width = detail::panel_width;
  if (group < 8 || group > detail::largest_group || group % 8 != 0) [[unlikely]]
    raise<ShapeError>("pith::Int4Weight: groups of ", group, " inputs, expected a multiple of 8 up to ", detail::largest_group);
  shape_ = {.in = in, .out = out, .group = group};
  const auto fill = [&, square = std::vector<float>(static_cast<std::size_t>(group * width)), to = detail::Int4Group()](
                        Index first, Index n, std::byte* record) mutable {
    const auto& rows = rows_at(first, n);
    for (Index g = 0; g < shape_.groups(); ++g, record += shape_.record_bytes()) {
      std::fill(square.begin(), square.end(), 0.f);
      for (Index o = 0; o < n; ++o) {
        const Stored* w = rows.data() + o * rows.outerStride();
        for (Index k = g * group; k < (std::min)(in, (g + 1) * group); ++k)
          square[static_cast<std::size_t>((k - g * group) * width + o)] = detail::widen(w[k]);
      }
      half scales[std::size_t(width)];
      detail::round_to_int4(square.data(), group, to.codes.data(), scales);
      std::copy_n(scales, width, reinterpret_cast<half*>(to.scales.data()));
      to.write(shape_, record);
    }
  };
  build(executor, [&] { return fill; });
}

template <class RowsAt>
Int4Weight::Int4Weight(Index out, Index in, const Int4Groups& groups, const RowsAt& rows_at, ExecutorRef executor) : order_(groups.order) {
  using T = typename std::remove_cvref_t<decltype(rows_at(0, 0).scales)>::Scalar;
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16>, "pith: scales of four-bit weights are half or bfloat16");
  const Index stored = detail::stored_group(in, groups.size), size = groups.size <= 0 ? (std::max)(in, Index(1)) : groups.size;
  if (stored == 0) [[unlikely]]
    raise<ShapeError>("pith::Int4Weight: groups of ", groups.size, " inputs, expected a multiple of 8 up to ", detail::largest_group,
                      ", or of such a number");
  detail::check_order(order_, in);
  const Index count = (in + size - 1) / size;
  shape_ = {.in = in, .out = out, .group = stored, .zeros = groups.zeros, .half_scales = std::is_same_v<T, half>};
  const auto fill = [&](Index first, Index n, std::byte* record) {
    const auto& rows = rows_at(first, n);
    check_shape("Int4Weight", "codes", rows.codes, n, in);
    check_shape("Int4Weight", "scales", rows.scales, n, count);
    check_shape("Int4Weight", "zeros", rows.zeros, groups.zeros ? n : 0, groups.zeros ? count : 0);
    for (Index g = 0; g < shape_.groups(); ++g, record += shape_.record_bytes()) {
      const Index begin = g * stored, end = (std::min)(in, begin + stored), from = begin / size;
      detail::Int4Scales to;
      std::byte* const words = record + shape_.codes_at();
      if (n < detail::panel_width) std::fill_n(words, shape_.record_bytes() - shape_.codes_at(), std::byte{0});
      for (Index o = 0; o < n; ++o) {
        const auto at = static_cast<std::size_t>(o);
        to.scales[at] = detail::bits_as<std::uint16_t>(T(rows.scales(o, from)));
        if (groups.zeros) to.zeros[at] = rows.zeros(o, from);
        std::uint8_t codes[std::size_t(detail::largest_group)] = {}, most = 0;
        const std::uint8_t* row = rows.codes.data() + o * rows.codes.outerStride();
        for (Index k = begin; k < end; ++k) codes[k - begin] = row[order_.empty() ? k : order_[static_cast<std::size_t>(k)]];
        for (const std::uint8_t code : codes) most |= code;
        if (most > 15 || to.zeros[at] > 16) [[unlikely]]
          raise<ShapeError>("pith::Int4Weight: row ", first + o, " holds a code or zero of more than four bits, expected 0 to 15");
        for (Index b = 0; b < stored; b += 8) {
          const std::uint32_t word = detail::int4_word(codes + b);
          std::memcpy(words + (b / 8 * detail::panel_width + o) * Index(sizeof(word)), &word, sizeof(word));
        }
      }
      to.write(shape_, record);
    }
  };
  build(executor, [&] { return fill; });
}

inline void Int4Weight::copy_rows(Index first_row, MatrixRef<float> rows) const {
  check_shape("Int4Weight::copy_rows", "rows", rows, any_extent, in());
  if (first_row < 0 || first_row > out() - rows.rows()) [[unlikely]]
    raise<ShapeError>("pith::Int4Weight::copy_rows: ", rows.rows(), " rows from row ", first_row, " on of a weight with ", out(),
                      " rows: ask for rows within it");
  for (Index r = 0; r < rows.rows(); ++r) {
    const Index row = first_row + r, panel = row / detail::panel_width, o = row % detail::panel_width;
    for (Index g = 0; g < shape_.groups(); ++g) {
      const detail::Int4Record from = record(panel, g);
      const float scale = from.scale(o), zero = from.zero(o);
      for (Index k = g * group(); k < (std::min)(in(), (g + 1) * group()); ++k)
        rows(r, order_.empty() ? k : order_[static_cast<std::size_t>(k)]) =
            (static_cast<float>(from.code(o, k - g * group())) - zero) * scale;
    }
  }
}

/// y = x Wᵀ + bias for 4-bit weights. In each group of inputs x is rounded to integers of 15 bits: step · q with step = max |x| / 16319,
/// an error of 4e-5 of the product, a quarter of what rounding x to half costs.
///
///     y[t, o] = Σ_g scale[o, g] · step[t, g] · (Σ_k q[t, k] code[o, k] - zero[o, g] Σ_k q[t, k]) + bias[o]
///
/// Shapes   x [tokens, in] · w [out, in] · bias [out] or empty · y [tokens, out]; y overlaps none of the others
/// Cost     2·tokens·in·out integer operations; one token takes the time of reading the codes and scales
/// Heap     none, given ws of matmul_workspace_bytes(w, tokens, workers)
/// Throws   ShapeError if the shapes disagree, CapacityError if ws is too small
/// Law      sums over a group are exact, groups are added in ascending order, a multiply-add each: the bits depend on the token's own row
///          and on w only, not on the other tokens, the workers, the strides or the instruction set. A group of x that holds NaN or
///          infinity makes the token's outputs NaN
inline void matmul(ConstMatrixRef<float> x, const Int4Weight& w, ConstVectorRef<float> bias, MatrixRef<float> y, Workspace& ws) {
  detail::check_product("matmul", x, w.in(), w.out(), bias.size(), y);
  w.product().run(x, bias, y, ws);
}

/// Bytes of workspace that a product with 4-bit weights needs at most, either way; monotone in tokens.
inline std::size_t matmul_workspace_bytes(const Int4Weight& w, Index tokens, Index workers = 1) {
  return (std::max)(w.product().workspace_bytes(tokens, workers),
                    detail::int4_transposed_workspace_bytes(w.shape(), !w.order().empty(), tokens, workers));
}

/// y = x W for 4-bit weights, as the backward pass of a layer needs it; x is not rounded.
///
/// Shapes   x [tokens, out] · w [out, in] · y [tokens, in]
/// Heap     none, given ws of matmul_workspace_bytes(w, tokens, workers)
/// Throws   ShapeError if the shapes disagree, CapacityError if ws is too small
/// Law      the bits of matmul_transposed() over the rows that copy_rows() writes
inline void matmul_transposed(ConstMatrixRef<float> x, const Int4Weight& w, MatrixRef<float> y, Workspace& ws) {
  detail::check_product("matmul_transposed", x, w.out(), w.in(), 0, y);
  detail::int4_transposed(x, w.shape(), w.records(), w.order().empty() ? nullptr : w.order().data(), y, ws);
}

/// y = x Wᵀ + bias for 4-bit weights: the form for decoding from the least memory. Copies share the codes.
///
/// Shapes   weight [out, in] · bias [out] or empty · x [tokens, in] · y [tokens, out]
/// Cost     as matmul()
/// Heap     at construction only
/// Throws   ShapeError if the shapes disagree
/// Law      forward() is within the rounding of x of a Linear over the rows that copy_weight() writes, backward() is that Linear's
class Int4Linear {
 public:
  using Scalar = float;

  Int4Linear() = default;
  explicit Int4Linear(Int4Weight weight, Vector<float> bias = {}) : weight_(std::move(weight)), bias_(std::move(bias)) {
    detail::check_bias("Int4Linear", weight_.out(), bias_.size());
  }
  template <class T>
  explicit Int4Linear(ConstMatrixRef<T> weight, ConstVectorRef<float> bias = {})
      : Int4Linear((detail::check_bias("Int4Linear", weight.rows(), bias.size()), Int4Weight(weight)), Vector<float>(bias)) {}

  template <detail::EigenDense W>
  explicit Int4Linear(const W& weight, ConstVectorRef<float> bias = {}) : Int4Linear(ConstMatrixRef<detail::scalar_t<W>>(weight), bias) {}

  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Workspace& ws) const { matmul(x, weight_, bias(), y, ws); }
  Matrix<float> forward(ConstMatrixRef<float> x) const { return detail::forward_alone(*this, x); }

  /// dx = dy W: the gradient of the input. Shapes: dy [tokens, out] · dx [tokens, in]
  void backward(ConstMatrixRef<float> dy, MatrixRef<float> dx, Workspace& ws) const { matmul_transposed(dy, weight_, dx, ws); }

  Index in() const { return weight_.in(); }
  Index out() const { return weight_.out(); }
  std::size_t bytes() const { return weight_.bytes() + static_cast<std::size_t>(bias_.size()) * sizeof(float); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const { return matmul_workspace_bytes(weight_, tokens, workers); }

  const Int4Weight& weight() const { return weight_; }
  ConstVectorRef<float> bias() const { return bias_; }
  void copy_weight(Index first_row, MatrixRef<float> rows) const { weight_.copy_rows(first_row, rows); }

 private:
  Int4Weight weight_;
  Vector<float> bias_;
};

}}  // namespace pith::v0
