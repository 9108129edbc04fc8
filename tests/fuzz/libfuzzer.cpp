// The entry of libFuzzer: one program for each PITH_FUZZ_RUN.
#include "fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pith_fuzz::PITH_FUZZ_RUN({data, size});
  return 0;
}
