#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

// Views of the caller's numbers, which every function of pith takes: they never copy.

namespace pith { inline namespace v0 {

namespace detail {

template <class X> X expression_of(const Eigen::DenseBase<X>&);

/// The Eigen expression that D is or derives from.
template <class D> using expression_t = decltype(expression_of(std::declval<const std::remove_cvref_t<D>&>()));
template <class D> using scalar_t = typename expression_t<D>::Scalar;

template <class D>
concept EigenDense = requires {
  typename expression_t<D>;
};

/// Rank-2 tensors, recognised by their shape, so no header of Eigen's tensors is needed.
template <class T>
concept MatrixTensor = !EigenDense<T> && requires(T & t) {
  t.data();
  t.dimension(0);
  requires std::remove_cvref_t<T>::NumDimensions == 2;
};

template <class S, class T> constexpr void bindable_tensor() {
  static_assert(std::is_same_v<std::remove_const_t<typename T::Scalar>, S>, "pith: the tensor's scalar differs; cast and evaluate first");
  static_assert(int(T::Layout) == int(Eigen::RowMajor),
                "pith takes [tokens, features] row-major: swap_layout() of the tensor, or evaluate first");
}

template <class T>
concept RowMajorTensor3 = requires(T& t) {
  t.data();
  t.dimension(0);
  requires std::remove_cvref_t<T>::NumDimensions == 3;
  requires int(std::remove_cvref_t<T>::Layout) == int(Eigen::RowMajor);
};

/// Enforces the promise of every view: no hidden copy. An argument that would need one does not compile.
template <class S, class D> constexpr void bindable() {
  using E = expression_t<D>;
  static_assert(std::is_same_v<typename E::Scalar, S>,
                "pith: the scalar differs; cast and evaluate first, pith never converts a matrix silently");
  static_assert((int(Eigen::internal::traits<E>::Flags) & int(Eigen::DirectAccessBit)) != 0,
                "pith: this is an expression without memory of its own; evaluate it into a pith::Matrix first");
  static_assert(bool(E::IsRowMajor) || bool(E::IsVectorAtCompileTime),
                "pith takes [tokens, features] row-major: pass x.transpose(), or evaluate first");
}

template <class S, class D> constexpr void writable() {
  using E = expression_t<D>;
  bindable<S, D>();
  static_assert((int(Eigen::internal::traits<E>::Flags) & int(Eigen::LvalueBit)) != 0 && !std::is_const_v<std::remove_reference_t<D>>,
                "pith writes here: pass a matrix, map or block that is not const");
  static_assert(std::is_lvalue_reference_v<D> || !std::is_base_of_v<Eigen::PlainObjectBase<E>, E>,
                "pith writes here: a temporary would be lost");
}

/// Distance between rows of the viewed matrix; one-column matrices step by their inner stride.
template <class E> Index row_stride(const E& m) {
  const bool column = bool(E::IsVectorAtCompileTime) && E::ColsAtCompileTime == 1 && E::RowsAtCompileTime != 1;
  if (!column && m.innerStride() != 1 && m.cols() > 1) [[unlikely]]
    raise<ShapeError>("pith: neighbouring features lie ", m.innerStride(), " apart; pith needs them contiguous: evaluate first");
  return column ? m.innerStride() : m.rows() > 1 ? m.outerStride() : m.cols();
}

[[noreturn, gnu::cold, gnu::noinline]] inline void raise_view(bool null, Index rows, Index cols) {
  raise<ShapeError>("pith: a view of ", shape_text((std::max)(rows, Index(-1)), (std::max)(cols, Index(-1))), " numbers",
                    null ? " at a null pointer: expected memory that holds them" : " (*: negative): expected 0 or more");
}
/// Returns `data` if it can hold that many numbers, else throws.
template <class P> P* checked_data(P* data, Index rows, Index cols) {
  if (rows < 0 || cols < 0 || (data == nullptr && rows > 0 && cols > 0)) [[unlikely]]
    raise_view(rows >= 0 && cols >= 0, rows, cols);
  return data;
}

/// A temporary matrix or vector, whose numbers die at the end of the expression.
template <class M>
concept OwningTemporary =
    !std::is_reference_v<M> && EigenDense<M> && std::is_base_of_v<Eigen::PlainObjectBase<expression_t<M>>, expression_t<M>>;

/// A column-major matrix in memory: passing it for rows would copy it.
template <class M>
concept ColumnMajor = EigenDense<M> && !bool(expression_t<M>::IsRowMajor) && !bool(expression_t<M>::IsVectorAtCompileTime) &&
                      (int(Eigen::internal::traits<expression_t<M>>::Flags) & int(Eigen::DirectAccessBit)) != 0;

template <class E> Index vector_length(const E& v) {
  static_assert(bool(E::IsVectorAtCompileTime), "pith: a vector is expected here");
  if (v.innerStride() != 1 && v.size() > 1) [[unlikely]]
    raise<ShapeError>("pith: the vector's entries lie ", v.innerStride(), " apart; pith needs them contiguous: evaluate first");
  return v.size();
}

}  // namespace detail

/// A read-only view of [tokens, features] numbers: Eigen::Ref without its hidden temporary.
///
/// Binds row-major matrices, maps, blocks (any row stride), row vectors, transposes of column-major matrices, and row-major rank-2 tensors.
/// An argument that would need a copy does not compile; the message says what to do.
///
/// Heap     none, ever
/// Throws   ShapeError if features turn out not to be contiguous (a map with a run-time inner stride), a size is negative, or the pointer
///          is null although there are numbers
template <class S> class ConstMatrixRef : public Eigen::Map<const Matrix<S>, 0, Eigen::OuterStride<>> {
  using Base = Eigen::Map<const Matrix<S>, 0, Eigen::OuterStride<>>;

 public:
  ConstMatrixRef() : ConstMatrixRef(nullptr, 0, 0) {}
  ConstMatrixRef(const S* data, Index rows, Index cols) : ConstMatrixRef(data, rows, cols, cols) {}
  ConstMatrixRef(const S* data, Index rows, Index cols, Index stride)
      : Base(detail::checked_data(data, rows, cols), rows, cols, Eigen::OuterStride<>(stride)) {}
  ConstMatrixRef(const ConstMatrixRef&) = default;
  /// Rebinds the view to the other's numbers; a read-only view writes none.
  ConstMatrixRef& operator=(const ConstMatrixRef& other) { return *std::construct_at(this, ConstMatrixRef(other)); }

  template <detail::EigenDense D>
  requires(!std::is_same_v<std::remove_cvref_t<D>, ConstMatrixRef>) ConstMatrixRef(const D& m)
      : Base((detail::bindable<S, D>(), m.derived().data()), m.rows(), m.cols(), Eigen::OuterStride<>(detail::row_stride(m.derived()))) {}

  template <detail::MatrixTensor T>
  ConstMatrixRef(const T& t) : ConstMatrixRef((detail::bindable_tensor<S, T>(), t.data()), t.dimension(0), t.dimension(1)) {}
};

/// A writable view of [tokens, features] numbers; assigning to it writes the viewed numbers.
template <class S> class MatrixRef : public Eigen::Map<Matrix<S>, 0, Eigen::OuterStride<>> {
  using Base = Eigen::Map<Matrix<S>, 0, Eigen::OuterStride<>>;

 public:
  using Base::operator=;
  MatrixRef() : MatrixRef(nullptr, 0, 0) {}
  MatrixRef(S* data, Index rows, Index cols) : MatrixRef(data, rows, cols, cols) {}
  MatrixRef(S* data, Index rows, Index cols, Index stride)
      : Base(detail::checked_data(data, rows, cols), rows, cols, Eigen::OuterStride<>(stride)) {}
  MatrixRef(const MatrixRef&) = default;
  MatrixRef& operator=(const MatrixRef& other) {
    Base::operator=(other);
    return *this;
  }

  template <detail::EigenDense D>
  requires(!std::is_same_v<std::remove_cvref_t<D>, MatrixRef>) MatrixRef(D&& m)
      : Base((detail::writable<S, D>(), const_cast<S*>(m.derived().data())), m.rows(), m.cols(),
             Eigen::OuterStride<>(detail::row_stride(m.derived()))) {}

  template <detail::MatrixTensor T>
  MatrixRef(T& t) : MatrixRef((detail::bindable_tensor<S, T>(), t.data()), t.dimension(0), t.dimension(1)) {}
};

/// A read-only view of contiguous numbers: binds vectors of either orientation, std::vector, std::array and std::span.
template <class S> class ConstVectorRef : public Eigen::Map<const Vector<S>> {
  using Base = Eigen::Map<const Vector<S>>;

 public:
  ConstVectorRef() : Base(nullptr, 0) {}
  ConstVectorRef(const S* data, Index size) : Base(detail::checked_data(data, size, 1), size) {}
  template <class R>
  requires(!detail::EigenDense<R> && std::is_convertible_v<const R&, std::span<const S>>) ConstVectorRef(const R& numbers)
      : Base(std::span<const S>(numbers).data(), static_cast<Index>(std::span<const S>(numbers).size())) {}
  ConstVectorRef(const ConstVectorRef&) = default;
  ConstVectorRef& operator=(const ConstVectorRef& other) { return *std::construct_at(this, ConstVectorRef(other)); }

  template <detail::EigenDense D>
  requires(!std::is_same_v<std::remove_cvref_t<D>, ConstVectorRef>) ConstVectorRef(const D& v)
      : Base((detail::bindable<S, D>(), v.derived().data()), detail::vector_length(v.derived())) {}
};

/// A writable view of contiguous numbers; assigning to it writes the viewed numbers.
template <class S> class VectorRef : public Eigen::Map<Vector<S>> {
  using Base = Eigen::Map<Vector<S>>;

 public:
  using Base::operator=;
  VectorRef() : Base(nullptr, 0) {}
  VectorRef(S* data, Index size) : Base(detail::checked_data(data, size, 1), size) {}
  template <class R>
  requires(!detail::EigenDense<R> && std::is_convertible_v<R, std::span<S>>) VectorRef(R&& numbers)
      : Base(std::span<S>(numbers).data(), static_cast<Index>(std::span<S>(numbers).size())) {}
  VectorRef(const VectorRef&) = default;
  VectorRef& operator=(const VectorRef& other) {
    Base::operator=(other);
    return *this;
  }

  template <detail::EigenDense D>
  requires(!std::is_same_v<std::remove_cvref_t<D>, VectorRef>) VectorRef(D&& v)
      : Base((detail::writable<S, D>(), const_cast<S*>(v.derived().data())), detail::vector_length(v.derived())) {}
};

/// A view [tokens, dim] of one head of a row-major rank-3 tensor [heads, tokens, dim].
template <detail::RowMajorTensor3 T> auto head(T& t, Index h) {
  using S = std::remove_pointer_t<decltype(t.data())>;
  if (h < 0 || h >= t.dimension(0)) [[unlikely]]
    raise<ShapeError>("pith::head: head ", h, " of a tensor with ", Index(t.dimension(0)), " heads");
  S* first = t.data() + h * t.dimension(1) * t.dimension(2);
  if constexpr (std::is_const_v<S>) {
    return ConstMatrixRef<std::remove_const_t<S>>(first, t.dimension(1), t.dimension(2));
  } else {
    return MatrixRef<S>(first, t.dimension(1), t.dimension(2));
  }
}

}}  // namespace pith::v0
