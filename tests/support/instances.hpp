#pragma once

#include <pith/prebuilt.hpp>

// What many tests use besides, compiled once with the tests' PITH_ASSERT.
namespace pith {

extern template class Session<float, bfloat16>;
extern template class Session<float, Q8>;
extern template class Session<float, Kv<Q8, Rotated<Q4>>>;

}  // namespace pith
