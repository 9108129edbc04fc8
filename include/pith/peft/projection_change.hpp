#pragma once
// A change of a projection beyond low-rank terms, as an interface: Kronecker products, shared projections, replaced rows.

#include <cstddef>
#include <span>

#include <pith/core/fingerprint.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>

namespace pith { inline namespace v0 {

/// A change of y = x Wᵀ + b that no low-rank term expresses well. Immutable; LinearAdapter::more shares it.
///
/// Heap     none in add(), given ws of workspace_bytes(tokens, workers)
/// Law      a row's result depends on that row alone, bit for bit
template <class S> class ProjectionChange {
 public:
  virtual ~ProjectionChange() = default;

  /// Shapes   x [tokens, in] · y [tokens, out], changed in place
  virtual void add(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const = 0;
  /// Changes rows first_row … of W in the same way. Shapes: rows [any, in]
  virtual void change_weight(Index first_row, MatrixRef<double> rows) const = 0;

  virtual Index in() const = 0;
  virtual Index out() const = 0;
  virtual std::size_t workspace_bytes(Index tokens, Index workers) const = 0;
  virtual std::size_t bytes() const = 0;
  /// Adds all its numbers to a hash.
  virtual void hash(detail::Fingerprint& f) const = 0;
};

namespace detail {

/// Adds a matrix or vector to a hash.
template <class M> void hash_numbers(Fingerprint& f, const M& m) {
  f.number(m.rows());
  f.number(m.cols());
  f.bytes(std::as_bytes(std::span(m.data(), static_cast<std::size_t>(m.size()))));
}

/// The hash of a matrix whose numbers are widened to S.
template <class S, class T> void hash_widened(Fingerprint& f, const Matrix<T>& m) {
  f.number(m.rows());
  f.number(m.cols());
  for (Index i = 0; i < m.size(); ++i) {
    const S wide = S(widen(m.data()[i]));
    f.bytes(std::as_bytes(std::span(&wide, 1)));
  }
}

}  // namespace detail

}}  // namespace pith::v0
