#include <cstdio>

#include <pith/core.hpp>
#ifdef USES_IO
#include <pith/io.hpp>
#endif
#ifdef USES_PREBUILT
#include <pith/prebuilt.hpp>
#endif

#if __cplusplus < 202002L
#error "C++20 was not inherited"
#endif

int main() {
#ifdef USES_PREBUILT
  try {
    pith::load_decoder("no such folder");
    return 1;
  } catch (const pith::FormatError&) {
  }
#endif
  pith::ThreadPool pool(2);
  pith::Workspace ws(1024, pool);
  auto x = ws.matrix<float>(2, 3);
  x.setOnes();
  std::printf("%g\n", static_cast<double>(pith::ConstMatrixRef<float>(x).sum()));
}
