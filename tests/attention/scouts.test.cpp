// Scout codes: margins, bounds on keys made to break them, what attention reads, and that nothing else changes.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/scout.hpp>
#include <pith/core/executor.hpp>

#include "support/attention_rows.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::AttentionRows;
using pith_test::in_order;
using pith_test::same_bits;

namespace {

/// The codes of a key in double, and its margin.
struct Scout {
  std::vector<float> key;
  double margin;
};
template <class T> Scout scout_of(const T* key, Index n) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(scout_row_bytes(n)));
  scout_encode(key, n, bytes.data());
  Scout s{std::vector<float>(static_cast<std::size_t>(n)), 0};
  q8_decode(bytes.data(), n, s.key.data());
  half margin;
  std::memcpy(&margin, bytes.data() + q8_row_bytes(n), sizeof(half));
  s.margin = static_cast<double>(static_cast<float>(margin));
  return s;
}

/// Scout codes for all runs of a view; they live as long as this.
template <class T> struct Scouted {
  Scouted(std::vector<KvRun<T>>& runs, Index dim) : codes(runs.size()) {
    for (std::size_t r = 0; r < runs.size(); ++r) {
      codes[r].resize(static_cast<std::size_t>(runs[r].rows * scout_row_bytes(dim)) + 1);
      for (Index i = 0; i < runs[r].rows; ++i)
        scout_encode(runs[r].keys + i * runs[r].stride, dim, codes[r].data() + i * scout_row_bytes(dim));
      runs[r].scouts = codes[r].data();
    }
  }
  std::vector<std::vector<std::byte>> codes;
};

template <class T> struct Attended {
  Matrix<arithmetic_t<T>> out;
  AttentionReads reads;
  double unread = 0;  ///< the largest sum of weights that the observer was shown as 0, by weights of `dense`
  std::vector<Matrix<float>> weights;
};

template <class T>
Attended<T> attended(const KvView<T>& view, const Matrix<float>& q, AttendOptions<float> options, double share, Index workers = 1) {
  Index rows = 0;
  for (const KvRun<T>& run : view.runs) rows += run.rows;
  ThreadPool pool(workers);
  Workspace ws(attend_workspace_bytes<float>(view.shape, rows, workers, q.rows()), pool);
  Attended<T> result;
  result.weights.resize(static_cast<std::size_t>(view.shape.num_kv_heads), Matrix<float>(0, view.runs.back().rows));
  result.out.setConstant(q.rows(), q.cols(), 99.f);
  options.skip_below = static_cast<float>(share);
  options.reads = &result.reads;
  attend(
      q, view, result.out, ws,
      [&](const AttentionTile<float>& tile) {
        Matrix<float>& all = result.weights[std::size_t(tile.kv_head)];
        const Index before = all.rows();
        all.conservativeResize(before + tile.weights.rows(), Eigen::NoChange);
        all.bottomRows(tile.weights.rows()) = tile.weights;
      },
      options);
  return result;
}

/// Keys that strain bounds: name and what it does to n rows of d numbers.
struct Strain {
  std::string name;
  std::function<void(Matrix<float>&)> spoil;
};
std::vector<Strain> strains() {
  return {{"random", [](Matrix<float>&) {}},
          {"huge norms", [](Matrix<float>& k) { k *= 1e4f; }},
          {"tiny", [](Matrix<float>& k) { k *= 1e-6f; }},
          {"denormal", [](Matrix<float>& k) { k *= 1e-39f; }},
          {"one outlier channel", [](Matrix<float>& k) { k.col(3) *= 200.f; }},
          {"all equal", [](Matrix<float>& k) { k = k.row(0).replicate(k.rows(), 1).eval(); }},
          {"long ties", [](Matrix<float>& k) { k = k.unaryExpr([](float x) { return x > 0 ? 1.f : -1.f; }).eval(); }},
          {"zeros", [](Matrix<float>& k) { k.setZero(); }}};
}

}  // namespace

TEST_CASE("margins of scout codes cover every query", "[attend][scouts]") {
  for (const Strain& strain : strains())
    for (const Index dim : {16, 33, 64, 128}) {
      Matrix<float> k = pith_test::random_matrix<float>(60, dim, 7);
      strain.spoil(k);
      CAPTURE(strain.name, dim);
      for (Index r = 0; r < k.rows(); ++r) {
        const Scout s = scout_of(k.row(r).data(), dim);
        double residual = 0, norm = 0;
        Vector<double> off(dim);
        for (Index i = 0; i < dim; ++i) {
          off[i] = static_cast<double>(k(r, i)) - static_cast<double>(s.key[std::size_t(i)]);
          residual += off[i] * off[i];
          norm += static_cast<double>(k(r, i)) * static_cast<double>(k(r, i));
        }
        residual = std::sqrt(residual);
        CHECK(s.margin >= residual + 2 * static_cast<double>(dim) * 0x1p-24 * std::sqrt(norm));
        CHECK(s.margin <= 1.01 * (residual + 4 * static_cast<double>(dim) * 0x1p-24 * std::sqrt(norm)) + 1e-7);
        // The worst query lies along what the codes lose. Both sums in float, as attention forms them.
        if (residual == 0) continue;
        const Vector<float> q = (off / residual).cast<float>();
        float of_key = 0, of_code = 0;
        for (Index i = 0; i < dim; ++i) of_key += q[i] * k(r, i), of_code += q[i] * s.key[std::size_t(i)];
        CHECK(std::abs(static_cast<double>(of_key) - static_cast<double>(of_code)) <= q.cast<double>().norm() * s.margin + 2e-38);
      }
    }
  Matrix<float> k = pith_test::random_matrix<float>(1, 64, 1);
  k(0, 40) = std::numeric_limits<float>::infinity();
  CHECK(std::isnan(scout_of(k.data(), 64).key[40]));
}

TEMPLATE_TEST_CASE("scouted attention is off by at most twice the share", "[attend][scouts]", float, bfloat16) {
  const AttentionShape shape =
      GENERATE(AttentionShape{4, 2, 20}, AttentionShape{4, 2, 32}, AttentionShape{4, 2, 64}, AttentionShape{3, 1, 64});
  const Index tokens = GENERATE(1, 3);
  const double sharpness = GENERATE(1e-3, 1., 4., 1e3);
  CAPTURE(shape.head_dim, tokens, sharpness);
  AttentionRows<TestType> rows(shape, 8);
  rows.add_run(40, {}, true);
  rows.add_run(400, in_order(400), true);
  const Matrix<float> q = static_cast<float>(sharpness) * rows.queries(tokens);
  const Scouted<TestType> codes(rows.runs(), shape.head_dim);
  const KvView<TestType> view = rows.view(400);
  const auto first = static_cast<Position>(400 - tokens);
  double largest = 0;
  for (const KvRun<TestType>& run : rows.runs())
    for (Index r = 0; r < run.rows; ++r)
      largest = std::max(largest, pith_test::widened<double>(
                                      Matrix<TestType>(Eigen::Map<const Matrix<TestType>>(run.values + r * run.stride, 1, shape.head_dim)))
                                      .norm());
  for (const AttendOptions<float>& options :
       {AttendOptions<float>{.first_query = first}, AttendOptions<float>{.first_query = first, .n = 3},
        AttendOptions<float>{.first_query = first, .softcap = 5}, AttendOptions<float>{.first_query = first, .window = 100}}) {
    const auto exact = rows.expected(q, first, options);
    const auto dense = attended(view, q, options, 0);
    CHECK(dense.reads.keys == dense.reads.rows);
    Index read = dense.reads.keys, needed = dense.reads.rows;
    for (const double share : {1e-4, .01, .1, .5}) {
      CAPTURE(share, options.n, options.softcap, options.window);
      const auto some = attended(view, q, options, share);
      CHECK(some.reads.rows == dense.reads.rows);
      CHECK(some.reads.keys <= read);  // what a lower share skips, a higher one skips
      CHECK(some.reads.values <= some.reads.keys);
      CHECK(some.reads.needed <= needed);
      read = some.reads.keys;
      needed = some.reads.needed;
      for (Index t = 0; t < tokens; ++t)
        for (Index h = 0; h < shape.num_heads; ++h) {
          const auto part = [&](const auto& m) { return m.row(t).segment(h * shape.head_dim, shape.head_dim).template cast<double>(); };
          CHECK((part(some.out) - part(exact.out)).norm() <= 2 * share * largest + part(exact.bound).norm());
        }
      for (std::size_t h = 0; h < some.weights.size(); ++h)
        for (Index l = 0; l < some.weights[h].rows(); ++l) {
          double unread = 0;  // by the weights of attention in double
          for (Index r = 0; r < some.weights[h].cols(); ++r)
            if (some.weights[h](l, r) == 0) unread += exact.weights[h](l, r);
          CHECK(unread <= share * (1 + 1e-5));
        }
      CHECK(same_bits(attended(view, q, options, share, 2).out, some.out));
      for (Index t = 0; t < tokens; ++t) {  // alone, a query reads what it reads in a batch
        AttendOptions<float> one = options;
        one.first_query = static_cast<Position>(first + t);
        CHECK(same_bits(attended(view, Matrix<float>(q.row(t)), one, share).out, Matrix<float>(some.out.row(t))));
      }
    }
    if (sharpness == 4.) CHECK(needed < dense.reads.rows * shape.group() / (shape.group() + 2));  // the union of a group
  }
}

TEST_CASE("keys made to break bounds do not", "[attend][scouts]") {
  const AttentionShape shape{2, 1, 64};
  const Index n = 300;
  for (const Strain& strain : strains()) {
    Matrix<float> k = pith_test::random_matrix<float>(n, 64, 3);
    strain.spoil(k);
    const Matrix<float> v = pith_test::random_matrix<float>(n, 64, 4);
    std::vector<KvRun<float>> runs{{k.data(), v.data(), n, 64}};
    const Scouted<float> codes(runs, 64);
    const KvView<float> view{shape, Position(n), runs};
    for (const double size : {.1, 1., 20.}) {
      // One query at random, one along what the codes of a key lose.
      Matrix<float> q = static_cast<float>(size) * pith_test::random_matrix<float>(1, 128, 5);
      const Scout s = scout_of(k.row(70).data(), 64);
      for (Index i = 0; i < 64; ++i) q(0, 64 + i) = static_cast<float>(1e3 * size) * (k(70, i) - s.key[std::size_t(i)]);
      for (const double share : {.001, .05, .5}) {
        CAPTURE(strain.name, size, share);
        const auto some = attended(view, q, {}, share);
        for (Index h = 0; h < 2; ++h) {
          const Vector<double> logits = k.cast<double>() * q.row(0).segment(h * 64, 64).transpose().cast<double>() / 8;
          Vector<double> w = (logits.array() - logits.maxCoeff()).exp().matrix();
          w /= w.sum();
          double unread = 0;
          for (Index r = 0; r < n; ++r)
            if (some.weights[0](h, r) == 0) unread += w[r];
          CHECK(unread <= share * (1 + 1e-4));
          const double rounding = 1e-5 + 1e-6 * logits.cwiseAbs().maxCoeff();  // of logits in float
          const double error = (some.out.row(0).segment(h * 64, 64).cast<double>() - w.transpose() * v.cast<double>()).norm();
          CHECK(error <= (2 * share + 4 * rounding) * v.cast<double>().rowwise().norm().maxCoeff());
        }
        if (strain.name == "all equal" || strain.name == "zeros") CHECK(some.reads.keys >= Index((1 - share) * n) - 1);
      }
    }
  }
}

namespace {

/// One head's keys and two queries that are made to break bounds.
struct Broken {
  Matrix<float> k, q;       ///< [n, d] and [1, 2 d], uniform in -1 .. 1 at first
  std::vector<float> mass;  ///< [n] or empty
  double deviation;         ///< of the logits that the queries should give
  Index dim() const { return k.cols(); }
  Index rows() const { return k.rows(); }
  double logit(Index lane, Index row) const {
    const float *const of_lane = q.data() + lane * dim(), *const of_row = k.data() + row * dim();
    const double sum = std::inner_product(of_lane, of_lane + dim(), of_row, 0., std::plus<>(), std::multiplies<double>());
    return sum / std::sqrt(static_cast<double>(dim())) + (mass.empty() ? 0 : static_cast<double>(mass[std::size_t(row)]));
  }
  void size_queries(double factor) { q *= static_cast<float>(factor * deviation); }
};
struct Attack {
  const char* name;
  void (*make)(Broken&);
};

constexpr Attack attacks[] = {
    {"random", [](Broken& b) { b.size_queries(3); }},
    // The largest residuals that codes leave, along the query: light rows are heavier than their codes say, heavy rows lighter.
    {"residuals along the query",
     [](Broken& b) {
       b.q = b.q.unaryExpr([](float x) { return x > 0 ? 1.f : -1.f; }).eval();
       const Matrix<float> along = b.q;
       b.size_queries(std::sqrt(3.));
       b.k = b.k.unaryExpr([](float x) { return std::round(126 * x) / 128; }).eval();
       for (Index i = 0; i < b.dim(); i += q8_block) b.k.col(i).setConstant(127.f / 128);  // a step is 1 / 128
       for (Index r = 0; r < b.rows(); ++r) {
         const float to = b.logit(0, r) < 1.5 * b.deviation ? .49f / 128 : -.49f / 128;
         for (Index i = 0; i < b.dim(); ++i)
           if (i % q8_block != 0) b.k(r, i) += to * along(0, i);
       }
     }},
    // What a query's bytes lose, beside a large number that meets zeros: three rows of four lie along it, and their codes are exact.
    {"queries that bytes lose",
     [](Broken& b) {
       const auto lost = [](Index i) { return i % 3 == 0 ? -.49f : .49f; };
       for (Index l = 0; l < 2; ++l) {
         for (Index i = 1; i < b.dim(); ++i) b.q(0, l * b.dim() + i) = std::round(3 * b.q(0, l * b.dim() + i)) + lost(i);
         b.q(0, l * b.dim()) = 32767;
       }
       b.size_queries(.8);
       b.k = b.k.unaryExpr([](float x) { return std::round(126 * x) / 128; }).eval();
       b.k.col(0).setZero();
       for (Index r = 0; r < b.rows(); ++r)
         for (Index i = 1; r % 4 != 0 && i < b.dim(); ++i) b.k(r, i) = std::copysign(b.k(r, i), lost(i));
       for (Index i = 1; i < b.dim(); i += q8_block) b.k.col(i).setConstant(127.f / 128);
     }},
    {"an outlier channel",
     [](Broken& b) {
       b.size_queries(3);
       b.k.col(3) *= 200.f;
       b.q(0, 3) = 0;
     }},
    {"huge keys",
     [](Broken& b) {
       b.size_queries(3e-4);
       b.k *= 1e4f;
     }},
    {"tiny keys",
     [](Broken& b) {
       b.size_queries(3e6);
       b.k *= 1e-6f;
     }},
    {"equal keys",
     [](Broken& b) {
       b.size_queries(3);
       b.k = b.k.row(0).replicate(b.rows(), 1).eval();
     }},
    {"merged and massive rows",
     [](Broken& b) {
       b.size_queries(3);
       for (Index r = 0; r < b.rows(); ++r) b.mass.push_back(r % 97 == 5 ? 10.f : std::log(1.f + static_cast<float>(r % 5)));
     }},
    {"one row that is not hidden",
     [](Broken& b) {
       b.size_queries(3);
       b.mass.assign(std::size_t(b.rows()), -std::numeric_limits<float>::infinity());
       b.mass[std::size_t(b.rows() / 2)] = 0;
     }},
};

/// How far the codes of a row move its logits, over the margin that they are given: the larger of both queries.
double of_margin(const Broken& b, const std::byte* codes, Index row) {
  float decoded[64];
  q8_decode(codes, b.dim(), decoded);
  half margin;
  std::memcpy(&margin, codes + q8_row_bytes(b.dim()), sizeof(half));
  double largest = 0;
  for (Index lane = 0; lane < 2; ++lane) {
    const float *const of_lane = b.q.data() + lane * b.dim(), *const of_row = b.k.data() + row * b.dim();
    double moved = 0, norm = 0;
    for (Index i = 0, n = b.dim(); i < n; ++i) {
      const double q = static_cast<double>(of_lane[i]);
      moved += q * (static_cast<double>(of_row[i]) - static_cast<double>(decoded[i]));
      norm += q * q;
    }
    if (moved != 0) largest = std::max(largest, std::abs(moved) / (std::sqrt(norm) * static_cast<double>(static_cast<float>(margin))));
  }
  return largest;
}

}  // namespace

TEST_CASE("a million keys made to break bounds do not, nor do values made of what is not read", "[attend][scouts]") {
  Index keys = 0, unread_rows = 0;
  std::uint64_t seed = 0;
  double closest = 0, most_of_margin = 0;  // to the bound
  for (const Index dim : {16, 33, 64})
    for (const double deviation : {1e-3, 2., 4., 1e3})
      for (const double share : {.5, .1, .01}) {
        const Matrix<float> numbers = pith_test::random_matrix<float>(3102, dim, ++seed);
        for (const Attack& attack : attacks)
          for (const Index n : {1, 70, 3100}) {
            CAPTURE(dim, deviation, share, attack.name, n);
            Broken b{numbers.topRows(n), Matrix<float>(1, 2 * dim), {}, deviation};
            b.q << numbers.row(3100), numbers.row(3101);
            attack.make(b);
            Matrix<float> v = Matrix<float>::Ones(n, dim);
            std::vector<KvRun<float>> runs{{b.k.data(), v.data(), n, dim}};
            if (!b.mass.empty()) runs[0].log_mass = b.mass.data();
            const Scouted<float> codes(runs, dim);
            const KvView<float> view{{2, 1, dim}, Position(n), runs};
            const Matrix<float> weights = attended(view, b.q, {}, share).weights[0];
            for (Index r = 0; r < n; ++r)  // what is not read pulls the other way: the output is off by twice its weight
              if (weights(0, r) == 0) v.row(r).setConstant(-1);
            const auto some = attended(view, b.q, {}, share);
            REQUIRE(same_bits(some.weights[0], weights));
            double over = 0;
            for (Index r = 0; r < n; ++r) over = std::max(over, of_margin(b, codes.codes[0].data() + r * scout_row_bytes(dim), r));
            CHECK(over <= 1);
            most_of_margin = std::max(most_of_margin, over);
            for (Index lane = 0; lane < 2; ++lane) {
              std::vector<double> w(static_cast<std::size_t>(n));
              double top = -std::numeric_limits<double>::infinity(), size = 0;
              for (Index r = 0; r < n; ++r) {
                w[std::size_t(r)] = b.logit(lane, r);
                top = std::max(top, w[std::size_t(r)]);
                if (std::isfinite(w[std::size_t(r)])) size = std::max(size, std::abs(w[std::size_t(r)]));
              }
              double sum = 0, unread = 0, out = 0;
              for (double& x : w) sum += x = std::exp(x - top);
              for (Index r = 0; r < n; ++r) {
                const double weight = w[std::size_t(r)] / sum;
                out += weight * static_cast<double>(v(r, 0));
                if (weights(lane, r) != 0) continue;
                unread += weight;
                ++unread_rows;
              }
              CHECK(unread <= share * (1 + 1e-4));
              const double rounding = 1e-5 + 1e-6 * size;  // of logits in float
              const double error = (some.out.row(0).segment(lane * dim, dim).cast<double>().array() - out).matrix().norm();
              CHECK(error <= (2 * share + 4 * rounding) * std::sqrt(static_cast<double>(dim)));
              if (rounding < .01 * share) closest = std::max(closest, error / (2 * share * std::sqrt(static_cast<double>(dim))));
            }
            keys += n;
          }
      }
  CHECK(keys >= 1000000);
  CHECK(unread_rows > keys / 2);
  CHECK(closest > .8);
  CHECK(most_of_margin > .95);
}

TEST_CASE("keys and values that scout codes exclude are not touched", "[attend][scouts]") {
  const AttentionShape shape{4, 2, GENERATE(32, 40)};
  AttentionRows<float> rows(shape, 5);
  rows.add_run(300, in_order(300));
  const Scouted<float> codes(rows.runs(), shape.head_dim);
  const Matrix<float> q = 4 * rows.queries(1);
  const auto some = attended(rows.view(300), q, {}, .02);
  CHECK(some.reads.keys < 300);
  CHECK(some.reads.values <= some.reads.keys);
  Index found_keys = 0, found_values = 0;
  for (KvRun<float>& run : rows.runs())
    for (Index r = 0; r < run.rows; ++r) {
      const auto spoiled = [&](const float* row) {
        float& number = const_cast<float*>(row)[r * run.stride];
        const float before = std::exchange(number, std::numeric_limits<float>::quiet_NaN());
        const bool seen = !attended(rows.view(300), q, {}, .02).out.allFinite();
        number = before;
        return seen;
      };
      found_keys += spoiled(run.keys);
      found_values += spoiled(run.values);
    }
  CHECK(found_keys == some.reads.keys);
  CHECK(found_values == some.reads.values);
}

TEST_CASE("where scout codes cannot exclude a row, attention is dense bit for bit", "[attend][scouts]") {
  const AttentionShape shape{2, 1, 32};
  AttentionRows<float> rows(shape, 3);
  rows.add_run(90, in_order(90));
  const Matrix<float> q = .01f * rows.queries(2);  // all weights about 1/90
  const auto dense = attended(rows.view(90), q, {}, 0);
  SECTION("flat") {
    const Scouted<float> codes(rows.runs(), 32);
    CHECK(same_bits(attended(rows.view(90), q, {}, .005).out, dense.out));
  }
  SECTION("a key that 8 bits cannot hold") {
    const_cast<float*>(rows.runs()[0].keys)[50 * rows.runs()[0].stride] = 1e9f;
    const auto wild = attended(rows.view(90), q, {}, 0);
    const Scouted<float> codes(rows.runs(), 32);
    CHECK(same_bits(attended(rows.view(90), q, {}, .3).out, wild.out));
  }
  SECTION("off, codes are not looked at") {
    std::vector<std::byte> nonsense(static_cast<std::size_t>(90 * scout_row_bytes(32)), std::byte{0xFF});
    for (KvRun<float>& run : rows.runs()) run.scouts = nonsense.data();
    CHECK(same_bits(attended(rows.view(90), q, {}, 0).out, dense.out));
  }
}

TEST_CASE("flat queries read every row, whoever is with them", "[attend][scouts]") {
  const AttentionShape shape{2, 1, 16};
  AttentionRows<float> rows(shape, 21);
  rows.add_run(100, {});
  rows.add_run(2500, in_order(2500), true);
  const KvView<float> view = rows.view(2500);
  Matrix<float> q = rows.queries(2);
  q.row(1) *= 5;  // logits of deviation 1 and 5
  const AttendOptions<float> first{.first_query = 2498}, second{.first_query = 2499};
  const auto dense = attended(view, q, first, 0);
  const Scouted<float> codes(rows.runs(), 16);
  const auto flat = attended(view, Matrix<float>(q.row(0)), first, .1), sharp = attended(view, Matrix<float>(q.row(1)), second, .1);
  CHECK(same_bits(flat.out, Matrix<float>(dense.out.row(0))));
  CHECK(flat.reads.keys == flat.reads.rows);
  CHECK(sharp.reads.keys < sharp.reads.rows / 8);
  CHECK(sharp.reads.keys == sharp.reads.needed);
  CHECK_FALSE(same_bits(sharp.out, Matrix<float>(dense.out.row(1))));
  const auto both = attended(view, q, first, .1);
  CHECK(same_bits(both.out.row(0).eval(), flat.out));
  CHECK(same_bits(both.out.row(1).eval(), sharp.out));
  CHECK(both.reads.keys == both.reads.rows);
  CHECK(same_bits(attended(view, Matrix<float>(q.row(0)), first, .1, 3).out, flat.out));
}

TEST_CASE("over thousands of rows a lower share reads what a higher one reads, flat or not", "[attend][scouts]") {
  const AttentionShape shape{2, 1, 16};
  AttentionRows<float> rows(shape, 5);
  rows.add_run(2600, in_order(2600));
  const Scouted<float> codes(rows.runs(), 16);
  const KvView<float> view = rows.view(2600);
  double largest = 0;
  for (Index r = 0; r < 2600; ++r)
    largest = std::max(largest, std::sqrt(std::inner_product(rows.runs()[0].values + r * 16, rows.runs()[0].values + (r + 1) * 16,
                                                             rows.runs()[0].values + r * 16, 0.)));
  Index dense = 0;
  for (const float sharpness : {1.f, 2.f, 3.f, 4.f, 6.f}) {
    const Matrix<float> q = sharpness * rows.queries(1);
    const auto exact = rows.expected(q, 2599);
    Attended<float> higher = attended(view, q, {}, .6);
    for (const double share : {.3, .1, .03, .01, .001}) {
      CAPTURE(sharpness, share);
      const auto lower = attended(view, q, {}, share);
      for (Index l = 0; l < 2; ++l) {
        CHECK((lower.weights[0].row(l).array() != 0 || higher.weights[0].row(l).array() == 0).all());
        const auto off = (lower.out.cast<double>() - exact.out).row(0).segment(16 * l, 16);
        CHECK(off.norm() <= 2 * share * largest + exact.bound.row(0).segment(16 * l, 16).norm());
      }
      dense += lower.reads.needed == lower.reads.rows;
      higher = lower;
    }
  }
  CHECK(dense > 5);
  CHECK(dense < 20);
}

TEST_CASE("keys without scout codes are read, beside others that have them", "[attend][scouts]") {
  const AttentionShape shape{2, 1, 32};
  AttentionRows<float> rows(shape, 9);
  rows.add_run(50, {});
  rows.add_run(300, in_order(300));
  const Matrix<float> q = 4 * rows.queries(1);
  const auto exact = rows.expected(q, 299);
  const Scouted<float> codes(rows.runs(), 32);
  rows.runs()[0].scouts = nullptr;
  const auto some = attended(rows.view(300), q, {}, .02);
  CHECK((some.out.cast<double>() - exact.out).norm() <= 2 * .02 * 2 * 12);
  CHECK(some.reads.keys >= 50);
  CHECK(some.reads.keys < 300);
  CHECK(some.reads.values < some.reads.keys);
}

TEST_CASE("sinks' queries read their rows for any scout codes", "[attend][scouts]") {
  const AttentionShape shape{2, 2, 32};
  AttentionRows<float> rows(shape, 11);
  rows.add_run(200, in_order(200), false, 4);
  const Matrix<float> q = 3 * rows.queries(1), turned = 3 * rows.queries(1);
  const AttendOptions<float> options{.q_sinks = turned, .gap = 7};
  const auto exact = rows.expected(q, 199, options);
  const Scouted<float> codes(rows.runs(), 32);
  const auto some = attended(rows.view(200), q, options, .01);
  CHECK((some.out.cast<double>() - exact.out).norm() <= 2 * .01 * 2 * 12);
  CHECK(some.reads.keys < 300);
}
