// Replays every file of published token-merging code under <golden>/merge.
//
// Shapes and rules come from the files: what a file is, its metadata says as `kind`. A kind that no test replays fails, and so does a
// tensor that no test reads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/merging_cache.hpp"
#include "golden/support/replay_folder.hpp"
#include "golden/support/vlm_trace.hpp"
#include "support/catch.hpp"
#include "support/products.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_merge {
namespace {

using Ids = std::vector<std::int32_t>;

/// What the files' README allows a float32 implementation.
double allowed(double expected) { return 2e-6 + 1e-5 * std::abs(expected); }

void check_number(double ours, double theirs) {
  INFO("ours " << ours << ", theirs " << theirs);
  CHECK(std::abs(ours - theirs) <= allowed(theirs));
}

/// The last two axes at these leading indices.
Matrix<float> slice(const Tensor& tensor, std::initializer_list<Index> at) {
  REQUIRE(tensor.shape.size() == at.size() + 2);
  Matrix<float> out(tensor.extent(at.size()), tensor.width());
  Index first = 0;
  std::size_t axis = 0;
  for (const Index i : at) first = first * tensor.extent(axis++) + i;
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(tensor.values[first * out.size() + i]);
  return out;
}

Vector<float> vector_of(std::span<const double> row) { return ConstVectorRef<double>(row).cast<float>(); }
Ids ids_of(std::span<const Token> row) { return {row.begin(), row.end()}; }

template <class Ours> void check_rows(const Ours& ours, const Tensor& theirs, std::initializer_list<Index> at) {
  const Matrix<float> expected = slice(theirs, at);
  REQUIRE(ours.rows() == expected.rows());
  REQUIRE(ours.cols() == expected.cols());
  Index wrong = 0;
  for (Index i = 0; i < expected.rows(); ++i)
    for (Index j = 0; j < expected.cols(); ++j)
      wrong += !(std::abs(double(ours(i, j)) - double(expected(i, j))) <= allowed(double(expected(i, j))));
  CHECK(wrong == 0);
}

template <class Ours> void check_numbers(const Ours& ours, std::span<const double> theirs) {
  REQUIRE(ours.size() == static_cast<Index>(theirs.size()));
  for (Index i = 0; i < ours.size(); ++i) check_number(double(ours[i]), theirs[static_cast<std::size_t>(i)]);
}

Matrix<float> gathered(const Matrix<float>& rows, const Ids& ids) {
  Matrix<float> out(static_cast<Index>(ids.size()), rows.cols());
  for (Index i = 0; i < out.rows(); ++i) out.row(i) = rows.row(ids[static_cast<std::size_t>(i)]);
  return out;
}

/// Of 0 … n-1 those that are not among the ids.
Ids others(const Ids& ids, Index n) {
  Ids out;
  for (std::int32_t t = 0; t < n; ++t)
    if (std::find(ids.begin(), ids.end(), t) == ids.end()) out.push_back(t);
  return out;
}

Ids best(const Vector<float>& scores, Index count) {
  Ids out(static_cast<std::size_t>(count));
  Workspace ws(top_rows_workspace_bytes(scores.size()));
  top_rows<float>(scores, out, ws);
  return out;
}

Index int_of(const nlohmann::json& config, const char* key) { return config.at(key).get<Index>(); }

// ------------------------------------------------------------------------------------------------------------ evicted rows

/// The rows of one head that stay and those that leave, and where these go.
struct Eviction {
  Matrix<float> kept_k, kept_v, k, v;
  Ids match;
  Vector<float> cosine;

  Eviction(const Matrix<float>& keys, const Matrix<float>& values, const Ids& kept, const Ids& evicted)
      : kept_k(gathered(keys, kept)),
        kept_v(gathered(values, kept)),
        k(gathered(keys, evicted)),
        v(gathered(values, evicted)),
        match(evicted.size()),
        cosine(k.rows()) {
    Workspace ws(nearest_workspace_bytes<float>(kept_k.rows(), k.cols()));
    nearest_rows<float>(k, kept_k, match, cosine, ws);
  }

  /// Where the rows go that a rule's gate lets pass.
  template <class Rule> Ids gated(const Rule& rule) const {
    Ids into = match;
    const LayerMatches<float>::Head head{into, cosine, kept_k.rows()};
    LayerMatches<float> matches(std::span(&head, 1));
    rule.gate(matches, VectorRef<float>());
    return into;
  }

  template <class Rule> std::pair<Matrix<float>, Matrix<float>> merged(const Rule& rule, const Ids& into) const {
    Matrix<float> keys = kept_k, values = kept_v;
    Workspace ws(merge_workspace_bytes<float>(keys.rows(), k.rows()));
    merge_rows(MergedRows<float>{keys, values}, {k, v}, {into, cosine}, rule, ws);
    return {keys, values};
  }
};

/// Rows of one head by a rule, against <name>_k and <name>_v.
template <class Rule>
void check_merged(Golden& golden, const std::string& name, Index head, const Eviction& rows, const Rule& rule, const Ids& into) {
  INFO(name << ", head " << head);
  const auto [keys, values] = rows.merged(rule, into);
  check_rows(keys, golden.get(name + "_k"), {head});
  check_rows(values, golden.get(name + "_v"), {head});
}

void lookm_merge(Golden& golden) {
  const Tensor k = golden.get("k"), v = golden.get("v"), scores = golden.get("score");
  const Index heads = k.extent(0), tokens = k.extent(1), recent = golden.number("recent_size"), sinks = golden.number("sinks");
  CHECK(golden.number("hh_size") == rows_at_keep_ratio(tokens, golden.real("hh_ratio")));
  CHECK(recent == rows_at_keep_ratio(tokens, golden.real("recent_ratio")));
  const Tensor keep = golden.get("keep_idx"), leave = golden.get("evict_idx"), mask = golden.get("keep_mask");
  const Tensor match = golden.get("match"), cosines = golden.get("match_sim");
  std::vector<Eviction> all;
  for (Index h = 0; h < heads; ++h) {
    INFO("head " << h);
    Vector<float> score = vector_of(scores.row({h}));
    if (golden.has("attn")) check_numbers(slice(golden.get("attn"), {h}).colwise().sum(), scores.row({h}));
    score.head(sinks).setConstant(std::numeric_limits<float>::infinity());
    Ids kept = best(score.head(tokens - recent), golden.number("hh_size"));
    for (Index t = tokens - recent; t < tokens; ++t) kept.push_back(static_cast<std::int32_t>(t));
    std::sort(kept.begin(), kept.end());
    const Ids evicted = others(kept, tokens);
    CHECK(kept == ids_of(keep.id_row({h})));
    CHECK(evicted == ids_of(leave.id_row({h})));
    for (std::int32_t t = 0; t < tokens; ++t)
      CHECK((mask.id_row({h})[static_cast<std::size_t>(t)] != 0) == std::binary_search(kept.begin(), kept.end(), t));
    const Eviction& rows = all.emplace_back(slice(k, {h}), slice(v, {h}), kept, evicted);
    CHECK(rows.match == ids_of(match.id_row({h})));
    check_numbers(rows.cosine, cosines.row({h}));
    if (golden.has("similarity")) {
      Matrix<float> whole(rows.k.rows(), rows.kept_k.rows());
      Workspace ws(nearest_workspace_bytes<float>(whole.rows() + whole.cols(), rows.k.cols()));
      similarity_matrix<float>(rows.k, rows.kept_k, whole, ws);
      check_rows(whole, golden.get("similarity"), {h});
    }
  }
  // A slot, the same place in the lists of all heads, passes if its mean cosine is no less than the mean of all.
  Vector<float> slots = Vector<float>::Zero(all.front().k.rows());
  for (const Eviction& rows : all) slots += rows.cosine / static_cast<float>(heads);
  const Ids gate = ids_of(golden.get("gate").id_row({}));
  Ids passing;
  for (std::int32_t j = 0; j < slots.size(); ++j) {
    CHECK((slots[j] >= slots.mean()) == (gate[static_cast<std::size_t>(j)] != 0));
    if (slots[j] >= slots.mean()) passing.push_back(j);
  }
  for (Index h = 0; h < heads; ++h) {
    const Eviction& rows = all[static_cast<std::size_t>(h)];
    check_merged(golden, "pivot", h, rows, Pivotal{}, rows.match);
    check_merged(golden, "avg", h, rows, Averaged{}, rows.match);
    check_merged(golden, "weighted", h, rows, Weighted{}, rows.match);
    Ids gated(rows.match.size(), -1), misaligned = gated;
    for (std::size_t i = 0; i < passing.size(); ++i) {
      const auto slot = static_cast<std::size_t>(passing[i]);
      gated[slot] = rows.match[slot];
      misaligned[i] = rows.match[slot];  // as released: targets are filtered, the rows that go there are not
    }
    check_merged(golden, "avg_gated", h, rows, Averaged{}, gated);
    check_merged(golden, "weighted_gated", h, rows, Weighted{}, gated);
    if (golden.has("avg_executed_k")) check_merged(golden, "avg_executed", h, rows, Averaged{}, misaligned);
  }
}

void normalised_weighted_merge(Golden& golden) {
  const Tensor k = golden.get("k"), v = golden.get("v"), keep = golden.get("keep_idx");
  const Tensor match = golden.get("match"), cosines = golden.get("match_sim");
  const Index tokens = k.extent(1), window = golden.number("window");
  CHECK(keep.width() == golden.number("kept_past"));
  for (Index h = 0; h < k.extent(0); ++h) {
    INFO("head " << h);
    Ids kept = ids_of(keep.id_row({h}));
    for (Index t = tokens - window; t < tokens; ++t) kept.push_back(static_cast<std::int32_t>(t));
    const Eviction rows(slice(k, {h}), slice(v, {h}), kept, others(kept, tokens));
    CHECK(rows.match == ids_of(match.id_row({h})));
    check_numbers(rows.cosine, cosines.row({h}));
    check_merged(golden, "pivot", h, rows, Pivotal{}, rows.match);
    check_merged(golden, "weighted", h, rows, Normalized{}, rows.match);
  }
}

void value_only_merge(Golden& golden) {
  const Tensor k = golden.get("k"), v = golden.get("v"), keep = golden.get("keep_idx"), ok = golden.get("merge_ok");
  const Tensor cosines = golden.get("match_sim"), weights = golden.get("weights"), merged = golden.get("kept_v");
  const BestShare share(Gated(ValuesOnly{}, golden.real("similarity_threshold")), golden.real("merge_fraction"), ShareOf::evicted);
  CHECK(keep.width() == golden.number("kept"));
  for (Index h = 0; h < k.extent(0); ++h) {
    INFO("head " << h);
    const Ids kept = ids_of(keep.id_row({h}));
    const Eviction rows(slice(k, {h}), slice(v, {h}), kept, others(kept, k.extent(1)));
    check_numbers(rows.cosine, cosines.row({h}));
    const Ids into = rows.gated(share);
    for (std::size_t e = 0; e < into.size(); ++e) {
      const auto row = static_cast<Index>(e);
      CHECK((into[e] >= 0) == (ok.id_row({h})[e] != 0));
      const MergePair<float> pair{rows.cosine[row], 1, 1, rows.kept_v.row(rows.match[e]).norm(), rows.v.row(row).norm()};
      check_number(into[e] >= 0 ? double(ValuesOnly{}.weight(pair)) : 0., weights.row({h})[e]);
    }
    const auto [keys, values] = rows.merged(ValuesOnly{}, into);
    CHECK(keys == rows.kept_k);
    check_rows(values, merged, {h});
  }
}

void cam_value_merge(Golden& golden) {
  const Tensor v = golden.get("v"), attention = golden.get("attn"), uniform = golden.get("uniform");
  const Index heads = golden.number("heads"), tokens = golden.number("tokens"), recent = golden.number("recent");
  const auto check = [&](const std::string& name, const CamRows& compared, auto&& merges) {
    const Tensor mask = golden.get(name + ".mask"), probability = golden.get(name + ".prob");
    for (Index h = 0; h < heads; ++h) {
      INFO(name << ", head " << h);
      const Vector<float> weights = vector_of(attention.row({h}));
      const float ratio = cam_ratio<float>(weights, compared);
      check_number(double(ratio), probability.row({})[static_cast<std::size_t>(h)]);
      const bool merge = merges(ratio, static_cast<float>(uniform.values[h]));
      CHECK(merge == (mask.values[h] != 0));
      Matrix<float> values = slice(v, {h});
      if (merge) cam_spread<float>(values, {.row = compared.row, .followers = golden.number("merge_budget")});
      check_rows(values, golden.get(name + ".v"), {h});
    }
  };
  check("hard", {.row = tokens - recent, .sinks = golden.number("start"), .from = tokens - recent},
        [](float ratio, float) { return ratio > 1; });
  check("one_early", {.row = tokens - recent + 1, .from = tokens - recent + 2},
        [](float ratio, float draw) { return cam_merges(ratio, draw); });
}

// ------------------------------------------------------------------------------------------------------------ caches

/// [heads, tokens, head_dim] as [tokens, heads*head_dim].
Matrix<float> all_heads(const Tensor& tensor) {
  Matrix<float> out(tensor.extent(1), tensor.extent(0) * tensor.width());
  for (Index h = 0; h < tensor.extent(0); ++h) out.middleCols(h * tensor.width(), tensor.width()) = slice(tensor, {h});
  return out;
}

std::vector<TokenKind> kinds_by(const std::vector<Token>& modality) {
  std::vector<TokenKind> kinds;
  for (const Token m : modality) kinds.push_back(m == 0 ? TokenKind::text : TokenKind::image);
  return kinds;
}

AnyPolicy<float> text_prior(Golden& golden) {
  const HeavyHitter scores{.heavy = golden.number("hh_size"), .recent = golden.number("recent_size")};
  return Protect(PromptOnly(scores), {.kind = TokenKind::text});
}

/// The newest tokens attend, and the policy watches if it wants to.
Matrix<float> look(MergingCache& cache, const Matrix<float>& q, Index last) {
  Matrix<float> out(q.rows(), q.cols());
  Workspace ws(attend_workspace_bytes<float>(cache.shape(), cache.size(0) + q.rows(), 1, q.rows()));
  if (cache.watching())
    attend(q, cache.view(), out, ws, cache.observer(), {.observe_last = last});
  else
    attend(q, cache.view(), out, ws);
  return out;
}

void lookm_text_prior_merge(Golden& golden) {
  const Tensor k = golden.get("k"), v = golden.get("v"), scores = golden.get("score"), keep = golden.get("keep_idx");
  const Tensor leave = golden.get("evict_idx"), match = golden.get("match"), cosines = golden.get("match_sim");
  const Tensor mask = golden.get("keep_mask");
  const Index heads = k.extent(0), tokens = k.extent(1), recent = golden.number("recent_size");
  const std::vector<Token> modality = golden.ids("modality"), gate = golden.ids("gate");
  CHECK(golden.number("hh_size") == rows_at_keep_ratio(tokens, golden.real("hh_ratio")));
  CHECK(recent == rows_at_keep_ratio(tokens, golden.real("recent_ratio")));
  // Where the images are, and what the released code adds to scores: with low bits lost, and so for policies to do without.
  const std::vector<Token> places = golden.ids("image_position"), starts = golden.ids("image_start");
  const Index a_image = golden.number("tokens_per_image");
  for (std::size_t i = 0; i < places.size(); ++i) {
    CHECK(starts[i] == places[i] + static_cast<Token>(i) * static_cast<Token>(a_image - 1));
    for (Index t = 0; t < a_image; ++t) CHECK(modality[static_cast<std::size_t>(starts[i] + t)] == 1);
  }
  const Vector<float> bias = vector_of(golden.get("bias").row({}));
  for (Index t = 0; t < tokens; ++t)
    CHECK(bias[t] == (modality[static_cast<std::size_t>(t)] == 1 || t >= tokens - recent ? -65516.f : 0.f));
  for (Index h = 0; h < heads; ++h) CHECK(vector_of(scores.row({h})) + bias == vector_of(golden.get("biased_score").row({h})));

  const auto check = [&](const std::string& name, const auto& rule) {
    const auto seen = std::make_shared<SeenMatches>();
    MergingCache cache({heads, heads, k.width()}, text_prior(golden), {.max_chunk = tokens}, Watched(rule, seen));
    cache.append(all_heads(k), all_heads(v), {.phase = Phase::prefill, .kinds = kinds_by(modality)});
    for (Index h = 0; h < heads; ++h) show_sums(cache, h, scores.row({h}), tokens);
    cache.evict();
    for (Index h = 0; h < heads; ++h) {
      INFO(name << ", head " << h);
      Ids kept(cache.positions(h).begin(), cache.positions(h).end());
      std::sort(kept.begin(), kept.end());
      REQUIRE(kept == ids_of(keep.id_row({h})));
      CHECK(golden.number("kept") == static_cast<Index>(kept.size()));
      CHECK(others(kept, tokens) == ids_of(leave.id_row({h})));
      for (std::int32_t t = 0; t < tokens; ++t)
        CHECK((mask.id_row({h})[static_cast<std::size_t>(t)] != 0) == std::binary_search(kept.begin(), kept.end(), t));
      const SeenMatches::Head& matched = seen->before[static_cast<std::size_t>(h)];
      for (std::size_t e = 0; e < matched.rows.size(); ++e) {
        const Position to = cache.positions(h)[static_cast<std::size_t>(matched.rows[e])];
        CHECK(to == kept[static_cast<std::size_t>(match.id_row({h})[e])]);
        if (name.ends_with("gated")) CHECK((seen->after[static_cast<std::size_t>(h)].rows[e] >= 0) == (gate[e] != 0));
      }
      check_numbers(ConstVectorRef<float>(matched.cosines), cosines.row({h}));
      check_rows(by_age(cache, h, true), golden.get(name + "_k"), {h});
      check_rows(by_age(cache, h, false), golden.get(name + "_v"), {h});
    }
  };
  check("pivot", Pivotal{});
  check("avg", Averaged{});
  check("weighted", Weighted{});
  check("avg_gated", SlotGate(Averaged{}));
  check("weighted_gated", SlotGate(Weighted{}));
  Index text = 0;
  for (Index t = 0; t < tokens - recent; ++t) text += modality[static_cast<std::size_t>(t)] == 0;
  CHECK(text == golden.number("text_tokens_before_recent"));
}

/// A whole attention layer: the prompt attends before anything is merged, then tokens are decoded over the merged cache.
void lookm_attention_layer(Golden& golden) {
  const Index heads = golden.number("heads"), d = golden.number("head_dim"), prompt = golden.number("prompt");
  const auto matrix = [&](const std::string& name) { return slice(golden.get(name), {}); };
  const Matrix<float> x = matrix("x"), wq = matrix("wq"), wk = matrix("wk"), wv = matrix("wv"), wo = matrix("wo");
  const std::vector<TokenKind> kinds = kinds_by(golden.ids("modality"));
  const Rope<float> rope({.head_dim = d});
  MergingCache cache({heads, heads, d}, text_prior(golden), {.max_chunk = prompt, .max_generated = golden.number("decode_steps")},
                     Pivotal{});
  const auto near_enough = [](const Matrix<float>& ours, const Matrix<float>& theirs) {
    REQUIRE((ours.rows() == theirs.rows() && ours.cols() == theirs.cols()));
    CHECK(((ours - theirs).array().abs() <= 1e-5f + 1e-4f * theirs.array().abs()).all());
  };
  const auto call = [&](Index first, Index n, Phase phase) {
    const auto projected = [&](const Matrix<float>& w) -> Matrix<float> {
      return pith_test::times_transposed(x.middleRows(first, n), w).cast<float>();
    };
    const Matrix<float> v = projected(wv);
    Matrix<float> q = projected(wq), k = projected(wk);
    Ids positions(static_cast<std::size_t>(n));
    std::iota(positions.begin(), positions.end(), static_cast<Position>(first));
    rope.rotate(q, positions);
    rope.rotate(k, positions);
    cache.append(k, v, {.phase = phase, .kinds = std::span(kinds).subspan(0, phase == Phase::prefill ? kinds.size() : 0)});
    const Matrix<float> out = pith_test::times_transposed(look(cache, q, n), wo).cast<float>();
    for (Index h = 0; h < heads && phase == Phase::prefill; ++h) near_enough(cache.stats(h), slice(golden.get("score"), {}).row(h));
    cache.evict();
    return out;
  };
  const auto check_cache = [&](const std::string& when) {
    for (Index h = 0; h < heads; ++h) {
      INFO(when << ", head " << h);
      near_enough(by_age(cache, h, true), slice(golden.get("cache_k_" + when), {h}));
      near_enough(by_age(cache, h, false), slice(golden.get("cache_v_" + when), {h}));
    }
  };
  near_enough(call(0, prompt, Phase::prefill), matrix("prefill_out"));
  const Tensor mask = golden.get("keep_mask");
  for (Index h = 0; h < heads; ++h)
    for (Position t = 0; t < prompt; ++t)
      CHECK((mask.id_row({h})[static_cast<std::size_t>(t)] != 0) == (std::ranges::count(cache.positions(h), t) > 0));
  check_cache("prefill");
  for (Index step = 0; step < golden.number("decode_steps"); ++step)
    near_enough(call(prompt + step, 1, Phase::decode), matrix("decode_out").row(step));
  check_cache("last");
}

void csp_select(Golden& golden) {
  const Tensor q = golden.get("q"), k = golden.get("k"), v = golden.get("v"), self = golden.get("self_idx"),
               cross = golden.get("cross_idx");
  const Index heads = q.extent(0), tokens = q.extent(1), recent = golden.number("recent_size"), newest = golden.number("kv_recent_size");
  const std::vector<TokenKind> kinds = kinds_by(golden.ids("modality"));
  CHECK(newest == static_cast<Index>(std::floor(double(recent) * golden.real("kv_recent_bias"))));  // above 1 in some data sets
  const Csp policy{.heavy = golden.number("hh_size"),
                   .recent = recent,
                   .protects = newest,
                   .cross_ratio = golden.real("cross_ratio"),
                   .n = golden.real("softmax_n")};
  CHECK(self.width() == golden.number("k_self"));
  CHECK(cross.width() == golden.number("k_cross"));
  MergingCache cache({heads, heads, q.width()}, policy, {.max_chunk = tokens});
  cache.append(all_heads(k), all_heads(v), {.phase = Phase::prefill, .kinds = kinds});
  Matrix<float> out(tokens, heads * q.width());
  const Matrix<float> queries = all_heads(q);
  Workspace ws(attend_workspace_bytes<float>(cache.shape(), tokens, 1, tokens));
  const Tensor window = golden.get("softmax1_window");
  const auto observer = cache.observer();
  const auto watch = [&](const AttentionTile<float>& tile) {
    observer(tile);
    for (Index i = 0; i < tile.weights.rows(); ++i) {
      const Vector<float> theirs = vector_of(window.row({tile.kv_head, tile.first_query + i - (tokens - recent)}));
      const double share = 1 / (1 + golden.real("softmax_n") * std::exp(-double(tile.log_sum[i])));
      for (Index t = 0; t < tokens; ++t) check_number(share * double(tile.weights(i, t)), double(theirs[t]));
    }
  };
  attend(queries, cache.view(), out, ws, watch, {.observe_last = recent});
  for (Index h = 0; h < heads; ++h) {
    check_numbers(Vector<float>(cache.stats(h).row(0).head(tokens - newest).transpose()), golden.get("self_score").row({h}));
    check_numbers(Vector<float>(cache.stats(h).row(1).head(tokens - newest).transpose()), golden.get("cross_score").row({h}));
    CHECK(best(cache.stats(h).row(0).head(tokens - newest).transpose(), self.width()) == ids_of(self.id_row({h})));
    CHECK(best(cache.stats(h).row(1).head(tokens - newest).transpose(), cross.width()) == ids_of(cross.id_row({h})));
  }
  cache.evict();
  Index twice = 0;
  for (Index h = 0; h < heads; ++h) {
    INFO("head " << h);
    Ids stored = ids_of(self.id_row({h}));  // as released: both lists, then the newest; a token of both lists twice
    for (const Token t : cross.id_row({h})) stored.push_back(t);
    for (Index t = tokens - newest; t < tokens; ++t) stored.push_back(static_cast<std::int32_t>(t));
    Ids once = stored, ours(cache.positions(h).begin(), cache.positions(h).end());
    std::sort(once.begin(), once.end());
    std::sort(ours.begin(), ours.end());
    once.erase(std::unique(once.begin(), once.end()), once.end());
    CHECK(ours == once);
    twice += static_cast<Index>(stored.size() - once.size());
    CHECK(gathered(slice(k, {h}), stored) == slice(golden.get("out_k"), {h}));
    CHECK(gathered(slice(v, {h}), stored) == slice(golden.get("out_v"), {h}));
    for (std::size_t r = 0; r < cache.positions(h).size(); ++r) {
      const Position p = cache.positions(h)[r];
      CHECK(cache.keys(h).row(static_cast<Index>(r)) == slice(k, {h}).row(p));
      CHECK(cache.values(h).row(static_cast<Index>(r)) == slice(v, {h}).row(p));
    }
  }
  CHECK(twice == golden.number("duplicates_over_heads"));
}

void d2o_merge(Golden& golden) {
  const Tensor k0 = golden.get("k0"), v0 = golden.get("v0"), score0 = golden.get("score0");
  const Tensor new_k = golden.get("new_k"), new_v = golden.get("new_v"), new_score = golden.get("new_score");
  const Index heads = k0.extent(0), first = golden.number("prefill_plus_one"), sinks = golden.number("sinks");
  const HeavyHitter scores{.heavy = rows_at_keep_ratio(first, golden.real("hh_ratio")),
                           .recent = rows_at_keep_ratio(first, golden.real("recent_ratio"))};
  CHECK(scores.heavy == golden.number("hh_size"));
  CHECK(scores.recent == golden.number("recent_size"));
  const auto seen = std::make_shared<SeenMatches>();
  const MovingThreshold rule(Weighted{}, golden.real("alpha_old"), golden.real("beta_new"));
  MergingCache cache({heads, heads, k0.width()}, Protect(scores, {.sinks = sinks}), {.max_chunk = first}, Watched(rule, seen));
  for (Index step = 0; step <= golden.number("steps"); ++step) {
    const std::string name = "step" + std::to_string(step) + ".";
    INFO(name);
    if (step == 0) {
      cache.append(all_heads(k0), all_heads(v0));
    } else {
      const Matrix<float> k = slice(new_k, {step - 1}), v = slice(new_v, {step - 1});
      cache.append(k.reshaped<Eigen::RowMajor>(1, k.size()).eval(), v.reshaped<Eigen::RowMajor>(1, v.size()).eval());
    }
    std::vector<Ids> held;
    for (Index h = 0; h < heads; ++h) {
      const std::vector<Index> rows = rows_by_age(cache, h);
      const auto given = step == 0 ? score0.row({h}) : new_score.row({step - 1, h});
      std::vector<double> sums(given.size());
      Ids& positions = held.emplace_back();
      for (std::size_t i = 0; i < rows.size(); ++i) {
        sums[static_cast<std::size_t>(rows[i])] = given[i];
        positions.push_back(cache.positions(h)[static_cast<std::size_t>(rows[i])]);
      }
      show_sums(cache, h, sums, step == 0 ? first : 1);
    }
    cache.evict();
    const Tensor mask = golden.get(name + "keep_mask"), match = golden.get(name + "match"), cosines = golden.get(name + "match_sim");
    const std::vector<Token> gate = golden.ids(name + "gate");
    check_number(double(cache.snapshot().gate[0]), golden.get(name + "threshold").values[0]);
    for (Index h = 0; h < heads; ++h) {
      INFO("head " << h);
      const std::vector<Index> rows = rows_by_age(cache, h);
      Ids kept;
      for (std::size_t i = 0; i < held[static_cast<std::size_t>(h)].size(); ++i)
        if (mask.id_row({h})[i] != 0) kept.push_back(held[static_cast<std::size_t>(h)][i]);
      REQUIRE(rows.size() == kept.size());
      for (std::size_t i = 0; i < rows.size(); ++i) CHECK(cache.positions(h)[static_cast<std::size_t>(rows[i])] == kept[i]);
      const SeenMatches::Head &before = seen->before[static_cast<std::size_t>(h)], &after = seen->after[static_cast<std::size_t>(h)];
      REQUIRE(before.rows.size() == gate.size());
      for (std::size_t e = 0; e < gate.size(); ++e) {
        CHECK(cache.positions(h)[static_cast<std::size_t>(before.rows[e])] == kept[static_cast<std::size_t>(match.id_row({h})[e])]);
        CHECK((after.rows[e] >= 0) == (gate[e] != 0));
      }
      check_numbers(ConstVectorRef<float>(before.cosines), cosines.row({h}));
      check_rows(by_age(cache, h, true), golden.get(name + "k"), {h});
      check_rows(by_age(cache, h, false), golden.get(name + "v"), {h});
      const Tensor sums = golden.get(name + "score");
      const auto running = sums.row({h});
      for (std::size_t i = static_cast<std::size_t>(sinks); i < rows.size(); ++i)
        check_number(double(cache.stats(h)(0, rows[i])), running[i]);
      for (std::size_t i = 0; i < static_cast<std::size_t>(sinks); ++i) CHECK(running[i] == -1);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ ToMe

TokenMap<float> bipartite(const Matrix<float>& metric, const BipartiteOptions& options) {
  TokenMap<float> map(metric.rows());
  Workspace ws(token_match_workspace_bytes<float>(metric.rows(), metric.cols()));
  match_bipartite(metric, options, map, ws);
  return map;
}

template <class Rule>
Matrix<float> merged(const TokenMap<float>& map, const Matrix<float>& x, const Rule& rule, TokenMasses<float> mass = {}) {
  Matrix<float> out(map.rows(), x.cols());
  Workspace ws(TokenMap<float>::workspace_bytes(map.tokens()));
  map.merge(x, out, rule, ws, mass);
  return out;
}

/// Even tokens that were merged, those of larger cosines first, and where they went: indices into the even and the odd ones.
void check_pairs(Golden& golden, const std::string& name, Index b, const TokenMap<float>& map, Index protect) {
  Ids sources, destinations, unmerged;
  for (std::int32_t t = 0; t < map.tokens(); ++t) {
    if (map.leaves_to()[static_cast<std::size_t>(t)] >= 0) sources.push_back(t);
    if (t % 2 == 0 && map.leaves_to()[static_cast<std::size_t>(t)] < 0) unmerged.push_back(t / 2);
  }
  std::sort(sources.begin(), sources.end(), [&](std::int32_t x, std::int32_t y) { return map.cosine()[x] > map.cosine()[y]; });
  for (std::int32_t& t : sources) {
    destinations.push_back(map.token_of()[static_cast<std::size_t>(map.row_of()[static_cast<std::size_t>(t)])] / 2);
    t /= 2;
  }
  CHECK(sources == ids_of(golden.get(name + ".src_idx").id_row({b})));
  CHECK(destinations == ids_of(golden.get(name + ".dst_idx").id_row({b})));
  Ids theirs = ids_of(golden.get(name + ".unm_idx").id_row({b}));
  if (protect == 0) std::sort(theirs.begin(), theirs.end());  // their order is that of the rows
  CHECK(unmerged == theirs);
}

void tome_case(Golden& golden, const std::string& name) {
  const auto config = golden.json(name);
  const bool distill = config.at("distill_token").get<bool>();
  const Index protect = Index(config.at("class_token").get<bool>()) + Index(distill);
  const BipartiteOptions options{.r = int_of(config, "r"), .protect = protect, .order = RowOrder::published};
  const Tensor metric = golden.get(name + ".metric"), x = golden.get(name + ".x"), source = golden.get(name + ".source");
  CHECK(clipped_r(metric.extent(1), options) == int_of(config, "r_effective"));
  for (Index b = 0; b < int_of(config, "batch"); ++b) {
    INFO(name << ", batch " << b);
    const TokenMap<float> map = bipartite(slice(metric, {b}), options);
    REQUIRE(map.rows() == int_of(config, "tokens_out"));
    if (golden.has(name + ".src_idx")) check_pairs(golden, name, b, map, protect);
    const Matrix<float> rows = slice(x, {b});
    const Matrix<float> mean = merged(map, rows, Averaged{});
    check_rows(mean, golden.get(name + ".mean"), {b});
    Vector<float> sizes(map.rows());
    check_rows(merged(map, rows, MassWeighted{}, {{}, sizes}), golden.get(name + ".wavg"), {b});
    check_rows(sizes, golden.get(name + ".size"), {b});
    Matrix<float> members = Matrix<float>::Zero(map.rows(), map.tokens());
    for (Index t = 0; t < map.tokens(); ++t) members(map.row_of()[static_cast<std::size_t>(t)], t) = 1;
    CHECK(members == slice(source, {b}));
    if (!golden.has(name + ".unmerged")) continue;
    Matrix<float> back(map.tokens(), rows.cols());
    map.unmerge(mean, back);
    check_rows(back, golden.get(name + ".unmerged"), {b});
  }
}

void tome_chain(Golden& golden) {
  const auto config = golden.json("chain");
  const Tensor x = golden.get("chain.x0");
  for (Index b = 0; b < int_of(config, "batch"); ++b) {
    Matrix<float> rows = slice(x, {b});
    Vector<float> sizes = Vector<float>::Ones(rows.rows());
    Index layer = 0;
    for (const auto& r : config.at("r")) {
      INFO("batch " << b << ", layer " << layer);
      const Matrix<float> metric = slice(golden.get("chain.metric" + std::to_string(layer)), {b});
      const TokenMap<float> map =
          bipartite(metric, {.r = r.get<Index>(), .protect = config.at("class_token").get<bool>() ? 1 : 0, .order = RowOrder::published});
      Vector<float> after(map.rows());
      rows = merged(map, rows, MassWeighted{}, {sizes, after});
      sizes = after;
      ++layer;
      check_rows(rows, golden.get("chain.x" + std::to_string(layer)), {b});
      check_rows(sizes, golden.get("chain.size" + std::to_string(layer)), {b});
    }
  }
}

/// Proportional attention over rows that stand for several tokens, all heads at once.
void tome_attention(Golden& golden) {
  const auto config = golden.json("prop");
  REQUIRE(config.at("scale").get<std::string>() == "head_dim^-0.5");
  const Index heads = int_of(config, "heads"), tokens = int_of(config, "tokens"), dim = int_of(config, "head_dim");
  const Tensor q = golden.get("prop.q"), k = golden.get("prop.k"), v = golden.get("prop.v"), size = golden.get("prop.size");
  for (Index b = 0; b < int_of(config, "batch"); ++b) {
    INFO("batch " << b);
    Matrix<float> queries(tokens, heads * dim), keys = queries, values = queries, out = queries, metric(tokens, dim);
    for (Index h = 0; h < heads; ++h) {
      queries.middleCols(h * dim, dim) = slice(q, {b, h});
      keys.middleCols(h * dim, dim) = slice(k, {b, h});
      values.middleCols(h * dim, dim) = slice(v, {b, h});
    }
    mean_over_heads<float>(keys, metric);
    check_rows(metric, golden.get("prop.metric"), {b});
    Vector<float> logs(tokens);
    const Vector<float> sizes = slice(size, {b}).col(0);
    log_masses<float>(sizes, logs);
    const AttentionShape shape{heads, heads, dim};
    for (const bool plain : {false, true}) {
      std::vector<KvRun<float>> runs;
      for (Index h = 0; h < heads; ++h)
        runs.push_back({.keys = keys.data() + h * dim,
                        .values = values.data() + h * dim,
                        .rows = tokens,
                        .stride = heads * dim,
                        .log_mass = plain ? nullptr : logs.data()});
      Workspace ws(attend_workspace_bytes<float>(shape, tokens, 1, tokens));
      attend<float>(queries, {.shape = shape, .next = static_cast<Position>(tokens), .runs = runs}, out, ws);
      check_rows(out, golden.get(plain ? "prop.out_plain" : "prop.out"), {b});
    }
  }
}

void tome_every_kth(Golden& golden, const std::string& name) {
  const auto config = golden.json(name);
  const Index k = int_of(config, "k");
  const Tensor metric = golden.get(name + ".metric"), x = golden.get(name + ".x"), destinations = golden.get(name + ".dst_idx");
  for (Index b = 0; b < int_of(config, "batch"); ++b) {
    INFO(name << ", batch " << b);
    TokenMap<float> map(metric.extent(1));
    Workspace ws(token_match_workspace_bytes<float>(metric.extent(1), metric.width()));
    match_every_kth(slice(metric, {b}), {.k = k, .drop_tail = true}, map, ws);
    REQUIRE(map.rows() == int_of(config, "tokens_out"));
    Ids ours;
    for (const std::int32_t row : map.leaves_to())
      if (row >= 0) ours.push_back(row);
    CHECK(ours == ids_of(destinations.id_row({b})));
    check_rows(merged(map, slice(x, {b}), Averaged{}), golden.get(name + ".mean"), {b});
  }
}

void tome_schedule(Golden& golden, const std::string& name) {
  INFO(name);
  const auto config = golden.json(name);
  const auto form = config.at("form").get<std::string>();
  MergeSchedule schedule{.layers = int_of(config, "layers")};
  std::vector<Index> steps;
  if (form == "list") {
    steps = schedule.steps(config.at("r").get<std::vector<Index>>());
  } else {
    REQUIRE((form == "constant" || form == "[r, inflection]"));
    const bool constant = form == "constant";
    schedule.r = (constant ? config.at("r") : config.at("r").at(0)).get<Index>();
    if (!constant) schedule.inflection = config.at("r").at(1).get<double>();
    steps = schedule.steps();
  }
  const std::vector<Token> theirs = golden.ids(name);
  CHECK(steps == std::vector<Index>(theirs.begin(), theirs.end()));
}

void tome(Golden& golden) {
  const auto each = [&](const std::string& kind, auto&& replay) {
    Index i = 0;
    for (; golden.says(kind + std::to_string(i)); ++i) replay(golden, kind + std::to_string(i));
    CHECK(i > 0);
  };
  each("c", tome_case);
  each("kth", tome_every_kth);
  each("sched", tome_schedule);
  tome_chain(golden);
  tome_attention(golden);
}

// ------------------------------------------------------------------------------------------------------------ visual tokens

Matrix<float> plain(Golden& golden, const std::string& name) { return slice(golden.get(name), {}); }

void visionzip(Golden& golden) {
  const auto config = golden.json("vz");
  const Matrix<float> metric = plain(golden, "vz.metric");
  const Index dominant = int_of(config, "dominant"), contextual = int_of(config, "contextual"), tokens = metric.rows();
  CHECK(tokens == int_of(config, "patches") + 1);
  TokenMap<float> map(tokens);
  Workspace ws(visionzip_workspace_bytes<float>(tokens, metric.cols()));
  match_visionzip(plain(golden, "vz.cls_attn"), metric, {.dominant = dominant, .contextual = contextual}, map, ws);
  REQUIRE(map.rows() == 1 + dominant + contextual);
  const Ids ours = ids_of(map.token_of()), kept(ours.begin(), ours.begin() + 1 + dominant);
  CHECK(kept == golden.ids("vz.dominant_idx"));
  const Ids rest = others(kept, tokens);
  Ids targets;
  for (const Token i : golden.ids("vz.target_idx")) targets.push_back(rest[static_cast<std::size_t>(i)]);
  CHECK(Ids(ours.begin() + 1 + dominant, ours.end()) == targets);
  Ids assigned;
  for (const std::int32_t row : map.leaves_to())
    if (row >= 0) assigned.push_back(row - static_cast<std::int32_t>(1 + dominant));
  CHECK(assigned == golden.ids("vz.assign"));
  check_rows(merged(map, plain(golden, "vz.hidden"), TargetPlusMean{}), golden.get("vz.out"), {});
}

void prumerge(Golden& golden) {
  const auto config = golden.json("pm");
  REQUIRE(!config.at("adaptive").get<bool>());
  REQUIRE(config.at("scale").get<std::string>() == "C^-0.5");
  const Matrix<float> x = plain(golden, "pm.x"), k = plain(golden, "pm.k"), q = plain(golden, "pm.q");
  const Index patches = int_of(config, "patches"), count = rows_at_keep_ratio(patches, config.at("ratio").get<double>());
  CHECK(count == int_of(config, "kept"));
  Vector<float> attention(patches);
  Workspace room(Workspace::bytes_for<float>(k.rows()));
  class_attention<float>(q.row(0), k, attention, room);
  check_numbers(attention, golden.get("pm.cls_attn").row({}));
  const Ids kept = best(attention, count);
  CHECK(kept == golden.ids("pm.idx"));
  Matrix<float> out(count + 1, x.cols());
  Workspace ws(prumerge_workspace_bytes<float>(patches, count, k.cols()));
  pith::prumerge<float>({x.bottomRows(patches), k.bottomRows(patches), attention}, kept, int_of(config, "neighbours"), out, ws);
  check_rows(out, golden.get("pm.out"), {});
}

void divprune(Golden& golden) {
  const auto config = golden.json("div");
  const Matrix<float> x = plain(golden, "div.x");
  Ids picked(static_cast<std::size_t>(rows_at_keep_ratio(x.rows(), config.at("ratio").get<double>(), Rounding::nearest)));
  CHECK(static_cast<Index>(picked.size()) == int_of(config, "selected"));
  Workspace ws(diverse_workspace_bytes<float>(x.rows(), x.cols()));
  pick_diverse<float>(x, picked, ws);
  CHECK(picked == golden.ids("div.idx"));
}

void density_peaks(Golden& golden) {
  const auto config = golden.json("dpc");
  const Matrix<float> x = plain(golden, "dpc.x");
  TokenMap<float> map(x.rows());
  Workspace ws(cluster_workspace_bytes<float>(x.rows()));
  match_clusters(x, {.clusters = int_of(config, "clusters"), .neighbours = int_of(config, "knn"), .order = RowOrder::published}, map, ws);
  CHECK(ids_of(map.token_of()) == golden.ids("dpc.centres"));
  CHECK(ids_of(map.row_of()) == golden.ids("dpc.assign"));
  check_rows(merged(map, x, Averaged{}), golden.get("dpc.out"), {});  // their 1e-6 beside the count is within what is allowed
}

void fastv(Golden& golden) {
  const auto config = golden.json("fastv");
  const Matrix<float> attention = plain(golden, "fastv.last_row");
  const ImageTokens image{.first = int_of(config, "system"), .count = int_of(config, "image"), .keep = int_of(config, "keep_image")};
  Ids kept(static_cast<std::size_t>(attention.cols() - image.count + image.keep));
  Workspace ws(keep_image_workspace_bytes<float>(image.count));
  keep_image_tokens<float>(attention, image, kept, ws);
  CHECK(kept == golden.ids("fastv.keep_idx"));
}

void visual_token_reduction(Golden& golden) {
  visionzip(golden);
  prumerge(golden);
  divprune(golden);
  density_peaks(golden);
  fastv(golden);
}

}  // namespace

TEST_CASE("golden.merge: every file of published merging code", "[golden]") {
  const Replays kinds{{"cam_value_merge", cam_value_merge},
                      {"csp_select", csp_select},
                      {"d2o_merge", d2o_merge},
                      {"lookm_attention_layer_text_prior_pivot", lookm_attention_layer},
                      {"lookm_merge", lookm_merge},
                      {"lookm_text_prior_merge", lookm_text_prior_merge},
                      {"normalised_weighted_merge", normalised_weighted_merge},
                      {"tome", tome},
                      {"value_only_merge", value_only_merge},
                      {"visual_token_reduction", visual_token_reduction}};
  replay_folder("merge", "kind", kinds);
}

TEST_CASE("golden.merge: every trace of a model whose prompt has images", "[golden]") {
  int replayed = 0;
  const fs::path folder = golden_folder("model") / "vlm";
  REQUIRE(fs::is_directory(folder));
  for (const auto& entry : fs::directory_iterator(folder)) {
    INFO(entry.path().string());
    Golden trace(entry.path());
    REQUIRE(owner(trace) == Owner::merge);
    if (trace.has("image_row")) continue;  // the image itself, read with each trace
    replay_vlm(folder / "image.safetensors", trace);
    trace.done();
    ++replayed;
  }
  CHECK(replayed > 0);
  std::printf("golden.merge: %d traces replayed\n", replayed);
}

}  // namespace golden_merge
