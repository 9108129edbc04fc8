// Replays what <golden>/kv2 holds of rotated 4-bit rows and of certified reading: rows, bytes and attention by two derivations of their
// own.
//
// What a file is, its metadata says as `case`; golden.kv2 replays the others. A tensor that no test reads fails.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/detail/stored_rows.hpp>
#include <pith/attention/scout.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/replay_folder.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;

namespace golden_kv_reading {
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

std::vector<double> certified_row(Golden& golden, const std::string& name, std::initializer_list<Index> at) {
  const Tensor tensor = golden.get(name);
  if (tensor.ids.empty()) return {tensor.row(at).begin(), tensor.row(at).end()};
  return {tensor.id_row(at).begin(), tensor.id_row(at).end()};
}

/// Bounds from scout codes, and attention that reads what they cannot exclude. The file's rule is the greedy one; floors of 2^(1/16) and
/// a denominator from below read a few rows more.
void certified_rows(Golden& golden) {
  const Matrix<float> k = rows_of_reading(golden.get("k")), v = rows_of_reading(golden.get("v")), q = rows_of_reading(golden.get("q"));
  const Index n = k.rows(), d = k.cols(), queries = q.rows(), bytes = scout_row_bytes(d);
  const std::vector<double> mass = certified_row(golden, "log_mass", {}), theirs = certified_row(golden, "residual_norm", {});
  const std::vector<float> masses(mass.begin(), mass.end());
  std::vector<std::byte> scouts(static_cast<std::size_t>(n * bytes));
  std::vector<float> decoded(static_cast<std::size_t>(d));
  Matrix<double> mid(queries, n), margin(1, n);
  for (Index r = 0; r < n; ++r) {
    std::byte* const row = scouts.data() + r * bytes;
    scout_encode(k.row(r).data(), d, row);
    const std::vector<double> codes = certified_row(golden, "codes", {r});
    const std::vector<double> scale = certified_row(golden, "scale", {r});
    q8_decode(row, d, decoded.data());
    for (Index i = 0; i < d; ++i)
      CHECK(static_cast<double>(decoded[std::size_t(i)]) == codes[std::size_t(i)] * scale[std::size_t(i / q8_block)]);
    half stored;
    std::memcpy(&stored, row + q8_row_bytes(d), sizeof(half));
    margin(0, r) = static_cast<double>(static_cast<float>(stored));
    CHECK(margin(0, r) >= theirs[std::size_t(r)]);
    CHECK(margin(0, r) <= 1.004 * theirs[std::size_t(r)] + 0x1p-16 * k.row(r).cast<double>().norm());  // and what sums in float lose
    for (Index t = 0; t < queries; ++t) {
      mid(t, r) = mass[std::size_t(r)];
      for (Index i = 0; i < d; ++i)
        mid(t, r) += static_cast<double>(q(t, i)) * static_cast<double>(decoded[std::size_t(i)]) / std::sqrt(static_cast<double>(d));
    }
  }
  const std::vector<KvRun<float>> runs{
      {.keys = k.data(), .values = v.data(), .rows = n, .stride = d, .log_mass = masses.data(), .scouts = scouts.data()}};
  const double largest = v.cast<double>().rowwise().norm().maxCoeff();
  for (Index t = 0; t < queries; ++t) {
    const std::vector<double> their_mid = certified_row(golden, "mid", {t}), delta = certified_row(golden, "delta", {t}),
                              logit = certified_row(golden, "logit", {t});
    const double norm = q.row(t).cast<double>().norm() / std::sqrt(static_cast<double>(d));
    for (Index r = 0; r < n; ++r) {
      CHECK(std::abs(mid(t, r) - their_mid[std::size_t(r)]) <= 1e-5);
      CHECK(std::abs(mid(t, r) - logit[std::size_t(r)]) <= norm * margin(0, r));
      CHECK(norm * margin(0, r) >= delta[std::size_t(r)] - 1e-5);
    }
  }
  const auto attended = [&](Index t, double share, AttentionReads* reads) {
    Workspace ws(attend_workspace_bytes<float>({1, 1, d}, n, 1, 1));
    Matrix<float> out(1, d);
    attend(q.row(t), KvView<float>{{1, 1, d}, static_cast<Position>(n), runs}, out, ws, {},
           {.first_query = 0, .skip_below = static_cast<float>(share), .reads = reads});
    return out;
  };
  for (Index t = 0; t < queries; ++t) {
    CHECK(distance(attended(t, 0, nullptr).row(0), certified_row(golden, "out", {t})) <= 1e-5);
    for (const std::string eps : {"0.3", "0.1", "0.01"}) {
      const std::vector<double> read = certified_row(golden, "read_" + eps, {t});
      const double greedy = std::accumulate(read.begin(), read.end(), 0.0), share = std::stod(eps);
      AttentionReads reads;
      const Matrix<float> out = attended(t, share, &reads);
      CHECK(static_cast<double>(reads.needed) >= greedy * .8 - 1);
      CHECK(static_cast<double>(reads.needed) <= greedy * 1.3 + 2);
      CHECK(distance(out.row(0), certified_row(golden, "out_" + eps, {t})) <= 4 * share * largest);
      CHECK(distance(out.row(0), certified_row(golden, "out", {t})) <= 2 * share * largest);
    }
  }
}

}  // namespace

TEST_CASE("golden.kv_reading: rotated rows in four bits, certified rows", "[golden]") {
  replay_folder("kv2", "case",
                {{"rotated q4_1 rows", rotated_rows}, {"certified rows, q8_0 codes, residual norm rounded up to half", certified_rows}},
                true);
}

}  // namespace golden_kv_reading
