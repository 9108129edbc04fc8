#!/usr/bin/env bash
# tests/headers/compile_time.sh SOURCE_DIR: seconds of CPU that <pith/pith.hpp> costs a translation unit over <Eigen/Core>, medians of 3.
set -euo pipefail

source=$(cd "$1" && pwd)
cxx=${CXX:-g++}
TIMEFORMAT='%U'

"$cxx" -std=c++20 -fsyntax-only -I "$source/include" $(pkg-config --cflags eigen3) -x c++ - <<<'#include <pith/pith.hpp>'

median() {
  for _ in 1 2 3; do
    { time "$cxx" -std=c++20 -O2 -I "$source/include" $(pkg-config --cflags eigen3) -x c++ -c - -o /dev/null <<<"#include <$1>"; } 2>&1
  done | sort -n | sed -n 2p
}

eigen=$(median Eigen/Core)
pith=$(median pith/pith.hpp)
awk -v e="$eigen" -v p="$pith" 'BEGIN { printf "   Eigen/Core %.2f s, pith/pith.hpp %.2f s: %.2f s more (budget 2 s)\n", e, p, p - e }'
