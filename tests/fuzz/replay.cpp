// Runs fuzz programs on what is stored for them, with any compiler:
//
//   pith_test_fuzz NAME CORPUS...    every file, of folders every file in them
//   pith_test_fuzz --seeds FOLDER    writes the seeds, FOLDER/NAME/seed-*
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/fuzz.hpp"
#include "fuzz/seeds.hpp"

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if !defined(__has_feature)
#define PITH_FUZZ_LIMITED 1
#elif !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer)
#define PITH_FUZZ_LIMITED 1
#endif
#endif
#ifdef PITH_FUZZ_LIMITED
#include <sys/resource.h>
#endif

namespace {

namespace fs = std::filesystem;

struct Program {
  std::string_view name;
  void (*run)(pith_fuzz::Bytes);
};
constexpr Program programs[] = {
    {"safetensors", pith_fuzz::run_safetensors},
    {"config", pith_fuzz::run_config},
    {"index", pith_fuzz::run_index},
    {"adapter", pith_fuzz::run_adapter},
    {"session_file", pith_fuzz::run_session_file},
    {"expression", pith_fuzz::run_expression},
    {"policy", pith_fuzz::run_policy},
    {"cache", pith_fuzz::run_cache},
    {"session", pith_fuzz::run_session},
#ifdef PITH_HAS_TEXT
    {"tokenizer", pith_fuzz::run_tokenizer},
#endif
};

/// What asks for more memory than a test may have gets std::bad_alloc.
void limit_memory() {
#ifdef PITH_FUZZ_LIMITED
  const rlimit limit{rlim_t{2} << 30, rlim_t{2} << 30};
  pith_fuzz::demand(setrlimit(RLIMIT_AS, &limit) == 0, "memory can be limited");
#endif
}

std::vector<fs::path> inputs(const fs::path& from) {
  std::vector<fs::path> files;
  if (fs::is_directory(from)) {
    for (const auto& entry : fs::directory_iterator(from)) files.push_back(entry.path());
  } else {
    files.push_back(from);
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() == 2 && args[0] == "--seeds") {
    pith_fuzz::write_seeds(args[1]);
    return 0;
  }
  const auto* const program =
      std::find_if(std::begin(programs), std::end(programs), [&](const Program& p) { return !args.empty() && p.name == args[0]; });
  if (program == std::end(programs) || args.size() < 2) {
    std::fprintf(stderr, "usage: pith_test_fuzz NAME CORPUS..., or --seeds FOLDER\n");
    return 2;
  }
  limit_memory();
  std::size_t count = 0;
  for (std::size_t i = 1; i < args.size(); ++i)
    for (const fs::path& path : inputs(args[i])) {
      std::ifstream in(path, std::ios::binary);
      const std::string text{std::istreambuf_iterator<char>(in), {}};
      std::fprintf(stderr, "%s\n", path.filename().c_str());  // the last line names the input that ends the process
      program->run({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
      ++count;
    }
  std::fprintf(stderr, "%zu inputs of %s\n", count, args[0].c_str());
  return count > 0 ? 0 : 1;
}
