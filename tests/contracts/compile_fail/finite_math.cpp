// flags: -ffast-math
// expect: add -fno-finite-math-only behind -ffast-math or -Ofast
// errors: 1
#include <pith/pith.hpp>
