#!/usr/bin/env bash
# tests/consumer/run.sh SOURCE_DIR: projects that use the library in every way it can be found, each configured, built and run.
set -euo pipefail

source=$(cd "$1" && pwd)
here=$source/tests/consumer
cxx=${CXX:-c++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(sed -n 's/^#define PITH_VERSION_[A-Z]* //p' "$source/include/pith/version.hpp" | paste -sd.)

say() { printf '   %-18s %s\n' "$1" "$2"; }
fail() { say "$1" "FAILED: $2"; exit 1; }

configure_and_run() {  # name, cmake arguments; runs every program of the project
  local name=$1 program
  shift
  cmake -S "$here/$name" -B "$work/$name" "$@" >"$work/log" 2>&1 || { cat "$work/log"; fail "$name" "does not configure"; }
  cmake --build "$work/$name" -j2 >"$work/log" 2>&1 || { cat "$work/log"; fail "$name" "does not build"; }
  if grep -n 'warning:' "$work/log"; then fail "$name" "warns"; fi
  for program in "$work/$name"/consumer*; do
    [[ -f $program && -x $program ]] || continue
    [[ $("$program") == 6 ]] || fail "$name" "does not run"
  done
  if grep -rqE -- '-W(all|extra|error)|-O[0-9]|-m[a-z]+|-f[a-z]+' "$work/$name"/CMakeFiles/consumer.dir/flags.make; then
    fail "$name" "inherits flags"
  fi
  say "$name" ok
}

# The install is moved after it was made: nothing in it may know where it was.
library_only=(-DPITH_BUILD_TESTS=OFF -DPITH_BUILD_EXAMPLES=OFF -DPITH_BUILD_BENCH=OFF)
cmake -S "$source" -B "$work/build" "${library_only[@]}" >"$work/log" 2>&1 \
  || { cat "$work/log"; fail install "does not configure"; }
cmake --install "$work/build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/elsewhere"
rm -rf "$work/build"
if grep -rlE "$work/first|$source" "$work/elsewhere"; then fail install "knows where it was made"; fi
(cd "$source/include" && find pith -name '*.hpp' | sort) >"$work/expected"
(cd "$work/elsewhere/include" && find pith -name '*.hpp' | sort) >"$work/installed"
diff "$work/expected" "$work/installed" || fail install "lacks headers"
cmp "$source/LICENSE" "$work/elsewhere/share/doc/pith/LICENSE" || fail install "lacks the licence"

# A packager names the folders.
cmake -S "$source" -B "$work/named" "${library_only[@]}" -DCMAKE_INSTALL_INCLUDEDIR=inc/one -DCMAKE_INSTALL_DATADIR=data -DCMAKE_INSTALL_DOCDIR=docs \
  >"$work/log" 2>&1 || { cat "$work/log"; fail 'named folders' "do not configure"; }
cmake --install "$work/named" --prefix "$work/placed" >/dev/null
diff "$work/expected" <(cd "$work/placed/inc/one" && find pith -name '*.hpp' | sort) || fail 'named folders' "lack headers"
cmp "$source/LICENSE" "$work/placed/docs/LICENSE" || fail 'named folders' "lack the licence"
include=$(PKG_CONFIG_PATH=$work/placed/data/pkgconfig pkg-config --variable=includedir pith)
[[ $include -ef $work/placed/inc/one ]] || fail 'named folders' "pith.pc says $include"
grep -q 'inc/one' "$work/placed/data/cmake/pith/pith-targets.cmake" || fail 'named folders' "the targets have other includes"
say 'named folders' ok

configure_and_run find_package -DCMAKE_PREFIX_PATH="$work/elsewhere" -DPITH_EXPECTED="${version%.*}" -G "Unix Makefiles"
if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then
  # shellcheck disable=SC2046
  if "$cxx" -std=c++20 -DUSES_PREBUILT -I "$work/elsewhere/include" $(pkg-config --cflags eigen3) "$here/main.cpp" \
    "$work/find_package/libpith_prebuilt_native.a" -pthread -o "$work/mixed" >"$work/log" 2>&1; then
    fail prebuilt "links sources that are compiled for other instructions"
  fi
  grep -q 'the_same_instructions' "$work/log" || { cat "$work/log"; fail prebuilt "does not say what is wrong"; }
  say 'prebuilt, mixed' 'refused by the linker'
fi
configure_and_run fetch_content -DPITH_SOURCE="$source" -G "Unix Makefiles"
configure_and_run add_subdirectory -DPITH_SOURCE="$source" -G "Unix Makefiles"
configure_and_run exported -DPITH_SOURCE="$source" -G "Unix Makefiles"
cmake --install "$work/exported" --prefix "$work/own" >/dev/null || fail exported "does not install"
configure_and_run exported/use -DCMAKE_PREFIX_PATH="$work/own" -G "Unix Makefiles"

# Without a build type there is a hint, with one there is none.
hinted() {  # project, build type
  cmake -S "$here/$1" -B "$work/hint/$1-$2" -DPITH_SOURCE="$source" -DPITH_EXPECTED="${version%.*}" -DCMAKE_PREFIX_PATH="$work/elsewhere" \
    -DCMAKE_BUILD_TYPE="$2" -DGIVEN_BUILD_TYPE="$2" >"$work/log" 2>&1 || { cat "$work/log"; fail "$1" "does not configure"; }
  grep -q 'pith: CMAKE_BUILD_TYPE is empty' "$work/log"
}
for project in add_subdirectory find_package; do
  hinted "$project" '' || fail "$project" "says nothing of a missing build type"
  if hinted "$project" Release; then fail "$project" "finds no build type where there is one"; fi
done
cmake -S "$here/own_eigen" -B "$work/own_eigen" -DPITH_SOURCE="$source" >"$work/log" 2>&1 || { cat "$work/log"; fail own_eigen "does not configure"; }
say own_eigen ok

export PKG_CONFIG_PATH=$work/elsewhere/share/pkgconfig
[[ $(pkg-config --modversion pith) == "$version" ]] || fail pkg-config "has another version"
# shellcheck disable=SC2046
"$cxx" -std=c++20 $(pkg-config --cflags pith) "$here/main.cpp" $(pkg-config --libs pith) -o "$work/pkg"
[[ $("$work/pkg") == 6 ]] || fail pkg-config "does not run"
say pkg-config ok

eigen=$(pkg-config --cflags eigen3)
# shellcheck disable=SC2086
"$cxx" -std=c++20 -I "$source/include" $eigen "$here/main.cpp" -pthread -o "$work/bare"
[[ $("$work/bare") == 6 ]] || fail bare "does not run"
say 'bare -I' ok

everything=$source/include/pith/pith.hpp
[[ -e $everything ]] || everything=$source/include/pith/core.hpp
# shellcheck disable=SC2086
"$cxx" -std=c++20 -fno-exceptions -fsyntax-only -Wall -Wextra -Werror -I "$source/include" ${eigen//-I/-isystem } -x c++ - <<<"#include <pith/${everything##*/}>"
say '-fno-exceptions' ok
