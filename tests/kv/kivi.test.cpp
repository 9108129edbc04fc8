#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/kv.hpp>
#include <pith/kv/kivi.hpp>

#include "support/attention_rows.hpp"
#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/near.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::KvStream;
using pith_test::near;
using pith_test::random_matrix;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinite = std::numeric_limits<float>::infinity();

enum class Along { tokens, channels };

template <class S> struct Coded {
  std::vector<std::uint8_t> codes;
  Matrix<S> scale, minimum, decoded;
};

template <class S> Coded<S> kivi(Along along, const ConstMatrixRef<S>& x, int bits, Index group) {
  const bool keys = along == Along::tokens;
  const Index rows = keys ? x.rows() / group : x.rows(), cols = keys ? x.cols() : (x.cols() + group - 1) / group;
  Coded<S> c{std::vector<std::uint8_t>(static_cast<std::size_t>(x.size()), 99), Matrix<S>(rows, cols), Matrix<S>(rows, cols),
             Matrix<S>(x.rows(), x.cols())};
  if (keys) {
    kivi_encode_keys<S>(x, bits, group, c.codes, c.scale, c.minimum);
    kivi_decode_keys<S>(c.codes, group, c.scale, c.minimum, c.decoded);
  } else {
    kivi_encode_values<S>(x, bits, group, c.codes, c.scale, c.minimum);
    kivi_decode_values<S>(c.codes, group, c.scale, c.minimum, c.decoded);
  }
  return c;
}

Matrix<float> matrix(Index rows, Index cols, const std::vector<float>& numbers) {
  return Eigen::Map<const Matrix<float>>(numbers.data(), rows, cols);
}

using Codes = std::vector<std::uint8_t>;

std::vector<std::byte> encoded(const std::vector<float>& x) {
  const auto n = static_cast<Index>(x.size());
  std::vector<std::byte> bytes(static_cast<std::size_t>(q8_row_bytes(n)));
  q8_encode(x.data(), n, bytes.data());
  return bytes;
}

std::vector<float> decoded(const std::vector<std::byte>& bytes, std::size_t n) {
  std::vector<float> x(n, 99);
  q8_decode(bytes.data(), static_cast<Index>(n), x.data());
  return x;
}

std::vector<float> rounded(const std::vector<float>& x) { return decoded(encoded(x), x.size()); }

float stored_scale(const std::byte* block) {
  half scale;
  std::memcpy(&scale, block, sizeof scale);
  return static_cast<float>(scale);
}

std::vector<int> codes_of(const std::vector<std::byte>& block) {
  std::vector<int> codes;
  for (std::size_t i = sizeof(half); i < block.size(); ++i) codes.push_back(static_cast<std::int8_t>(block[i]));
  return codes;
}

/// Every head of every row as a Q8 cache keeps it.
Matrix<float> as_stored(Matrix<float> x, Index head_dim) {
  std::vector<std::byte> row(static_cast<std::size_t>(q8_row_bytes(head_dim)));
  for (Index r = 0; r < x.rows(); ++r)
    for (Index c = 0; c < x.cols(); c += head_dim) {
      q8_encode(&x(r, c), head_dim, row.data());
      q8_decode(row.data(), head_dim, &x(r, c));
    }
  return x;
}

template <class Cache>
concept ShowsRows = requires(const Cache cache) {
  cache.keys(0);
};

static_assert(KvStorage<Q8> && !PlainStorage<Q8> && sizeof(Q8) == 1 && std::is_same_v<arithmetic_t<Q8>, float>);
static_assert(ShowsRows<KvCache<half>> && !ShowsRows<KvCache<Q8>>);

}  // namespace

// ------------------------------------------------------------------------------------------------------------- KIVI

TEST_CASE("keys share scale and minimum along tokens, values along channels", "[kivi]") {
  const Matrix<float> x = matrix(4, 2, {0, 10, 3, 20, -6, 4, -3, 10});
  const Coded<float> k = kivi<float>(Along::tokens, x, 2, 2);
  CHECK(k.minimum == matrix(2, 2, {0, 10, -6, 4}));
  CHECK(k.scale == matrix(2, 2, {1, 10.f / 3, 1, 2}));
  CHECK(k.codes == Codes{0, 0, 3, 3, 0, 0, 3, 3});
  CHECK(k.decoded == x);

  const Coded<float> v = kivi<float>(Along::channels, matrix(2, 5, {0, 1, 3, 8, 5, 7, 7, 4, 1, 1}), 2, 3);
  CHECK(v.minimum == matrix(2, 2, {0, 5, 4, 1}));
  CHECK(v.scale == matrix(2, 2, {1, 1, 1, 0}));
  CHECK(v.codes == Codes{0, 1, 3, 3, 0, 3, 3, 0, 0, 0});
  CHECK(v.decoded == matrix(2, 5, {0, 1, 3, 8, 5, 7, 7, 4, 1, 1}));
}

TEST_CASE("a number halfway between two codes gets the even one", "[kivi]") {
  const Matrix<float> x = matrix(1, 6, {0, .5f, 1.5f, 2.5f, 2.5000002f, 3});
  CHECK(kivi<float>(Along::channels, x, 2, 6).codes == Codes{0, 0, 2, 2, 3, 3});
  CHECK(kivi<float>(Along::tokens, x.reshaped<Eigen::RowMajor>(6, 1).eval(), 2, 6).codes == Codes{0, 0, 2, 2, 3, 3});
}

TEST_CASE("a group of equal numbers comes back as it was", "[kivi]") {
  const int bits = GENERATE(1, 4, 8);
  const float number = GENERATE(0.f, -.1f, 3e38f, 1e-45f);
  const Matrix<float> x = Matrix<float>::Constant(4, 6, number);
  for (const Along along : {Along::tokens, Along::channels}) {
    const Coded<float> c = kivi<float>(along, x, bits, 2);
    CHECK(c.scale.isZero(0));
    CHECK(c.codes == Codes(24, 0));
    CHECK(c.decoded == x);
  }
}

TEST_CASE("what is not finite makes its own group not-a-number and no other", "[kivi]") {
  const float odd = GENERATE(values({not_a_number, infinite, -infinite, 3e38f}));
  CAPTURE(odd);
  Matrix<float> x = matrix(2, 4, {1, -3e38f, 2, 4, 0, 5, 6, 7});
  x(1, 1) = odd;  // 3e38 is finite; its distance from -3e38 is not
  const Coded<float> k = kivi<float>(Along::tokens, x, 4, 2);
  for (Index c = 0; c < 4; ++c) {
    CHECK(std::isnan(k.scale(0, c)) == (c == 1));
    CHECK(std::isnan(k.minimum(0, c)) == (c == 1));
    CHECK(k.decoded.col(c).hasNaN() == (c == 1));
    for (Index r = 0; r < 2; ++r) CHECK((k.codes[static_cast<std::size_t>(r * 4 + c)] == 0 || c != 1));
  }
  if (odd == 3e38f) return;  // without -3e38 beside it an ordinary number
  const Coded<float> v = kivi<float>(Along::channels, x, 4, 2);
  CHECK(std::isnan(v.scale(1, 0)));
  CHECK(std::isnan(v.decoded(1, 0)));
  CHECK(std::isnan(v.decoded(1, 1)));
  CHECK_FALSE(v.decoded.row(0).hasNaN());
  CHECK_FALSE(v.decoded.row(1).tail(2).hasNaN());
}

TEMPLATE_TEST_CASE("codes miss by at most half a scale", "[kivi]", float, double) {
  using S = TestType;
  const int bits = GENERATE(1, 2, 3, 4, 8);
  const Index group = GENERATE(1, 3, 8, 32);
  CAPTURE(bits, group);
  std::mt19937_64 rng(static_cast<std::uint64_t>(bits));
  const Matrix<S> wide = random_matrix<S>(4 * group, 40, rng);
  const auto x = wide.middleCols(3, 33);  // any row stride, and no whole number of groups a token
  const S room = S(1) + 8 * S(1 << bits) * std::numeric_limits<S>::epsilon();
  for (const Along along : {Along::tokens, Along::channels}) {
    const bool keys = along == Along::tokens;
    const Coded<S> c = kivi<S>(along, x, bits, group);
    CHECK(*std::max_element(c.codes.begin(), c.codes.end()) == (group == 1 ? 0 : (1 << bits) - 1));
    Matrix<double> bound(x.rows(), x.cols());
    for (Index t = 0; t < x.rows(); ++t)
      for (Index i = 0; i < x.cols(); ++i) {
        const S scale = keys ? c.scale(t / group, i) : c.scale(t, i / group);
        bound(t, i) = static_cast<double>(scale / 2 * room + std::abs(x(t, i)) * std::numeric_limits<S>::epsilon());
      }
    CHECK(near(c.decoded, x, bound));
  }
}

TEST_CASE("codes refuse shapes that do not belong together", "[kivi]") {
  const Matrix<float> x = Matrix<float>::Zero(6, 4);
  Codes codes(24), few(23);
  Matrix<float> scale(3, 4), minimum(3, 4), wrong(2, 4), out(6, 4);
  CHECK_THROWS_AS(kivi_encode_keys<float>(x, 0, 2, codes, scale, minimum), ShapeError);
  CHECK_THROWS_WITH(kivi_encode_keys<float>(x, 9, 2, codes, scale, minimum), contains("kivi_encode_keys: bits is 9, expected 1 .. 8"));
  CHECK_THROWS_WITH(kivi_encode_keys<float>(x, 2, 0, codes, scale, minimum), contains("group is 0, expected 1 or more"));
  CHECK_THROWS_WITH(kivi_encode_keys<float>(x, 2, 4, codes, scale, minimum), contains("6 tokens are no whole groups of 4"));
  CHECK_THROWS_WITH(kivi_encode_keys<float>(x, 2, 2, few, scale, minimum), contains("codes holds 23, expected 24"));
  CHECK_THROWS_WITH(kivi_encode_keys<float>(x, 2, 2, codes, wrong, minimum), contains("scale is [2, 4], expected [3, 4]"));
  CHECK_THROWS_WITH(kivi_encode_keys<float>(x, 2, 2, codes, scale, wrong), contains("minimum is [2, 4], expected [3, 4]"));
  CHECK_THROWS_WITH(kivi_decode_keys<float>(codes, 2, wrong, minimum, out), contains("kivi_decode_keys: scale is [2, 4]"));
  CHECK_THROWS_WITH(kivi_decode_keys<float>(few, 2, scale, minimum, out), contains("codes holds 23"));

  CHECK_THROWS_WITH(kivi_encode_values<float>(x, 9, 2, codes, scale, minimum), contains("kivi_encode_values: bits is 9"));
  CHECK_THROWS_WITH(kivi_encode_values<float>(x, 2, 3, codes, scale, minimum), contains("scale is [3, 4], expected [6, 2]"));
  CHECK_THROWS_WITH(kivi_decode_values<float>(codes, -1, scale, minimum, out), contains("kivi_decode_values: group is -1"));
  CHECK_NOTHROW(kivi_encode_keys<float>(x.topRows(0), 2, 4, std::span(codes).first(0), scale.topRows(0), minimum.topRows(0)));
}

// --------------------------------------------------------------------------------------------------------------- Q8

TEST_CASE("a Q8 row is 34 bytes for each 32 numbers and 2 more than its rest", "[kivi][q8]") {
  CHECK(q8_row_bytes(0) == 0);
  CHECK(q8_row_bytes(1) == 3);
  CHECK(q8_row_bytes(8) == 10);
  CHECK(q8_row_bytes(32) == 34);
  CHECK(q8_row_bytes(33) == 37);
  CHECK(q8_row_bytes(128) == 136);
  CHECK_THROWS_AS(q8_row_bytes(-1), CapacityError);
  CHECK_THROWS_AS(q8_row_bytes(std::numeric_limits<Index>::max()), CapacityError);
}

TEST_CASE("a Q8 block is its scale as a half, then codes rounded away from zero", "[kivi][q8]") {
  const auto block = encoded({127, .5f, -.5f, .49999997f, -2.5f, 1.4999999f, -126.5f, 0});
  CHECK(block[0] == std::byte{0x00});
  CHECK(block[1] == std::byte{0x3c});  // 1
  CHECK(codes_of(block) == std::vector<int>{127, 1, -1, 0, -3, 1, -127, 0});

  // Codes belong to the scale before it is rounded to a half: 1/127 as a half is 0.1 percent too large, and 100 would be 99.9.
  const auto finer = encoded({1, 100.4f / 127, -1});
  CHECK(codes_of(finer) == std::vector<int>{127, 100, -127});
  CHECK(stored_scale(finer.data()) == static_cast<float>(half(1.f / 127)));
}

TEST_CASE("each Q8 block has its own scale, whatever stands beside it", "[kivi][q8]") {
  std::mt19937_64 rng(3);
  std::vector<float> x(72);
  for (float& v : x) v = normal<float>(rng);
  const std::vector<float> alone(x.begin() + 32, x.begin() + 64);
  const auto before = encoded(x);
  CHECK(std::equal(before.begin() + 34, before.begin() + 68, encoded(alone).begin()));
  x[0] = 1000;
  x[71] = not_a_number;
  const auto after = encoded(x);
  CHECK(std::equal(before.begin() + 34, before.begin() + 68, after.begin() + 34));
  CHECK(stored_scale(after.data()) == static_cast<float>(half(1000.f / 127)));
  const auto back = decoded(after, 72);
  for (std::size_t i = 0; i < 72; ++i) CHECK(std::isnan(back[i]) == (i >= 64));
}

TEST_CASE("Q8 numbers are off by half a scale and what the half loses of it", "[kivi][q8]") {
  const Index n = GENERATE(1, 8, 31, 32, 33, 72, 128);
  const float size = GENERATE(1e-8f, 1e-4f, 1e-2f, 1.f, 3e4f, 5e5f);
  CAPTURE(n, size);
  std::mt19937_64 rng(static_cast<std::uint64_t>(n));
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = size * normal<float>(rng);
  const auto back = rounded(x);
  for (std::size_t b = 0; b < x.size(); b += 32) {
    const std::size_t end = std::min(x.size(), b + 32);
    float largest = 0;
    for (std::size_t i = b; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
    const float scale = largest / 127, half_error = std::max(scale * 0x1p-11f, 0x1p-25f);  // below 6e-5 a half is denormal
    for (std::size_t i = b; i < end; ++i) CHECK(std::abs(back[i] - x[i]) <= (scale / 2 + 127 * half_error) * 1.0001f);
  }
}

TEST_CASE("Q8 at the ends of its range", "[kivi][q8]") {
  CHECK(rounded({0, -0.f, 0}) == std::vector<float>{0, 0, 0});
  CHECK(codes_of(encoded({0, -0.f})) == std::vector<int>{0, 0});
  for (const float tiny : {1e-45f, 1e-38f, 3e-6f}) CHECK(rounded({tiny, -tiny}) == std::vector<float>{0, 0});
  CHECK(rounded({127 * 65504.f, -127 * 65504.f, 65504}) == std::vector<float>{127 * 65504.f, -127 * 65504.f, 65504});
  for (const float odd : {not_a_number, infinite, -infinite, 127 * 65536.f, std::numeric_limits<float>::max()}) {
    CAPTURE(odd);
    for (const float v : rounded({1, odd, 0, -2})) CHECK(std::isnan(v));
    CHECK(codes_of(encoded({1, odd, 0, -2})) == std::vector<int>{0, 0, 0, 0});
  }
}

namespace {

/// Random rows of every kv head: as Q8, and as the floats these decode to.
struct TwoStorages {
  TwoStorages(const AttentionShape& s, Index count, std::uint64_t seed) : shape(s), rows(count), rng(seed) {
    for (Index i = 0; i < 2 * shape.num_kv_heads; ++i) {
      const Matrix<float> given = random_matrix<float>(rows, shape.head_dim, rng);
      std::vector<Q8>& q8 = coded.emplace_back(static_cast<std::size_t>(rows * stride()));
      for (Index r = 0; r < rows; ++r)
        q8_encode(given.data() + r * shape.head_dim, shape.head_dim, reinterpret_cast<std::byte*>(q8.data()) + r * stride());
      plain.push_back(as_stored(given, shape.head_dim));
    }
    positions = pith_test::in_order(rows);
  }
  Index stride() const { return q8_row_bytes(shape.head_dim) + 3; }

  template <class T> std::vector<KvRun<T>> runs(Index sinks) const {
    std::vector<KvRun<T>> out;
    for (std::size_t h = 0; h < plain.size(); h += 2) {
      if constexpr (std::is_same_v<T, Q8>) {
        out.push_back({coded[h].data(), coded[h + 1].data(), rows, stride(), positions.data(), nullptr, sinks});
      } else {
        out.push_back({plain[h].data(), plain[h + 1].data(), rows, shape.head_dim, positions.data(), nullptr, sinks});
      }
    }
    return out;
  }

  AttentionShape shape;
  Index rows;
  std::mt19937_64 rng;
  std::vector<std::vector<Q8>> coded;
  std::vector<Matrix<float>> plain;
  std::vector<Position> positions;
};

/// The outputs of all queries, and below them the weights of every kv head.
template <class T> std::vector<Matrix<float>> attended(const TwoStorages& both, const Matrix<float>& q, Index sinks, Index window) {
  const auto runs = both.runs<T>(sinks);
  const KvView<T> view{both.shape, static_cast<Position>(both.rows), runs};
  Workspace ws(attend_workspace_bytes<float>(both.shape, both.rows, 1, q.rows()));
  std::vector<Matrix<float>> out{Matrix<float>(q.rows(), q.cols())};
  Matrix<float> o(q.rows(), q.cols());
  attend(q, view, o, ws, [&](const AttentionTile<float>& tile) { out.emplace_back(tile.weights); },
         {.window = window, .q_sinks = q, .gap = 2});
  out.front() = o;
  return out;
}

}  // namespace

TEST_CASE("attention over Q8 rows has the bits of attention over the floats they decode to", "[kivi][q8]") {
  const AttentionShape shape = GENERATE(AttentionShape{4, 2, 8}, AttentionShape{8, 1, 32}, AttentionShape{2, 2, 64},
                                        AttentionShape{3, 1, 72}, AttentionShape{4, 2, 128}, AttentionShape{2, 1, 33});
  const Index rows = GENERATE(1, 31, 100), tokens = GENERATE(1, 3, 17), sinks = GENERATE(0, 4), window = GENERATE(0, 20);
  if (tokens > rows || sinks > rows) return;
  CAPTURE(shape.head_dim, rows, tokens, sinks, window);
  TwoStorages both(shape, rows, static_cast<std::uint64_t>(rows + shape.head_dim));
  const Matrix<float> q = random_matrix<float>(tokens, shape.num_heads * shape.head_dim, both.rng);
  const auto ours = attended<Q8>(both, q, sinks, window), theirs = attended<float>(both, q, sinks, window);
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(near(ours[i], theirs[i], 0));
}

TEST_CASE("attend refuses Q8 rows closer than their bytes", "[kivi][q8]") {
  TwoStorages both({2, 1, 33}, 4, 1);
  auto runs = both.runs<Q8>(0);
  runs[0].stride = 36;
  Matrix<float> q = Matrix<float>::Zero(1, 66), out(1, 66);
  Workspace ws(attend_workspace_bytes<float>(both.shape, 4));
  CHECK_THROWS_WITH(attend(q, KvView<Q8>{both.shape, 4, runs}, out, ws),
                    contains("stride 36, expected at least the bytes of a row, which are 37"));
}

TEST_CASE("a row of weight 0 adds nothing, whatever its Q8 blocks hold", "[kivi][q8]") {
  const AttentionShape shape{1, 1, 40};
  TwoStorages both(shape, 3, 4);
  std::vector<float> odd(40, 1);
  odd[35] = infinite;
  q8_encode(odd.data(), 40, reinterpret_cast<std::byte*>(both.coded[1].data()) + both.stride());
  auto runs = both.runs<Q8>(0);
  const float hidden[] = {0, -infinite, 0};
  runs[0].log_mass = hidden;
  Matrix<float> q = Matrix<float>::Constant(1, 40, .1f), out(1, 40);
  Workspace ws(attend_workspace_bytes<float>(shape, 3));
  attend(q, KvView<Q8>{shape, 3, runs}, out, ws);
  CHECK(out.allFinite());
}

namespace {

/// A Q8 cache and a float cache that is given the numbers the first one keeps: they must agree in every bit.
template <class P> class Twins {
 public:
  Twins(const AttentionShape& s, const P& policy, const KvCacheOptions& options, std::uint64_t seed)
      : shape(s), q8(s, policy, options), plain(s, policy, options), stream(s, seed) {}

  void step(Index tokens, const AppendOptions& append = {}, KvPromptBuffer<Q8>* q8_landing = nullptr,
            KvPromptBuffer<float>* prompt_buffer = nullptr) {
    const Index width = shape.num_kv_heads * shape.head_dim;
    const Matrix<float> k = stream.random(tokens, width), v = stream.random(tokens, width);
    const Matrix<float> q = stream.random(tokens, shape.num_heads * shape.head_dim);
    if (prompt_buffer != nullptr) {
      q8.reserve(tokens, q8_landing);
      plain.reserve(tokens, prompt_buffer);
    }
    const Matrix<float> ours = feed(q8, q, k, v, append);
    const Matrix<float> theirs = feed(plain, q, as_stored(k, shape.head_dim), as_stored(v, shape.head_dim), append);
    REQUIRE(near(ours, theirs, 0));
    check();
  }

  void check() const {
    REQUIRE(q8.next_position() == plain.next_position());
    for (Index h = 0; h < shape.num_kv_heads; ++h) {
      REQUIRE(std::vector<Position>(q8.positions(h).begin(), q8.positions(h).end()) ==
              std::vector<Position>(plain.positions(h).begin(), plain.positions(h).end()));
      REQUIRE(near(q8.stats(h), plain.stats(h), 0));
      const KvRun<Q8>& run = q8.view().runs[static_cast<std::size_t>(h)];
      Matrix<float> k(run.rows, shape.head_dim), v = k;
      for (Index r = 0; r < run.rows; ++r) {
        q8_decode(reinterpret_cast<const std::byte*>(run.keys + r * run.stride), shape.head_dim, k.row(r).data());
        q8_decode(reinterpret_cast<const std::byte*>(run.values + r * run.stride), shape.head_dim, v.row(r).data());
      }
      REQUIRE(k == plain.keys(h, plain.rope_positions()));
      REQUIRE(v == plain.values(h));
    }
  }

  AttentionShape shape;
  KvCache<Q8> q8;
  KvCache<float> plain;
  KvStream<float> stream;

 private:
  template <class Cache>
  static Matrix<float> feed(Cache& cache, const Matrix<float>& q, const Matrix<float>& k, const Matrix<float>& v,
                            const AppendOptions& options) {
    cache.append(k, v, options);
    Index rows = 0;
    for (Index h = 0; h < cache.shape().num_kv_heads; ++h) rows = std::max(rows, cache.size(h));
    Workspace ws(attend_workspace_bytes<float>(cache.shape(), rows, 1, q.rows()));
    Matrix<float> out(q.rows(), q.cols());
    const AttendOptions<float> sinks{.q_sinks = q, .gap = cache.gap()};
    if (cache.facts().observes) {
      attend(q, cache.view(), out, ws, cache.observer(), sinks);
    } else {
      attend(q, cache.view(), out, ws, NoObserver{}, sinks);
    }
    cache.evict();
    return out;
  }
};

template <class P> void check_twins(const P& policy, const AttentionShape& shape) {
  CAPTURE(shape.head_dim);
  Twins<P> twins(shape, policy, {.max_chunk = 5, .max_draft = 8, .max_tokens = 200}, 5);
  for (int i = 0; i < 12; ++i) twins.step(1 + i % 5);
  for (int round = 0; round < 4; ++round) {
    twins.q8.checkpoint();
    twins.plain.checkpoint();
    const Position to = static_cast<Position>(twins.plain.next_position() + 2);
    twins.step(2);
    twins.step(3);
    twins.step(2);
    twins.q8.crop(to);
    twins.plain.crop(to);
    twins.check();
    twins.step(1);
  }
  if (policy.budget() == unlimited) return;
  const KvPromptBufferOptions needs{.stats = twins.shape.group(), .reads_rows = true};
  KvPromptBuffer<Q8> q8_landing(shape, 60, needs);
  KvPromptBuffer<float> prompt_buffer(shape, 60, needs);
  twins.step(30, {}, &q8_landing, &prompt_buffer);
  twins.step(1);
}

}  // namespace

TEST_CASE("a Q8 cache is a float cache of rounded rows, in every bit", "[kivi][q8]") {
  const AttentionShape shape = GENERATE(AttentionShape{4, 2, 8}, AttentionShape{2, 2, 33}, AttentionShape{2, 1, 64});
  check_twins(Dense{}, shape);
  check_twins(SinkWindow{.sinks = 2, .window = 8}, shape);
  check_twins(HeavyHitter{.heavy = 5, .recent = 5}, shape);
  check_twins(KeyNorm{.keep = 9}, shape);
  check_twins(KeyDiff{.keep = 9, .rows_per_eviction = 2}, shape);
}

TEST_CASE("a Q8 cache takes 34 bytes where a float cache takes 128", "[kivi][q8]") {
  const AttentionShape shape{4, 2, 64};
  const KvCacheOptions options{.max_draft = 0, .max_tokens = 1024};
  const KvCache<Q8> q8(shape, {}, options);
  const KvCache<float> plain(shape, {}, options);
  CHECK(plain.bytes() - q8.bytes() == std::size_t{2 * 2 * 1024 * (256 - 68)});
  CHECK_THROWS_AS((KvCache<Q8>({1, 1, std::numeric_limits<Index>::max() / 8}, {}, options)), CapacityError);
}
