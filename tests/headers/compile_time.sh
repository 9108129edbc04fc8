#!/usr/bin/env bash
# tests/headers/compile_time.sh SOURCE_DIR: what a user's compiler takes, beside its budget: seconds of CPU and peak memory of whole
# programs at -O2, and the seconds that <pith/pith.hpp> costs over <Eigen/Core>, medians of 3. It informs; a slow machine fails nothing.
set -euo pipefail

source=$(cd "$1" && pwd)
cxx=${CXX:-g++}
flags=(-std=c++20 -O2 -I "$source/include" -I "$source/examples" $(pkg-config --cflags eigen3) "-DPITH_MODELS_DIR=\"$source/examples/models\"")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Compiles a file; prints its seconds of CPU and, where GNU time is installed, its peak memory in MB.
cost() {
  if [[ -x /usr/bin/time ]]; then
    /usr/bin/time -o "$work/cost" -f '%U %M' "$cxx" "${flags[@]}" -c "$1" -o "$work/object"
    awk '{ printf "%.1f %.0f\n", $1, $2 / 1024 }' "$work/cost"
  else
    TIMEFORMAT=%U
    { time "$cxx" "${flags[@]}" -c "$1" -o "$work/object"; } 2>"$work/cost" || { cat "$work/cost" >&2; return 1; }
    echo "$(tail -n 1 "$work/cost") ?"
  fi
}

awk '/^## A program/ { section = 1 } section && /^```cpp/ { code = 1; next } code && /^```/ { exit } code' "$source/README.md" >"$work/readme.cpp"
grep -q 'int main' "$work/readme.cpp" || { echo "README.md: no program under '## A program'" >&2; exit 1; }

program() {  # name, budget in seconds, file
  local seconds memory
  read -r seconds memory < <(cost "$3")
  printf '   %-36s %5s s (budget %s s), %s MB\n' "$1" "$seconds" "$2" "$memory"
}
with_prebuilt() {  # the program with pith/prebuilt.hpp in place of its headers
  sed -e '1i #include <pith/prebuilt.hpp>' -e '/<pith\/\(pith\|io\|text\|kv\|attention\/attend\).hpp>/d' "$1" >"$work/prebuilt.cpp"
  program '- with pith/prebuilt.hpp' "$2" "$work/prebuilt.cpp"
}
program "README.md's program" 8 "$work/readme.cpp"
with_prebuilt "$work/readme.cpp" 8
program 'pith/prebuilt.cpp, once' 60 "$source/include/pith/prebuilt.cpp"
program examples/your_own_policy.cpp 8 "$source/examples/your_own_policy.cpp"
with_prebuilt "$source/examples/your_own_policy.cpp" 8
program examples/your_own_loop.cpp 3 "$source/examples/your_own_loop.cpp"
with_prebuilt "$source/examples/your_own_loop.cpp" 3

median() {
  echo "#include <$1>" >"$work/header.cpp"
  for _ in 1 2 3; do cost "$work/header.cpp"; done | sort -n | sed -n '2s/ .*//p'
}
eigen=$(median Eigen/Core)
pith=$(median pith/pith.hpp)
awk -v e="$eigen" -v p="$pith" 'BEGIN { printf "   Eigen/Core %.1f s, pith/pith.hpp %.1f s: %.1f s more (budget 2 s)\n", e, p, p - e }'
