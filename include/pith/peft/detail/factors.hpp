#pragma once

#include <string_view>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The factors A and Bᵀ. Component r is row r of both, so that truncating, masking and growing move whole rows.
template <class S> struct Factors {
  Factors() = default;
  /// Shapes   a [rank, in] · b [out, rank]
  Factors(std::string_view where, ConstMatrixRef<S> a, ConstMatrixRef<S> b) {
    check_shape(where, "up", b, any_extent, a.rows());
    down = a;
    up = b.transpose();
  }
  Index size() const { return down.size() + up.size(); }

  Matrix<S> down, up;  // [rank, in], [rank, out]
};

}}}  // namespace pith::v0::detail
