#pragma once

// What every room uses: types, views, errors, memory and threads.
#include <pith/core/check.hpp>      // errors, and what every entry point checks
#include <pith/core/executor.hpp>   // threads: Serial, ThreadPool
#include <pith/core/random.hpp>     // numbers from a generator, the same everywhere
#include <pith/core/types.hpp>      // Index, Token, Position, Matrix; float, double, half, bfloat16
#include <pith/core/view.hpp>       // rows of anybody's memory as arguments
#include <pith/core/workspace.hpp>  // scratch memory that is taken once
