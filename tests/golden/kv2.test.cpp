// Replays every file of published compaction, proxy passes and eviction rules under <golden>/kv2.
//
// What a file is, its metadata says as `case`. A case that no test replays fails, and so does a tensor that no test reads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv/compact.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/kv_rows.hpp"
#include "golden/support/replay_folder.hpp"
#include "support/catch.hpp"
#include "support/products.hpp"

using namespace pith;
using namespace pith_test;

namespace golden_kv2 {
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
      const Matrix<double> x = kept_weights(e, theirs, beta), y = times(kept_weights(e, all_rows(k.rows()), none), v);
      CHECK(transposed_times(x, times(x, solved.values) - y).cwiseAbs().maxCoeff() < 1e-6);
      const Matrix<double> without = kept_weights(exponentials(q, k, none), theirs, their_beta);
      if (inside) CHECK(transposed_times(without, times(without, their_values) - y).cwiseAbs().maxCoeff() < 1e-4);
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

// ------------------------------------------------------------------------------------------------------ proxy passes

Rope<float> rope_of(const Golden& golden, Index head_dim) {
  return Rope<float>({.head_dim = head_dim, .theta = golden.real("rope_theta")});
}

/// Head h of [heads, rows, head_dim], turned: row r stands at position first + r.
Matrix<float> turned(const Golden& golden, const Tensor& rows, Index h, Position first) {
  Matrix<float> out = head_of(rows, h);
  std::vector<Position> at(static_cast<std::size_t>(out.rows()));
  std::iota(at.begin(), at.end(), first);
  rope_of(golden, rows.width()).rotate(out, at);
  return out;
}

/// [tokens*group, head_dim] the queries of a kv head, token by token.
Matrix<float> grouped(const Golden& golden, const Tensor& q, Index kv_head, Index group, Position first) {
  Matrix<float> out(q.extent(1) * group, q.width());
  for (Index g = 0; g < group; ++g) {
    const Matrix<float> one = turned(golden, q, kv_head * group + g, first);
    for (Index t = 0; t < one.rows(); ++t) out.row(t * group + g) = one.row(t);
  }
  return out;
}

KvRun<float> run_of(const Matrix<float>& keys, const Matrix<float>& values, const std::vector<Position>& positions) {
  return {.keys = keys.data(), .values = values.data(), .rows = keys.rows(), .stride = keys.cols(), .positions = positions.data()};
}

std::vector<Position> ascending(Position first, Index n) {
  std::vector<Position> out(static_cast<std::size_t>(n));
  std::iota(out.begin(), out.end(), first);
  return out;
}

void kvzip(Golden& golden) {
  const Tensor k = golden.get("k"), v = golden.get("v"), expected = golden.get("score");
  const Index heads = k.extent(0), rows = k.extent(1), group = golden.number("heads") / heads;
  const auto prefix = static_cast<std::size_t>(golden.number("prefix"));
  const auto sinks = static_cast<std::size_t>(golden.number("n_sink"));
  const bool plus = golden.has("wo");
  const Matrix<float> wo = plus ? matrix_of(golden.get("wo")).cast<float>() : Matrix<double>().cast<float>();
  RowScores scores(1, heads);
  const std::vector<Position> positions = ascending(0, rows);
  for (Index h = 0; h < heads; ++h) {
    scores.head(0, h).positions = positions;
    scores.head(0, h).scores.assign(static_cast<std::size_t>(rows), 0.0);
  }
  Index i = 0;
  for (const auto& chunk : golden.json("chunks")) {
    const std::string n = std::to_string(i++);
    const Tensor q = golden.get("q" + n), rk = golden.get("rk" + n), rv = golden.get("rv" + n);
    const Index m = chunk.at(2).get<Index>();
    const std::vector<Position> behind = ascending(static_cast<Position>(rows), m);
    Matrix<float> inputs(m, 1);  // whose norms are those of their hidden states
    if (plus) inputs = golden.get("hidden_norm" + n).values.cast<float>();
    for (Index h = 0; h < heads; ++h) {
      const Matrix<float> keys = turned(golden, k, h, 0), values = head_of(v, h), repeated = turned(golden, rk, h, behind.front()),
                          repeated_values = head_of(rv, h), queries = grouped(golden, q, h, group, behind.front());
      LookTile<float> tile;
      tile.rows = run_of(keys, values, positions);
      tile.proxy = run_of(repeated, repeated_values, behind);
      tile.inputs = inputs;
      tile.scale = 1 / std::sqrt(static_cast<float>(k.width()));
      tile.attention.kv_head = h;
      tile.attention.queries = queries;
      tile.attention.num_queries = m;
      tile.attention.first_query = behind.front();
      detail::repeat_scores(tile, {chunk.at(0).get<Position>(), chunk.at(1).get<Position>(), static_cast<Position>(sinks)},
                            plus ? &wo : nullptr, std::span(scores.head(0, h).scores));
    }
  }
  for (Index h = 0; h < heads; ++h)
    for (std::size_t r = prefix; r < positions.size(); ++r)
      CHECK(std::abs(scores.head(0, h).scores[r] - expected.row({h})[r]) <= match_score_bound);
  // Theirs loses the rows of the system prompt behind the sinks: with the scores that it gives them, the same half stays.
  const Tensor mask = golden.get("kept_mask");
  RowBudget half{.share = RowBudget::Share::layer, .sinks = 0, .recent = 0};
  Index left = heads * rows - static_cast<Index>(golden.real("compression_ratio") * static_cast<double>(heads * rows));
  for (Index h = 0; h < heads; ++h) {
    for (std::size_t r = 0; r < prefix; ++r) {
      CHECK(expected.row({h})[r] == (r < sinks ? 1.0 : 0.0));
      scores.head(0, h).scores[r] = expected.row({h})[r];
    }
    half.of_head.push_back(left / (heads - h));
    left -= half.of_head.back();
  }
  const auto kept = scores.best(half, 0, static_cast<Position>(rows));
  for (Index h = 0; h < heads; ++h)
    for (Index r = 0; r < rows; ++r)
      CHECK(std::count(kept[std::size_t(h)].begin(), kept[std::size_t(h)].end(), r) == mask.id_row({h})[std::size_t(r)]);
}

void finch(Golden& golden) {
  const Tensor q = golden.get("q"), k = golden.get("k"), v = golden.get("v");
  const Index heads = k.extent(0), window = golden.number("window"), rows = k.extent(1) - window, d = k.width(),
              group = q.extent(0) / heads;
  const std::vector<Position> context = ascending(0, rows), behind = ascending(static_cast<Position>(rows), window);
  std::vector<Matrix<float>> keys, values, window_keys, window_values;
  std::vector<KvRun<float>> runs;
  Matrix<float> queries(window, q.extent(0) * d), out(window, q.extent(0) * d);
  for (Index h = 0; h < heads; ++h) {
    const Matrix<float> all = turned(golden, k, h, 0), all_values = head_of(v, h), asked = grouped(golden, q, h, group, behind.front());
    keys.emplace_back(all.topRows(rows));
    values.emplace_back(all_values.topRows(rows));
    window_keys.emplace_back(all.bottomRows(window));
    window_values.emplace_back(all_values.bottomRows(window));
    for (Index t = 0; t < window; ++t)
      for (Index g = 0; g < group; ++g) queries.row(t).segment((h * group + g) * d, d) = asked.row(t * group + g);
  }
  for (Index h = 0; h < heads; ++h) {
    const auto i = static_cast<std::size_t>(h);
    runs.push_back(run_of(window_keys[i], window_values[i], behind));
    runs.push_back(run_of(keys[i], values[i], context));
  }
  const KvView<float> view{{q.extent(0), heads, d}, static_cast<Position>(rows + window), runs};
  for (const bool normalised : {false, true}) {
    std::vector<std::vector<double>> scores(static_cast<std::size_t>(heads), std::vector<double>(static_cast<std::size_t>(rows), 0.0));
    Workspace ws(attend_workspace_bytes<float>(view.shape, rows + window, 1, window));
    attend(queries, view, out, ws, [&](const AttentionTile<float>& seen) {
      LookTile<float> tile;
      tile.attention = seen;
      detail::mean_scores(tile, window, normalised, std::span(scores[static_cast<std::size_t>(seen.kv_head)]));
    });
    for (const std::string& name : normalised ? std::vector<std::string>{"norm", "norm_chunks"} : std::vector<std::string>{"plain"}) {
      INFO(name);
      const Tensor expected = golden.get(name + "_score"), kept = golden.get(name + "_kept"), slots = golden.get(name + "_keys");
      const bool chunks = name == "norm_chunks";
      for (Index h = 0; h < heads; ++h) {
        const auto theirs = expected.row({h}).first(static_cast<std::size_t>(rows));
        const double largest = *std::max_element(theirs.begin(), theirs.end());
        const std::vector<double>& ours = scores[static_cast<std::size_t>(h)];
        for (std::size_t r = 0; r < ours.size(); ++r) CHECK(std::abs(ours[r] - theirs[r]) <= 1e-4 * largest);
        // Each chunk keeps half of its rows; in the last one the window takes its places first.
        const Index length = chunks ? golden.number("chunk_length") : rows + window;
        Ids stay = ascending(static_cast<Position>(rows), window);
        for (Index first = 0; first < rows; first += length) {
          const Index end = std::min(first + length, rows + window), here = std::min(end, rows) - first;
          RowScores part(1, 1);
          part.head(0, 0) = {std::span(context).subspan(std::size_t(first), std::size_t(here)),
                             {ours.begin() + first, ours.begin() + first + here}};
          const Index kept_rows = rows_at_compression(end - first, golden.real("compression_ratio")) - (end > rows ? window : 0);
          const auto best = part.best({.rows = kept_rows, .sinks = 0, .recent = 0}, 0, static_cast<Position>(rows));
          for (const Index r : best[0]) stay.push_back(static_cast<Position>(first + r));
        }
        stay = sorted(stay);
        CHECK(stay == listed(kept.id_row({h})));
        Matrix<float> turned_keys(static_cast<Index>(stay.size()), d);
        const Matrix<float> all = turned(golden, k, h, 0);
        std::vector<Position> by;
        for (std::size_t slot = 0; slot < stay.size(); ++slot) {
          turned_keys.row(Index(slot)) = all.row(stay[slot]);
          by.push_back(static_cast<Position>(slot) - stay[slot]);
        }
        rope_of(golden, d).rotate_by(turned_keys, by);
        for (Index slot = 0; slot < turned_keys.rows(); ++slot) CHECK(distance(turned_keys.row(slot), slots.row({h, slot})) <= 5e-5);
      }
    }
  }
}

void head_budget_rounding(Golden& golden) {
  const Tensor removed = golden.get("prune_ratio"), kept = golden.get("kept");
  const std::vector<Token> rows = golden.ids("rows");
  for (Index i = 0; i < removed.extent(0); ++i) {
    std::vector<float> shares;
    for (const double share : removed.row({i})) shares.push_back(static_cast<float>(share));
    const std::vector<Index> ours = head_budgets(rows[std::size_t(i)], shares);
    CHECK(std::equal(ours.begin(), ours.end(), kept.id_row({i}).begin()));
  }
}

// ------------------------------------------------------------------------------------------------------------- rules

/// [tokens, heads*head_dim] of [heads, tokens, head_dim], each turned at its position from `first` on.
Matrix<float> turned_rows(const Golden& golden, const Tensor& rows, Position first) {
  Matrix<float> out = token_rows(rows);
  rope_of(golden, rows.width()).rotate(out, ascending(first, out.rows()));
  return out;
}

void check_kept(Cache& cache, const Tensor& kept, const Ids& besides = {}) {
  cache.evict();
  for (Index h = 0; h < kept.extent(0); ++h) {
    Ids theirs = listed(kept.id_row({h}));
    theirs.insert(theirs.end(), besides.begin(), besides.end());
    CHECK(sorted(cache.positions(h)) == sorted(theirs));
  }
}

/// The rows of highest score. A cache would keep its newest row besides, which theirs may lose.
void check_best(const std::vector<Vector<float>>& scores, const Tensor& kept) {
  for (std::size_t h = 0; h < scores.size(); ++h) {
    const std::span<const Token> theirs = kept.id_row({Index(h)});
    Ids ours = ascending(0, scores[h].size());
    std::sort(ours.begin(), ours.end(), [&](Position a, Position b) { return scores[h][a] > scores[h][b]; });
    ours.resize(theirs.size());
    CHECK(sorted(ours) == listed(theirs));
  }
}

void rkv(Golden& golden) {
  const Tensor k = golden.get("k"), v = golden.get("v"), q = golden.get("q");
  const Index rows = k.extent(1), window = golden.number("window");
  const AttentionShape shape{q.extent(0), k.extent(0), k.width()};
  const auto configs = golden.json("configs");
  for (const auto& [name, config] : configs.items()) {
    INFO(name);
    RKv policy{.keep = golden.number("budget"), .window = window, .kernel = golden.number("kernel"), .rows_per_eviction = 1};
    policy.lambda = config.is_array() ? config.at(0).get<double>() : config.get<double>();
    if (name == "first") policy.spare = RKv::Spare::first;
    const auto read = [&](const RKv& p) {
      Cache cache(shape, p, {.max_chunk = rows});
      cache.append(token_rows(k), token_rows(v), {.phase = Phase::prefill});
      look(cache, token_rows(q));
      return cache;
    };
    Cache cache = read(policy);
    const Tensor expected = golden.get(name + "_score"), similarity = golden.get(name + "_similarity");
    const auto scores = scores_of(cache, cache.snapshot().memory);
    RKv alone = policy;
    alone.lambda = 0;
    const auto copies = scores_of(read(alone), cache.snapshot().memory);
    for (Index h = 0; h < shape.num_kv_heads; ++h) {
      CHECK(distance(scores[std::size_t(h)].head(rows - window), expected.row({h})) <= 1e-5);
      CHECK(distance(-copies[std::size_t(h)].head(rows - window), similarity.row({h}).first(std::size_t(rows - window))) <= 1e-5);
    }
    check_kept(cache, golden.get(name + "_kept"), ascending(static_cast<Position>(rows - window), window));
  }
}

/// Deviations from the mean of all heads together.
void standardise(std::vector<Vector<float>>& scores, Index first, Index end) {
  double sum = 0, squares = 0;
  const double n = double(scores.size()) * double(end - first);
  for (const auto& head : scores) sum += head.segment(first, end - first).cast<double>().sum();
  for (const auto& head : scores) squares += (head.segment(first, end - first).cast<double>().array() - sum / n).square().sum();
  for (auto& head : scores) head = ((head.cast<double>().array() - sum / n) / std::sqrt(squares / (n - 1))).cast<float>();
}

void check_scores(const std::vector<Vector<float>>& ours, const Tensor& theirs, Index first = 0) {
  const double bound = 5e-4 * std::max(1.0, theirs.values.cwiseAbs().maxCoeff());
  for (std::size_t h = 0; h < ours.size(); ++h)
    CHECK(distance(ours[h].tail(ours[h].size() - first), theirs.row({Index(h)}).subspan(std::size_t(first))) <= bound);
}

void short_scorers(Golden& golden) {
  const Tensor tq = golden.get("q"), tk = golden.get("k"), tv = golden.get("v");
  const Matrix<float> q = turned_rows(golden, tq, 0), k = turned_rows(golden, tk, 0), v = token_rows(tv);
  const AttentionShape shape{tq.extent(0), tk.extent(0), tk.width()};
  const Index rows = k.rows(), keep = golden.number("n_kept"), d = shape.head_dim;
  const auto rope = std::make_shared<const Rope<float>>(rope_of(golden, d));
  const auto read = [&](AnyPolicy<float> policy) {
    Cache cache(shape, std::move(policy), {.max_chunk = rows, .max_generated = rows});
    cache.append(k, v, {.phase = Phase::prefill});
    look(cache, q);
    return cache;
  };
  const auto sketch = [&](const std::string& name) {
    const Tensor phi = golden.get(name);
    Matrix<float> all(shape.num_kv_heads * d, phi.width());
    for (Index h = 0; h < shape.num_kv_heads; ++h) all.middleRows(h * d, d) = head_of(phi, h);
    return std::make_shared<const Matrix<float>>(all);
  };
  Leverage<float> leverage{.rope = rope, .keep = keep, .sinks = 0, .sketch = sketch("leverage_phi")};
  Cache by_leverage = read(leverage);
  auto scores = scores_of(by_leverage);
  standardise(scores, 0, rows);
  check_scores(scores, golden.get("leverage_score"));
  check_best(scores, golden.get("leverage_kept"));
  const NonCausal non_causal{.keep = keep, .sinks = 0, .chunk = golden.number("chunk_size"), .padded_chunk = true};
  Cache by_attention = read(non_causal);
  scores = scores_of(by_attention);
  standardise(scores, 0, rows);
  check_scores(scores, golden.get("non_causal_score"));
  check_best(scores, golden.get("non_causal_kept"));
  // Theirs takes deviations over all heads together; of the same two scores between the ends.
  const auto config = golden.json("compactor");
  const Index first = config.at("sink_size_start").get<Index>(), end = rows - config.at("sink_size_end").get<Index>();
  leverage.sketch = sketch("compactor_phi");
  Cache both = read(non_causal);
  std::vector<Vector<float>> of_keys, of_queries;
  Vector<float> scratch(rows);
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    const KvRows<float> seen{.kv_head = h,
                             .shape = shape,
                             .next = static_cast<Position>(rows),
                             .positions = both.positions(h),
                             .kinds = both.kinds(h),
                             .stats = both.stats(h),
                             .keys = both.keys(h),
                             .values = both.values(h)};
    of_keys.push_back(Vector<float>::Zero(rows));
    of_queries.push_back(Vector<float>::Zero(rows));
    leverage.raw(seen, first, end, of_keys.back().data());
    non_causal.raw(seen, first, end, of_queries.back().data(), scratch.data());
  }
  standardise(of_keys, first, end);
  standardise(of_queries, first, end);
  const Tensor expected = golden.get("compactor_score");
  const double blend = config.at("blending").get<double>(), largest = expected.values.cwiseAbs().maxCoeff();
  for (Index h = 0; h < shape.num_kv_heads; ++h)
    for (Index r = first; r < end; ++r)
      CHECK(std::abs(blend * double(of_keys[std::size_t(h)][r]) + double(of_queries[std::size_t(h)][r]) -
                     expected.row({h})[std::size_t(r)]) <= 5e-4 * std::max(1.0, largest));
  const auto cap = golden.json("capkv");
  Cache by_values = read(CapKv<float>{.rope = rope,
                                      .keep = keep,
                                      .sinks = cap.at("n_sink").get<Index>(),
                                      .future = cap.at("n_future_positions").get<Index>(),
                                      .tau = cap.at("tau").get<double>()});
  scores = scores_of(by_values, by_values.snapshot().memory);
  check_scores(scores, golden.get("capkv_score"), cap.at("n_sink").get<Index>());
  check_best(scores, golden.get("capkv_kept"));
  const auto layers = golden.json("simlayerkv");
  for (const auto& row : layers.at("rows")) {
    LazyLayer lazy{.keep = rows, .sinks = row.at(2).get<Index>(), .recent = row.at(1).get<Index>(), .last = row.at(0).get<Index>()};
    for (const double side : {-1e-5, 1e-5}) {
      lazy.threshold = row.at(3).get<double>() + side;
      Cache cache = read(lazy);
      cache.evict();
      for (Index h = 0; h < shape.num_kv_heads; ++h) CHECK(cache.size(h) == row.at(side < 0 ? 4 : 5).get<Index>());
    }
  }
}

/// Scores that a file gives for each token.
struct Told {
  std::shared_ptr<const Tensor> scores;
  Index budget() const { return 64; }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const {
    for (Index r = 0; r < fresh.size(); ++r)
      stats(0, r) = static_cast<S>(scores->row({fresh.kv_head})[static_cast<std::size_t>(fresh.positions[std::size_t(r)])]);
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
};

void threshold(Golden& golden) {
  const auto scores = std::make_shared<const Tensor>(golden.get("score"));
  const Tensor gone = golden.get("gone");
  const Index heads = scores->extent(0), prompt = golden.number("prompt"), steps = gone.extent(0);
  Cache cache({heads, heads, 8}, Threshold(Told{scores}, {.least = golden.real("threshold"), .window = golden.number("window")}),
              {.max_chunk = prompt});
  const Matrix<float> rows = Matrix<float>::Zero(prompt, heads * 8);
  for (Index step = 0; step < steps; ++step) {
    const Index tokens = step == 0 ? prompt : 1;
    cache.append(rows.topRows(tokens), rows.topRows(tokens), {.phase = step == 0 ? Phase::prefill : Phase::decode});
    cache.evict();
    for (Index h = 0; h < heads; ++h) {
      const Ids left = sorted(cache.positions(h));
      for (Position p = 0; p < cache.next_position(); ++p)
        CHECK(std::count(left.begin(), left.end(), p) == 1 - gone.id_row({step, h})[static_cast<std::size_t>(p)]);
    }
  }
}

}  // namespace

TEST_CASE("golden.kv2: every file of compaction, proxy passes and eviction rules", "[golden]") {
  const Replays cases{{"attention matching", attention_matching},
                      {"kvzip", kvzip},
                      {"kvzip+", kvzip},
                      {"finch", finch},
                      {"R-KV", rkv},
                      {"leverage, non-causal, compactor, capkv; simlayerkv in the header", short_scorers},
                      {"DMS: below a threshold once out of the window", threshold},
                      {"largest remainders", head_budget_rounding},
                      {"values-only merging of the best share", values_only_share},
                      {"rotated q4_1 rows", nullptr},  // golden.kv_reading
                      {"certified rows, q8_0 codes, residual norm rounded up to half", nullptr}};
  replay_folder("kv2", "case", cases);
}

}  // namespace golden_kv2
