// Replays what <golden>/kv_reading holds of rotated 4-bit rows: rows, bytes and attention by two derivations of their own.
//
// A case that nobody replays fails, and so does a tensor that nobody reads.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/detail/stored_rows.hpp>

#include "golden/support/golden_file.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace {

Matrix<float> rows_of_reading(const Tensor& tensor) {
  return tensor.values.reshaped<Eigen::RowMajor>(tensor.extent(0), tensor.extent(1)).cast<float>();
}

/// Rotated rows as a cache stores them, their numbers and their bytes.
std::vector<Rotated<Q4>> check_rows(Golden& golden, const std::string& name) {
  const Matrix<float> x = rows_of_reading(golden.get(name)), theirs = rows_of_reading(golden.get(name + "_rotated"));
  const Tensor bytes = golden.get(name + "_bytes"), decoded = golden.get(name + "_decoded");
  const Index n = x.rows(), d = x.cols(), units = q4_row_bytes(d);
  REQUIRE(bytes.width() == units);
  std::vector<Rotated<Q4>> stored(static_cast<std::size_t>(n * units));
  std::vector<float> back(static_cast<std::size_t>(d));
  for (Index r = 0; r < n; ++r) {
    Vector<float> turned = x.row(r);
    detail::rotate_row(turned.data(), d, detail::rotation_block(d));
    CHECK(distance(turned, golden.get(name + "_rotated").row({r})) <= 1e-5);
    std::vector<std::byte> row(static_cast<std::size_t>(units));
    q4_encode(theirs.row(r).data(), d, row.data());  // exactly, given the same rotated numbers
    const auto expected = bytes.id_row({r});
    CHECK(std::equal(row.begin(), row.end(), expected.begin(), [](std::byte a, Token b) { return std::to_integer<Token>(a) == b; }));
    q4_decode(row.data(), d, back.data());
    for (Index i = 0; i < d; ++i) CHECK(static_cast<double>(back[std::size_t(i)]) == decoded.row({r})[std::size_t(i)]);
    std::memcpy(&stored[std::size_t(r * units)], row.data(), row.size());
  }
  return stored;
}

template <class T> Matrix<float> attended_rows(const std::vector<KvRun<T>>& runs, const Matrix<float>& q) {
  const Index d = q.cols();
  Workspace ws(attend_workspace_bytes<float>({1, 1, d}, runs[0].rows, 1, q.rows()));
  Matrix<float> out(q.rows(), d);
  attend(q, KvView<T>{{1, 1, d}, static_cast<Position>(runs[0].rows), runs}, out, ws, {}, {.first_query = 0});
  return out;
}

void rotated_rows(Golden& golden) {
  const std::vector<Rotated<Q4>> k = check_rows(golden, "k"), v = check_rows(golden, "v");
  const Matrix<float> q = rows_of_reading(golden.get("q")), keys = rows_of_reading(golden.get("k")),
                      values = rows_of_reading(golden.get("v"));
  const Index n = keys.rows(), d = keys.cols(), units = q4_row_bytes(d);
  const auto check = [&](const Matrix<float>& out, const std::string& name) {
    for (Index i = 0; i < out.rows(); ++i) CHECK(distance(out.row(i), golden.get(name).row({i})) <= 2e-5);
  };
  check(attended_rows<float>({{.keys = keys.data(), .values = values.data(), .rows = n, .stride = d}}, q), "out_exact");
  check(attended_rows<Rotated<Q4>>({{.keys = k.data(), .values = v.data(), .rows = n, .stride = units}}, q), "out");
  using Apart = Kv<float, Rotated<Q4>>;
  check(attended_rows<Apart>({{.keys = reinterpret_cast<const Apart*>(keys.data()),
                               .values = reinterpret_cast<const Apart*>(v.data()),
                               .rows = n,
                               .stride = d * Index(sizeof(float)),
                               .value_stride = units}},
                             q),
        "out_exact_k");
}

}  // namespace

TEST_CASE("golden.kv_reading: rotated rows in four bits", "[golden]") {
  int replayed_rows = 0;
  REQUIRE(fs::is_directory(golden_folder("kv_reading")));
  for (const auto& entry : fs::directory_iterator(golden_folder("kv_reading"))) {
    if (entry.path().extension() == ".md") continue;
    INFO(entry.path().string());
    Golden golden(entry.path());
    if (golden.word("case") != "rotated q4_1 rows") {
      FAIL_CHECK("nobody replays the case " << golden.word("case"));
      continue;
    }
    rotated_rows(golden);
    golden.done();
    ++replayed_rows;
  }
  CHECK(replayed_rows > 0);
}
