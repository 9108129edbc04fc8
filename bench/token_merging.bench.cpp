// Where evicted rows go: the nearest kept key of each, against the whole similarity matrix in Eigen and a maximum of each row. And tokens
// of an image: a layer of ToMe, PruMerge, DivPrune and density peaks, each against the same over whole matrices in Eigen.
//
// of_peak   share of the multiply-adds this core can do, measured between the same iterations
// bytes     scratch beside the operands
// rel_err   of the cosines, or of the rows that come out, against double; a wrong match is not reported
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <pith/merge.hpp>

#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

/// `rows` tokens, a fifth of which is kept.
struct Case {
  Index rows, dim;
  Index kept() const { return rows / 5; }
  Index evicted() const { return rows - kept(); }
  std::string text() const { return "/rows:" + std::to_string(rows) + "/dim:" + std::to_string(dim); }
};

template <class Find> void measure(benchmark::State& state, Case c, std::size_t bytes, Find find) {
  const Matrix<float> kept = random_matrix(c.kept(), c.dim, 1), evicted = random_matrix(c.evicted(), c.dim, 2);
  std::vector<std::int32_t> match(static_cast<std::size_t>(c.evicted()));
  Vector<float> cosine(c.evicted());
  find(evicted, kept, match, cosine);

  const Index looked_at = 64;
  const Matrix<double> wide = kept.cast<double>().rowwise().normalized();
  Vector<double> reference(looked_at);
  for (Index e = 0; e < looked_at; ++e) {
    const Vector<double> all = wide * evicted.row(e).cast<double>().normalized().transpose();
    reference[e] = all.maxCoeff();
    if (!(all[match[static_cast<std::size_t>(e)]] > reference[e] - 1e-6)) return state.SkipWithError("wrong match");
  }
  Samples times, peak;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { find(evicted, kept, match, cosine); });
    keep(cosine);
    state.SetIterationTime(seconds);
    times.add(seconds);
    peak.add(peak_flops(seconds));
  }
  state.counters["of_peak"] =
      2.0 * static_cast<double>(c.evicted()) * static_cast<double>(c.kept() * c.dim) / times.median() / peak.median();
  state.counters["bytes"] = static_cast<double>(bytes);
  state.counters["rel_err"] = rel_err(cosine.head(looked_at), reference);
}

void nearest(benchmark::State& state, Case c) {
  Workspace ws(nearest_workspace_bytes<float>(c.kept(), c.dim));
  measure(state, c, ws.bytes(),
          [&](const Matrix<float>& evicted, const Matrix<float>& kept, std::vector<std::int32_t>& match, Vector<float>& cosine) {
            nearest_rows<float>(evicted, kept, match, cosine, ws);
          });
}

void eigen(benchmark::State& state, Case c) {
  measure(state, c, static_cast<std::size_t>(c.evicted() * c.kept() + c.rows * c.dim) * sizeof(float),
          [](const Matrix<float>& evicted, const Matrix<float>& kept, std::vector<std::int32_t>& match, Vector<float>& cosine) {
            const Matrix<float> similarity = evicted.rowwise().normalized() * kept.rowwise().normalized().transpose();
            for (Index e = 0; e < similarity.rows(); ++e) {
              Index best = 0;
              cosine[e] = similarity.row(e).maxCoeff(&best);
              match[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(best);
            }
          });
}

/// Patches of an image: keys that they are compared by, and the hidden states that are reduced to `rows` of them.
struct Image {
  Index tokens, dim, features, rows;
  std::string text() const { return "/tokens:" + std::to_string(tokens) + "/dim:" + std::to_string(dim) + "/rows:" + std::to_string(rows); }
};

template <class S> struct Pixels {
  Matrix<S> keys, hidden;
  Vector<S> attention;
};

Pixels<float> pixels(const Image& image) {
  return {random_matrix(image.tokens, image.dim, 3), random_matrix(image.tokens, image.features, 4),
          random_matrix(image.tokens, 1, 5).cwiseAbs() / static_cast<float>(image.tokens)};
}

std::vector<Index> best_of(Index n, auto&& better) {
  std::vector<Index> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), Index(0));
  std::stable_sort(order.begin(), order.end(), better);
  return order;
}

template <class S> Matrix<S> whole_similarity(const Matrix<S>& keys) {
  const Matrix<S> unit = keys.rowwise().normalized();
  return unit * unit.transpose();
}

/// What each method leaves of an image, over whole matrices: in double the reference, in float the baseline.
struct Dense {
  template <class S> static Matrix<S> tome(const Pixels<S>& p, const Image& image) {
    const Matrix<S> unit = p.keys.rowwise().normalized();
    const Index even = (image.tokens + 1) / 2, odd = image.tokens / 2, r = image.tokens - image.rows;
    const Eigen::OuterStride<> two(2 * image.dim);
    using Rows = Eigen::Map<const Matrix<S>, 0, Eigen::OuterStride<>>;
    const Matrix<S> scores = Rows(unit.data(), even, image.dim, two) * Rows(unit.data() + image.dim, odd, image.dim, two).transpose();
    std::vector<Index> match(static_cast<std::size_t>(even));
    Vector<S> best(even);
    for (Index e = 0; e < even; ++e) best[e] = scores.row(e).maxCoeff(&match[static_cast<std::size_t>(e)]);
    const std::vector<Index> order = best_of(even, [&](Index a, Index b) { return best[a] > best[b]; });
    Matrix<S> sum = p.hidden;
    Vector<S> count = Vector<S>::Ones(image.tokens);
    for (Index i = 0; i < r; ++i) {
      const Index e = order[static_cast<std::size_t>(i)], to = 2 * match[static_cast<std::size_t>(e)] + 1;
      sum.row(to) += p.hidden.row(2 * e);
      count[to] += 1;
      count[2 * e] = 0;
    }
    Matrix<S> out(image.rows, image.features);
    Index row = 0;
    for (Index t = 0; t < image.tokens; ++t)
      if (count[t] > 0) out.row(row++) = sum.row(t) / count[t];
    return out;
  }

  template <class S> static Matrix<S> prumerge(const Pixels<S>& p, const Image& image) {
    const Matrix<S> similarity = whole_similarity(p.keys);
    const std::vector<Index> order = best_of(image.tokens, [&](Index a, Index b) { return p.attention[a] > p.attention[b]; });
    Matrix<S> out = Matrix<S>::Zero(image.rows, image.features);
    for (Index i = 0; i < image.tokens; ++i) {
      const Index patch = order[static_cast<std::size_t>(i)];
      if (i >= image.rows - 1) {
        out.row(image.rows - 1) += p.attention[patch] * p.hidden.row(patch);
        continue;
      }
      const std::vector<Index> near = best_of(
          image.tokens, [&](Index a, Index b) { return b != patch && (a == patch || similarity(patch, a) > similarity(patch, b)); });
      out.row(i) = p.hidden.row(patch);
      for (std::size_t j = 1; j <= 32; ++j) out.row(i) += p.attention[near[j]] * p.hidden.row(near[j]);
    }
    return out;
  }

  template <class S> static Matrix<S> divprune(const Pixels<S>& p, const Image& image) {
    const Matrix<S> similarity = whole_similarity(p.keys);
    Matrix<S> others = similarity;
    others.diagonal().setConstant(-2);
    Vector<S> nearest = others.rowwise().maxCoeff();
    Matrix<S> out(image.rows, image.features);
    for (Index i = 0; i < image.rows; ++i) {
      Index pick = 0;
      nearest.minCoeff(&pick);
      out.row(i) = p.hidden.row(pick);
      nearest = i == 0 ? similarity.col(pick) : nearest.cwiseMax(similarity.col(pick)).eval();
      nearest[pick] = 3;
    }
    return out;
  }

  template <class S> static Matrix<S> clusters(const Pixels<S>& p, const Image& image) {
    const Vector<S> squares = p.keys.rowwise().squaredNorm();
    Matrix<S> distance = -2 * p.keys * p.keys.transpose();
    distance.colwise() += squares;
    distance.rowwise() += squares.transpose();
    distance = (distance.cwiseMax(S(0)) / static_cast<S>(image.dim)).cwiseSqrt().eval();
    distance.diagonal().setZero();
    Vector<S> density(image.tokens), score(image.tokens);
    for (Index t = 0; t < image.tokens; ++t) {
      Vector<S> sorted = distance.row(t).transpose();
      std::sort(sorted.begin(), sorted.end());
      density[t] = std::exp(-sorted.head(5).cwiseAbs2().mean());
    }
    for (Index t = 0; t < image.tokens; ++t) {
      S parent = distance.maxCoeff();
      for (Index other = 0; other < image.tokens; ++other)
        if (density[other] > density[t]) parent = std::min(parent, distance(t, other));
      score[t] = parent * density[t];
    }
    const std::vector<Index> order = best_of(image.tokens, [&](Index a, Index b) { return score[a] > score[b]; });
    Matrix<S> out = Matrix<S>::Zero(image.rows, image.features);
    Vector<S> count = Vector<S>::Zero(image.rows);
    for (Index t = 0; t < image.tokens; ++t) {
      Index to = 0;
      for (Index c = 0; c < image.rows; ++c) {
        const Index centre = order[static_cast<std::size_t>(c)];
        if (centre == t || distance(t, centre) < distance(t, order[static_cast<std::size_t>(to)])) to = c;
        if (centre == t) break;
      }
      out.row(to) += p.hidden.row(t);
      count[to] += 1;
    }
    return count.cwiseInverse().asDiagonal() * out;
  }
};

/// `run(pixels, out)` against the reference.
template <class Run>
void measure_rows(benchmark::State& state, const Image& image, const Matrix<double>& reference, std::size_t bytes, Run run) {
  const Pixels<float> p = pixels(image);
  Matrix<float> out(image.rows, image.features);
  run(p, out);
  const double error = rel_err(out, reference);
  if (!(error < 1e-4)) return state.SkipWithError("wrong rows");
  for (auto _ : state) {
    state.SetIterationTime(seconds_of([&] { run(p, out); }));
    keep(out);
  }
  state.counters["bytes"] = static_cast<double>(bytes);
  state.counters["rel_err"] = error;
}

/// pith's way and the dense one, as a pair of cases.
template <class Reference, class Baseline, class Run>
void add_pair(const std::string& name, const Image& image, Reference reference, Baseline baseline, std::size_t bytes, Run run) {
  const auto expected = [=] {
    const Pixels<float> p = pixels(image);
    return reference(Pixels<double>{p.keys.cast<double>(), p.hidden.cast<double>(), p.attention.cast<double>()}, image);
  };
  const Index whole = name == "tome" ? image.tokens * image.tokens / 4 : image.tokens * image.tokens;  // and the rows normalised
  const auto dense_bytes = static_cast<std::size_t>(whole + image.tokens * image.dim) * sizeof(float);
  add(
      name, [=](benchmark::State& state, const Image& c) { measure_rows(state, c, expected(), bytes, run); }, image);
  add(
      name + "_eigen",
      [=](benchmark::State& state, const Image& c) {
        measure_rows(state, c, expected(), dense_bytes, [&](const Pixels<float>& p, Matrix<float>& out) { out = baseline(p, c); });
      },
      image);
}

void add_images() {
  for (const Image& image : {Image{197, 64, 768, 184}, Image{577, 64, 1024, 489}}) {
    const std::size_t bytes = token_match_workspace_bytes<float>(image.tokens, image.dim) + TokenMap<float>::workspace_bytes(image.tokens);
    add_pair("tome", image, Dense::tome<double>, Dense::tome<float>, bytes,
             [=, map = TokenMap<float>(image.tokens), ws = std::make_shared<Workspace>(bytes)](const Pixels<float>& p,
                                                                                               Matrix<float>& out) mutable {
               match_bipartite(p.keys, {.r = image.tokens - image.rows}, map, *ws);
               map.merge(p.hidden, out, MassWeighted{}, *ws);
             });
  }
  const Image image{576, 1024, 1024, 59};
  const std::size_t prumerge_bytes = prumerge_workspace_bytes<float>(image.tokens, image.rows - 1, image.dim);
  add_pair("prumerge", image, Dense::prumerge<double>, Dense::prumerge<float>, prumerge_bytes,
           [=, ws = std::make_shared<Workspace>(prumerge_bytes)](const Pixels<float>& p, Matrix<float>& out) {
             std::vector<std::int32_t> kept(static_cast<std::size_t>(image.rows - 1));
             top_rows<float>(p.attention, kept, *ws);
             prumerge<float>({p.hidden, p.keys, p.attention}, kept, 32, out, *ws);
           });
  const std::size_t diverse_bytes = diverse_workspace_bytes<float>(image.tokens, image.dim);
  add_pair("divprune", image, Dense::divprune<double>, Dense::divprune<float>, diverse_bytes,
           [=, ws = std::make_shared<Workspace>(diverse_bytes)](const Pixels<float>& p, Matrix<float>& out) {
             std::vector<std::int32_t> picked(static_cast<std::size_t>(image.rows));
             pick_diverse<float>(p.keys, picked, *ws);
             for (Index i = 0; i < image.rows; ++i) out.row(i) = p.hidden.row(picked[static_cast<std::size_t>(i)]);
           });
  const std::size_t cluster_bytes = cluster_workspace_bytes<float>(image.tokens) + TokenMap<float>::workspace_bytes(image.tokens);
  add_pair("clusters", image, Dense::clusters<double>, Dense::clusters<float>, cluster_bytes,
           [=, map = TokenMap<float>(image.tokens), ws = std::make_shared<Workspace>(cluster_bytes)](const Pixels<float>& p,
                                                                                                     Matrix<float>& out) mutable {
             match_clusters(p.keys, {.clusters = image.rows, .order = RowOrder::published}, map, *ws);
             map.merge(p.hidden, out, Averaged{}, *ws);
           });
}

const bool registered = [] {
  for (const Case c : {Case{2048, 128}, Case{8192, 128}}) {
    add("nearest", nearest, c);
    add("eigen", eigen, c);
  }
  add_images();
  return true;
}();

}  // namespace
