// flags: -std=c++17
// expect: pith needs C++20: compile with -std=c++20
// errors: 2
#include <pith/pith.hpp>
