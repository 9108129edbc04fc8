#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pith_bench {

/// The first line of a system's file that begins with `key`, from its colon on; empty where there is none.
inline std::string system_line(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const std::size_t value = line.find_first_not_of(" \t:", key.size());
    return value == std::string::npos ? std::string() : line.substr(value);
  }
  return {};
}

inline std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

/// What this program was compiled for, widest first: other instruction sets are other programs.
inline std::string instruction_set() {
#if defined(EIGEN_VECTORIZE_AVX512)
  std::string isa = "AVX-512";
#ifdef __AVX512BF16__
  isa += " + BF16";
#endif
#ifdef __AVX512VNNI__
  isa += " + VNNI";
#endif
  return isa;
#elif defined(EIGEN_VECTORIZE_AVX2) && defined(EIGEN_VECTORIZE_FMA)
  return "AVX2 + FMA";
#elif defined(EIGEN_VECTORIZE_AVX2)
  return "AVX2";
#elif defined(EIGEN_VECTORIZE_AVX)
  return "AVX";
#elif defined(EIGEN_VECTORIZE_SSE4_2)
  return "SSE4.2";
#elif defined(EIGEN_VECTORIZE_SSE2)
  return "SSE2";
#elif defined(EIGEN_VECTORIZE_NEON)
  return "NEON";
#else
  return "none";
#endif
}

/// What a table of times is worth nothing without.
inline std::vector<std::pair<std::string, std::string>> machine() {
  std::string cpu = system_line("/proc/cpuinfo", "model name");
  if (cpu.empty()) cpu = "unknown";
  std::ostringstream eigen;
  eigen << EIGEN_WORLD_VERSION << '.' << EIGEN_MAJOR_VERSION << '.' << EIGEN_MINOR_VERSION;
  return {{"cpu", cpu},
          {"cores", std::to_string(std::thread::hardware_concurrency())},
          {"compiler", compiler()},
          {"flags", PITH_BENCH_FLAGS},
          {"isa", instruction_set()},
          {"eigen", eigen.str()}};
}

/// Bytes behind a line that counts in kB; 0 where the system has none.
inline std::size_t system_bytes(const char* file, const char* key) {
  return static_cast<std::size_t>(std::strtoull(system_line(file, key).c_str(), nullptr, 10)) << 10;
}
inline std::size_t available_memory() { return system_bytes("/proc/meminfo", "MemAvailable"); }
/// Of the largest cache that a core reads through; 0 where the system does not tell.
inline std::size_t last_cache_bytes() {
  std::size_t most = 0;
  for (int index = 0; index < 8; ++index) {
    const std::string file = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
    most = std::max(most, system_bytes(file.c_str(), ""));
  }
  return most;
}

/// The most memory that was resident at once since begin(), which gives back what is free and forgets earlier peaks.
struct PeakMemory {
  static void begin() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
    std::ofstream("/proc/self/clear_refs") << 5;
  }
  /// 0 where the system does not forget peaks: what it counts then is the whole process.
  static std::size_t bytes() {
    static const bool forgets = std::ofstream("/proc/self/clear_refs").is_open();
    return forgets ? system_bytes("/proc/self/status", "VmHWM") : 0;
  }
};

}  // namespace pith_bench
