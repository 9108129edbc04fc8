#pragma once

#include <pith/core/detail/integer_lanes.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/nn/detail/bf16_pairs.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// A program whose prebuilt.cpp is compiled for other instructions than its sources does not link: kernels of both would be one symbol.
template <int width, int alignment, class Many, class Few, bool bf16> struct PrebuiltFor { static const char the_same_instructions; };
using PrebuiltForThis = PrebuiltFor<Simd<float>::width, EIGEN_MAX_ALIGN_BYTES, ManyLanes, FewLanes, has_bf16_pairs>;

}}}  // namespace pith::v0::detail
