// Replays every file of published compaction, proxy passes and eviction rules under <golden>/kv2.
//
// What a file is, its metadata says as `case`. A case that nobody replays fails, and so does a tensor that nobody reads.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv/compact.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace {

// What the files' README allows.
constexpr double match_score_bound = 1e-5, beta_bound = 1e-4, exact_beta_bound = 1e-3, match_value_bound = 2e-3, pulled_value_bound = 1e-2;

Matrix<double> matrix_of(const Tensor& tensor) {
  REQUIRE(tensor.shape.size() == 2);
  return tensor.values.reshaped<Eigen::RowMajor>(tensor.extent(0), tensor.extent(1));
}

std::vector<Index> rows_of(const Tensor& tensor) { return {tensor.ids.begin(), tensor.ids.end()}; }

double largest_difference(const Matrix<double>& ours, const Matrix<double>& theirs) {
  REQUIRE(ours.rows() == theirs.rows());
  return ours.allFinite() ? (ours - theirs).cwiseAbs().maxCoeff() : std::numeric_limits<double>::infinity();
}

std::vector<Index> all_rows(Index n) {
  std::vector<Index> rows(static_cast<std::size_t>(n));
  std::iota(rows.begin(), rows.end(), Index(0));
  return rows;
}

// ------------------------------------------------------------------------------------------------ attention matching

/// exp(q·k/√d + bias - the query's largest) of every row, by plain loops.
Matrix<double> exponentials(const Matrix<double>& q, const Matrix<double>& k, const Vector<double>& bias) {
  Matrix<double> out(q.rows(), k.rows());
  for (Index i = 0; i < q.rows(); ++i) {
    double top = -std::numeric_limits<double>::infinity();
    for (Index j = 0; j < k.rows(); ++j) {
      double sum = 0;
      for (Index c = 0; c < k.cols(); ++c) sum += q(i, c) * k(j, c);
      out(i, j) = sum / std::sqrt(double(k.cols())) + bias[j];
      top = std::max(top, out(i, j));
    }
    for (Index j = 0; j < k.rows(); ++j) out(i, j) = std::exp(out(i, j) - top);
  }
  return out;
}

/// Σ_i (Σ_j M_ij e^β_j - Σ_j E_ij)²
double mass_error(const Matrix<double>& e, const std::vector<Index>& kept, const Vector<double>& beta) {
  double sum = 0;
  for (Index i = 0; i < e.rows(); ++i) {
    double missing = e.row(i).sum();
    for (std::size_t j = 0; j < kept.size(); ++j) missing -= e(i, kept[j]) * std::exp(beta[Index(j)]);
    sum += missing * missing;
  }
  return sum;
}

/// softmax over the kept rows, with their masses: [queries, kept].
Matrix<double> kept_weights(const Matrix<double>& e, const std::vector<Index>& kept, const Vector<double>& beta) {
  Matrix<double> x(e.rows(), Index(kept.size()));
  for (Index i = 0; i < e.rows(); ++i) {
    for (std::size_t j = 0; j < kept.size(); ++j) x(i, Index(j)) = e(i, kept[j]) * std::exp(beta[Index(j)]);
    x.row(i) /= x.row(i).sum();
  }
  return x;
}

void attention_matching(Golden& golden) {
  const Matrix<double> k = matrix_of(golden.get("k")), v = matrix_of(golden.get("v")), q = matrix_of(golden.get("q"));
  const Vector<double> bias = golden.get("bias").values, none = Vector<double>::Zero(k.rows());
  const Index t = golden.number("t");
  matrix_of(golden.get("q_test"));
  // Where no bound binds, their clamped least squares is the optimum; elsewhere only nnls_exact is.
  const bool inside = golden.json("nnls_exact").at("sweeps").get<int>() == 1;
  const auto rows_with = [&](const Vector<double>& log_mass) {
    detail::MatchRows rows{k, v, log_mass, q};
    rows.scale = 1 / std::sqrt(double(k.cols()));
    return rows;
  };
  // 1e-6 of change in a sweep is coarser than their files.
  const auto published = [&](const std::string& name) {
    const auto config = golden.json(name);
    CompactOptions options{.budget = {.rows = t}, .mass_pull = 0, .ridge = 0, .rows = CompactOptions::Rows::largest, .sweeps = 100000};
    if (const std::string by = config.value("score_method", "omp"); by == "mean")
      options.select = CompactOptions::Select::mean;
    else if (by == "max")
      options.select = CompactOptions::Select::largest;
    else if (by == "omp")
      options.select = CompactOptions::Select::pursuit;
    else
      REQUIRE(by == "rms");
    if (config.contains("max") || name == "max") options.select = CompactOptions::Select::largest;
    options.least_log_mass = std::log(config.value("nnls_lower_bound", 1e-12));
    options.most_log_mass = config.contains("nnls_upper_bound") ? std::log(config.at("nnls_upper_bound").get<double>()) : 80;
    options.pursuit_step = config.value("k_choice", 1);
    options.pursuit_interval = config.value("nnls_interval", 1);
    return options;
  };
  for (const std::string name : {"rms", "rms_pg2", "rms_ridge", "mean_drop", "max", "rms_bias", "omp", "omp_drop", "omp_fast"}) {
    INFO(name);
    const bool biased = name == "rms_bias", pursues = name.substr(0, 3) == "omp";
    CompactOptions options = published(name);
    const detail::MatchRows rows = rows_with(biased ? bias : none);
    const Matrix<double> e = exponentials(q, k, rows.log_mass);
    const std::vector<Index> theirs = rows_of(golden.get(name + "_indices"));
    const Vector<double> their_beta = golden.get(name + "_beta").values;
    const Matrix<double> their_values = matrix_of(golden.get(name + "_values"));
    const detail::AttentionMatch match(rows, options);
    std::vector<double> scores;
    const detail::MatchSums sums = match.score(scores);
    std::vector<Index> ours(scores.size());
    if (pursues) {
      ours = match.pursue(sums, t);
    } else {
      if (!biased) {
        const std::string selector = name == "mean_drop" ? "mean" : name == "max" ? "max" : "rms";
        CHECK(distance(Eigen::Map<const Vector<double>>(scores.data(), k.rows()), golden.get("score_" + selector).row({})) <=
              match_score_bound);
      }
      std::iota(ours.begin(), ours.end(), Index(0));
      std::sort(ours.begin(), ours.end(), [&](Index a, Index b) { return scores[size_t(a)] > scores[size_t(b)]; });
      ours.resize(std::size_t(t));
    }
    if (pursues && !inside) {  // their clamped weights lead elsewhere
      CHECK(ours.front() == theirs.front());
      continue;
    }
    CHECK(ours == theirs);  // in order of score, or of selection
    if (name == "mean_drop") {
      CHECK(their_beta.cwiseAbs().maxCoeff() == 0);
      for (std::size_t j = 0; j < theirs.size(); ++j) CHECK((their_values.row(Index(j)) - v.row(theirs[j])).cwiseAbs().maxCoeff() < 1e-6);
      continue;
    }
    if (name == "rms_ridge") {  // both in parts of the mean squared column
      CHECK(golden.json(name).at("c2_ridge_scale") == "frobenius");
      options.ridge = golden.json(name).at("c2_ridge_lambda").get<double>();
      options.pull = CompactOptions::Pull::zero;
    }
    const detail::MatchSolution solved = match.solve(sums, 0, k.rows(), theirs);
    const Vector<double> beta = Eigen::Map<const Vector<float>>(solved.log_mass.data(), t).cast<double>();
    CHECK(mass_error(e, theirs, beta) <= mass_error(e, theirs, their_beta) * (1 + 1e-5));
    if (biased) {  // where values are solved for, theirs forget the masses that rows have; ours are the optimum with them
      const Matrix<double> x = kept_weights(e, theirs, beta), y = kept_weights(e, all_rows(k.rows()), none) * v;
      CHECK((x.transpose() * (x * solved.values - y)).cwiseAbs().maxCoeff() < 1e-6);
      const Matrix<double> without = kept_weights(exponentials(q, k, none), theirs, their_beta);
      if (inside) CHECK((without.transpose() * (without * their_values - y)).cwiseAbs().maxCoeff() < 1e-4);
    }
    if (!inside) continue;
    CHECK(distance(beta, golden.get(name + "_beta").row({})) <= beta_bound);
    if (!biased) CHECK(largest_difference(solved.values, their_values) <= match_value_bound);
  }
  // The true optimum within bounds, and both ridges.
  CompactOptions options = published("rms");
  const std::vector<Index> kept = rows_of(golden.get("rms_indices"));
  const detail::MatchRows rows = rows_with(none);
  const Matrix<double> e = exponentials(q, k, none);
  const Vector<double> their_beta = golden.get("nnls_exact_beta").values;
  const Matrix<double> x = kept_weights(e, kept, their_beta);
  options.ridge = golden.real("nnls_exact_ridge") * double(t) / x.squaredNorm();
  for (const bool own : {false, true}) {
    options.pull = own ? CompactOptions::Pull::own : CompactOptions::Pull::zero;
    const detail::AttentionMatch match(rows, options);
    std::vector<double> scores;
    const detail::MatchSolution solved = match.solve(match.score(scores), 0, k.rows(), kept);
    for (Index j = 0; j < t; ++j)
      if (their_beta[j] > -2.9) CHECK(std::abs(double(solved.log_mass[std::size_t(j)]) - their_beta[j]) <= exact_beta_bound);
    CHECK(largest_difference(solved.values, matrix_of(golden.get(own ? "nnls_exact_values_pull" : "nnls_exact_values"))) <=
          pulled_value_bound);
  }
}

}  // namespace

TEST_CASE("golden.kv2: every file of compaction, proxy passes and eviction rules", "[golden]") {
  const std::map<std::string, void (*)(Golden&)> cases{{"attention matching", attention_matching}};
  int replayed = 0;
  REQUIRE(fs::is_directory(golden_folder("kv2")));
  for (const auto& entry : fs::directory_iterator(golden_folder("kv2"))) {
    if (entry.is_regular_file() && entry.path().extension() == ".md") continue;
    INFO(entry.path().string());
    if (!entry.is_regular_file() || entry.path().extension() != ".safetensors") {
      FAIL_CHECK("nobody tests it");
      continue;
    }
    Golden golden(entry.path());
    const auto replay_case = cases.find(golden.word("case"));
    if (replay_case == cases.end()) {
      FAIL_CHECK("nobody replays the case " << golden.word("case"));
      continue;
    }
    replay_case->second(golden);
    golden.done();
    ++replayed;
  }
  CHECK(replayed > 0);
  std::printf("golden.kv2: %d files replayed\n", replayed);
}
