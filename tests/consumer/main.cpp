#include <cstdio>

#include <pith/core.hpp>
#ifdef USES_IO
#include <pith/io.hpp>
#endif

#if __cplusplus < 202002L
#error "C++20 was not inherited"
#endif

int main() {
  pith::ThreadPool pool(2);
  pith::Workspace ws(1024, pool);
  auto x = ws.matrix<float>(2, 3);
  x.setOnes();
  std::printf("%g\n", static_cast<double>(pith::ConstMatrixRef<float>(x).sum()));
}
