#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <pith/attention.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"

using pith::CapacityError;
using pith::Index;
using pith::Workspace;
using namespace pith;
using pith_test::contains;

TEST_CASE("pieces are aligned, apart, and as long as asked for") {
  Workspace ws(1024);
  float* const a = ws.take<float>(3);
  double* const b = ws.take<double>(9);
  std::uint8_t* const c = ws.take<std::uint8_t>(1);
  for (const void* piece : {static_cast<void*>(a), static_cast<void*>(b), static_cast<void*>(c)})
    CHECK(reinterpret_cast<std::uintptr_t>(piece) % Workspace::alignment == 0);
  CHECK(reinterpret_cast<std::byte*>(b) - reinterpret_cast<std::byte*>(a) == 64);
  CHECK(reinterpret_cast<std::byte*>(c) - reinterpret_cast<std::byte*>(b) == 128);
  CHECK(ws.used() == 256);
  CHECK(ws.bytes() == 1024);
  for (Index i = 0; i < 3; ++i) a[i] = 1;
  for (Index i = 0; i < 9; ++i) b[i] = 2;
  CHECK(a[2] == 1);
}

TEST_CASE("bytes_for is what take uses up, so sums of it are exactly enough") {
  static_assert(Workspace::bytes_for<float>(0) == 0 && Workspace::bytes_for<float>(1) == 64 && Workspace::bytes_for<float>(16) == 64 &&
                Workspace::bytes_for<float>(17) == 128);
  Workspace ws(Workspace::bytes_for<float>(17) + Workspace::bytes_for<double>(3 * 5));
  CHECK(ws.vector<float>(17).size() == 17);
  const auto m = ws.matrix<double>(3, 5);
  CHECK((m.rows() == 3 && m.cols() == 5));
  CHECK(ws.used() == ws.bytes());
  CHECK_THROWS_AS(ws.take<char>(1), CapacityError);
  CHECK(ws.take<char>(0) != nullptr);
}

TEST_CASE("a scope gives back what was taken since it began") {
  Workspace ws(256);
  ws.take<float>(16);
  float* first = nullptr;
  {
    const Workspace::Scope outer(ws);
    first = ws.take<float>(16);
    {
      const Workspace::Scope inner(ws);
      ws.take<float>(32);
      CHECK(ws.used() == 256);
    }
    CHECK(ws.used() == 128);
  }
  CHECK(ws.used() == 64);
  CHECK(ws.take<float>(16) == first);
}

TEST_CASE("too small a workspace says how much is needed") {
  Workspace ws(128);
  ws.take<float>(16);
  CHECK_THROWS_WITH(ws.take<float>(17),
                    "pith::Workspace: 128 bytes are too few, 192 are needed: construct it with "
                    "workspace_bytes(tokens, workers) of the object you call");
  CHECK(ws.used() == 64);  // a refusal takes nothing
  CHECK_THROWS_AS(Workspace().take<char>(1), CapacityError);
}

TEST_CASE("no size is so large that it seems small") {
  constexpr Index most = std::numeric_limits<Index>::max();
  Workspace ws(128);
  ws.take<float>(1);
  for (const Index n : {Index{-1}, most, most / 4, Index{1} << 62, std::numeric_limits<Index>::min()}) {
    INFO(n << " values");
    CHECK_THROWS_AS(ws.take<float>(n), CapacityError);
    CHECK_THROWS_AS(ws.take<double>(n), CapacityError);
    CHECK_THROWS_AS(ws.vector<float>(n), CapacityError);
  }
  CHECK_THROWS_AS(ws.matrix<float>(Index{1} << 32, Index{1} << 32), CapacityError);  // 0 to a careless product
  CHECK_THROWS_AS(ws.matrix<float>(-1, -1), CapacityError);
  CHECK(ws.used() == 64);
}

TEST_CASE("a moved-from workspace is empty") {
  Workspace ws(256);
  float* const piece = ws.take<float>(16);
  piece[0] = 3;
  Workspace moved = std::move(ws);
  CHECK(moved.bytes() == 256);
  CHECK(moved.used() == 64);
  CHECK(piece[0] == 3);
  CHECK(ws.bytes() == 0);
  CHECK_THROWS_AS(ws.take<float>(1), CapacityError);
  ws = std::move(moved);
  CHECK(ws.bytes() == 256);
  CHECK_THROWS_AS(moved.take<float>(1), CapacityError);
}

TEST_CASE("a workspace carries its executor") {
  CHECK(Workspace(64).workers() == 1);
  pith::ThreadPool pool(3);
  Workspace ws(64, pool);
  CHECK(ws.workers() == 3);
  std::vector<int> ran(3);
  ws.executor()(3, [&](Index i) { ran[static_cast<std::size_t>(i)] = 1; });
  CHECK(ran == std::vector<int>{1, 1, 1});
}

TEST_CASE("shares cover the work once, in order, as even as can be") {
  for (const Index n : {0, 1, 5, 8, 100})
    for (const Index workers : {1, 2, 3, 8}) {
      Index next = 0, least = n, most = 0;
      for (Index w = 0; w < workers; ++w) {
        const auto [begin, end] = pith::detail::share(n, w, workers);
        CHECK(begin == next);
        next = end;
        least = std::min(least, end - begin);
        most = std::max(most, end - begin);
      }
      CHECK(next == n);
      CHECK(most - least <= 1);
    }
}

TEST_CASE("sizes that no memory could hold are refused, not wrapped") {
  constexpr Index huge = std::numeric_limits<Index>::max(), half = Index(1) << 40;
  CHECK_THROWS_AS(Workspace::bytes_for<float>(huge), CapacityError);
  CHECK_THROWS_AS(Workspace::bytes_for<float>(-1), CapacityError);
  CHECK_THROWS_AS(Workspace::bytes_for<float>(3, -1), CapacityError);
  CHECK_THROWS_AS(Workspace::bytes_for<float>(half, half), CapacityError);
  CHECK_THROWS_AS(Workspace::bytes_for<float>(half, half, Index(0) - 1), CapacityError);
  CHECK(Workspace::bytes_for<float>(half, 0, 5) == 0);
  CHECK(Workspace::bytes_for<float>(3, 5, 2) == 128);  // 30 floats: 120 bytes
  CHECK_THROWS_AS(matmul_workspace_bytes<float>(1, 1, huge), CapacityError);
  CHECK_THROWS_AS(low_rank_workspace_bytes<float>(1, huge), CapacityError);
  CHECK_THROWS_AS(low_rank_workspace_bytes<float>(1, half, half), CapacityError);
  CHECK_THROWS_AS(linear_adapter_workspace_bytes<float>(1, huge), CapacityError);
  CHECK_THROWS_AS(multi_lora_workspace_bytes<float>(half, half, 1, 1, 1), CapacityError);
  CHECK_THROWS_AS(multi_lora_workspace_bytes<float>(1, 1, 1, huge, 1), CapacityError);
  CHECK_THROWS_AS(attend_workspace_bytes<float>({1, 1, 64}, huge), CapacityError);
  CHECK_THROWS_AS(attend_workspace_bytes<float>({1, 1, 64}, -1), CapacityError);
  CHECK_THROWS_AS(nearest_workspace_bytes<float>(half, half), CapacityError);
  CHECK_THROWS_AS(nearest_workspace_bytes<float>(1, 1, huge), CapacityError);
  CHECK_THROWS_AS(merge_workspace_bytes<float>(-1, 1), CapacityError);
  CHECK_THROWS_AS(merge_workspace_bytes<float>(1, huge), CapacityError);
  CHECK_THROWS_AS(top_rows_workspace_bytes(huge), CapacityError);
  CHECK_THROWS_AS(keep_image_workspace_bytes<float>(huge), CapacityError);
  CHECK_THROWS_AS(token_match_workspace_bytes<float>(huge, 1), CapacityError);
  CHECK_THROWS_AS(visionzip_workspace_bytes<float>(huge, 2), CapacityError);
  CHECK_THROWS_AS(prumerge_workspace_bytes<float>(huge, 2, 2), CapacityError);
  CHECK_THROWS_AS(diverse_workspace_bytes<float>(huge, 1), CapacityError);
  CHECK_THROWS_AS(cluster_workspace_bytes<float>(huge), CapacityError);
  const Linear<float> layer(Matrix<float>::Zero(4, 3));
  CHECK_THROWS_AS(layer.workspace_bytes(1, huge), CapacityError);
  const HoulsbyAdapter<float> block({Linear<float>(Matrix<float>::Zero(2, 3)), Linear<float>(Matrix<float>::Zero(3, 2))});
  CHECK_THROWS_AS(block.workspace_bytes(huge), CapacityError);
}
