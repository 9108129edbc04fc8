#pragma once

#include "../../examples/support/instances.hpp"

// What many tests use besides, compiled once with the tests' PITH_ASSERT.
namespace pith {

extern template class Session<float, bfloat16>;
extern template class Session<float, Q8>;

}  // namespace pith
