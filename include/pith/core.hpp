#pragma once

// What every room uses: types, views, errors, memory and threads.
// Not here: bulk.hpp, fingerprint.hpp, products.hpp, simd.hpp and widen.hpp, which serve headers of other rooms; what they declare is in
// pith::detail.
#include <pith/core/check.hpp>      // error types and shape checks
#include <pith/core/executor.hpp>   // threads: Serial, ThreadPool
#include <pith/core/random.hpp>     // random numbers, the same on every platform
#include <pith/core/types.hpp>      // Index, Token, Position, Matrix; float, double, half, bfloat16
#include <pith/core/view.hpp>       // views of the caller's matrices as arguments
#include <pith/core/workspace.hpp>  // scratch memory, allocated once
