// Replays every trace of published KV-cache code under <golden>/kv, and of whole models those that read a cache at cache positions.
//
// Shapes, budgets and rules come from the files: what a file is, its metadata says as `case`. A case that no test replays fails, and so
// does a tensor that no test reads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv/kivi.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/kv_rows.hpp"
#include "golden/support/model_trace.hpp"
#include "golden/support/parity.hpp"
#include "golden/support/replay_folder.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_kv {
namespace {

// What the files' README allows a float32 implementation.
constexpr double out_bound = 5e-5, trace_score_bound = 1e-3, score_bound = 1e-4, press_bound = 5e-4, scale_bound = 1e-6,
                 softmax_bound = 1e-6;

/// Where a row of 0 and 1 has its ones.
Ids marked(std::span<const Token> mask) {
  Ids out;
  for (std::size_t t = 0; t < mask.size(); ++t)
    if (mask[t] != 0) out.push_back(static_cast<Position>(t));
  return out;
}

Ids positions_from(Position first, Index n) {
  Ids out(static_cast<std::size_t>(n));
  std::iota(out.begin(), out.end(), first);
  return out;
}

void check_kept(const Cache& cache, Index h, const Ids& theirs) {
  INFO("head " << h);
  CHECK(sorted(cache.positions(h)) == theirs);
}

// ------------------------------------------------------------------------------------------------------------ inputs

Matrix<float> matrix_of(const Tensor& tensor) {
  REQUIRE(tensor.shape.size() == 2);
  return tensor.values.reshaped<Eigen::RowMajor>(tensor.extent(0), tensor.extent(1)).cast<float>();
}

/// What an attention layer is given. A file may have the last queries alone.
struct Layer {
  AttentionShape shape;
  Matrix<float> q, k, v;
  Index tokens() const { return k.rows(); }
};

Layer layer_of(Golden& golden, const std::string& queries = "q") {
  const Tensor q = golden.get(queries), k = golden.get("k"), v = golden.get("v");
  return {{q.extent(0), k.extent(0), k.width()}, token_rows(q), token_rows(k), token_rows(v)};
}

Rope<float> rope_of(const Golden& golden, Index head_dim) {
  REQUIRE_THAT(golden.word("rope_style"), pith_test::contains("half-split"));
  return Rope<float>({.head_dim = head_dim, .theta = golden.real("rope_theta")});
}

std::vector<TokenKind> kinds_of(Golden& golden) {
  std::vector<TokenKind> kinds;
  for (const Token is_image : golden.ids("is_image")) kinds.push_back(is_image != 0 ? TokenKind::image : TokenKind::text);
  return kinds;
}

// ------------------------------------------------------------------------------------------------------------ one prompt

/// A cache that has read a prompt and not evicted yet.
Cache read_prompt(const Layer& layer, AnyPolicy<float> policy, std::span<const TokenKind> kinds = {}) {
  Cache cache(layer.shape, std::move(policy), {.max_chunk = layer.tokens(), .max_generated = layer.tokens()});
  cache.append(layer.k, layer.v, {.phase = Phase::prefill, .kinds = kinds});
  look(cache, layer.q);
  return cache;
}

/// Scores [kv heads, tokens], ours times `factor`. Protected rows are +inf in ours; theirs leave them out or give them the most.
void check_scores(const Cache& cache, const std::vector<Vector<float>>& ours, const Tensor& theirs, double factor, double bound) {
  REQUIRE(static_cast<Index>(ours.size()) == theirs.extent(0));
  for (Index h = 0; h < theirs.extent(0); ++h) {
    const Vector<float>& scores = ours[static_cast<std::size_t>(h)];
    const auto expected = theirs.row({h});
    Index compared = 0, protects = 0;
    double largest = -std::numeric_limits<double>::infinity(), least_protected = -largest;
    for (Index r = 0; r < cache.size(h); ++r) {
      const auto token = static_cast<std::size_t>(cache.positions(h)[static_cast<std::size_t>(r)]);
      INFO("head " << h << ", token " << token);
      if (token >= expected.size()) {
        CHECK(std::isinf(scores[r]));
      } else if (std::isinf(scores[r])) {
        least_protected = std::min(least_protected, expected[token]);
        ++protects;
      } else {
        CHECK(std::abs(double(scores[r]) * factor - expected[token]) < bound);
        largest = std::max(largest, expected[token]);
        ++compared;
      }
    }
    CHECK(compared > 0);
    CHECK(compared + protects == static_cast<Index>(expected.size()));
    CHECK(largest <= least_protected);
  }
}

/// Numbers that a policy keeps beside its rows, [kv heads, tokens from the first on].
void check_stats(const Cache& cache, Index stat, const Tensor& theirs, double factor, double bound) {
  REQUIRE(cache.shape().num_kv_heads == theirs.extent(0));
  for (Index h = 0; h < theirs.extent(0); ++h)
    for (Index token = 0; token < theirs.width(); ++token) {
      INFO("head " << h << ", token " << token);
      const Index row = row_at(cache, h, static_cast<Position>(token));
      REQUIRE(row < cache.size(h));
      CHECK(std::abs(double(cache.stats(h)(stat, row)) * factor - theirs.row({h})[static_cast<std::size_t>(token)]) < bound);
    }
}

void check_evicted(Cache& cache, const Tensor& kept) {
  cache.evict();
  REQUIRE(cache.shape().num_kv_heads == kept.extent(0));
  for (Index h = 0; h < kept.extent(0); ++h) check_kept(cache, h, listed(kept.id_row({h})));
}

void check_evicted_to_mask(Cache& cache, const Tensor& mask) {
  cache.evict();
  REQUIRE(cache.shape().num_kv_heads == mask.extent(0));
  for (Index h = 0; h < mask.extent(0); ++h) check_kept(cache, h, marked(mask.id_row({h})));
}

/// "avgpool5"
SnapKv pooled(SnapKv policy, const std::string& name) {
  const std::size_t digits = name.find_first_of("0123456789");
  REQUIRE(digits != std::string::npos);
  const std::string pool = name.substr(0, digits);
  REQUIRE((pool == "avgpool" || pool == "maxpool"));
  policy.pool = pool == "avgpool" ? SnapKv::Pool::average : SnapKv::Pool::largest;
  policy.kernel = std::stoll(name.substr(digits));
  return policy;
}

void snapkv_select(Golden& golden) {
  const Layer layer = layer_of(golden, "q_window");
  const SnapKv plain{.keep = golden.number("capacity"), .window = golden.number("window")};
  const std::string note = golden.word("score_note");
  REQUIRE((note.starts_with("sum over the window") || note.starts_with("mean over the window")));
  const auto queries = static_cast<double>(note.starts_with("sum") ? plain.window : 1);
  for (const std::string variant : golden.json("variants")) {
    int found = 0;
    for (const std::string suffix : {"", "_mean", "_max"}) {
      if (!golden.has(variant + suffix + "_kept")) continue;
      INFO(variant + suffix);
      ++found;
      SnapKv policy = pooled(plain, variant);
      policy.group = suffix == "_max" ? SnapKv::Group::largest : SnapKv::Group::mean;
      Cache cache = read_prompt(layer, policy);
      check_scores(cache, scores_of(cache), golden.get(variant + suffix + "_score"), queries, score_bound);
      check_evicted(cache, golden.get(variant + suffix + "_kept"));
    }
    CHECK(found > 0);
  }
}

void adakv_budgets(Golden& golden) {
  const Layer layer = layer_of(golden, "q_window");
  const SnapKv snap =
      pooled({.keep = golden.number("capacity"), .window = golden.number("window")}, golden.word("pooling") + golden.word("kernel"));
  const Cache base = read_prompt(layer, snap);
  check_scores(base, scores_of(base), golden.get("score"), 1, score_bound);
  Index i = 0;
  for (const auto& config : golden.json("configs")) {
    const std::string name = "c" + std::to_string(i++);
    INFO(name);
    Cache cache =
        read_prompt(layer, Adaptive(snap, {.floor = config.at("floor_alpha").get<double>(), .rule = AdaptiveOptions::Rule::blended}));
    check_evicted_to_mask(cache, golden.get(name + "_mask"));
    const std::vector<Token> sizes = golden.ids(name + "_len");
    for (std::size_t h = 0; h < sizes.size(); ++h) CHECK(cache.size(static_cast<Index>(h)) == sizes[h]);
  }
}

/// The best by these numbers of the tokens before `end`.
Ids best_of(ConstVectorRef<float> numbers, std::span<const Position> positions, Index end, std::size_t count) {
  std::vector<std::pair<float, Position>> order;
  for (std::size_t r = 0; r < positions.size(); ++r)
    if (positions[r] < end) order.emplace_back(-numbers[static_cast<Index>(r)], positions[r]);
  REQUIRE(count <= order.size());
  std::sort(order.begin(), order.end());
  Ids out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(order[i].second);
  return sorted(out);
}

void csp_select(Golden& golden) {
  const Layer layer = layer_of(golden);
  const std::vector<TokenKind> kinds = kinds_of(golden);
  Index i = 0;
  for (const auto& config : golden.json("configs")) {
    const std::string name = "c" + std::to_string(i++);
    INFO(name);
    Csp policy{.heavy = config.at("heavy").get<Index>(),
               .recent = config.at("recent_queries").get<Index>(),
               .protects = config.at("recent_keys").get<Index>(),
               .cross_ratio = config.at("cross_ratio").get<double>(),
               .n = golden.real("n_softmax"),
               .picks = Csp::Picks::both};
    Cache both = read_prompt(layer, policy, kinds);
    check_stats(both, 0, golden.get(name + "_self_score"), 1, score_bound);
    check_stats(both, 1, golden.get(name + "_cross_score"), 1, score_bound);
    // The released code stores a row of both lists twice: that is one row of mass 2.
    const Tensor self = golden.get(name + "_self_ids"), cross = golden.get(name + "_cross_ids");
    const Tensor twice = golden.get(name + "_kept_with_duplicates");
    const Index newest = layer.tokens() - policy.protects;
    for (Index h = 0; h < layer.shape.num_kv_heads; ++h) {
      const auto list = [&](Index stat, const Tensor& ids) {
        const Vector<float> numbers = both.stats(h).row(stat).transpose();
        const Ids ours = best_of(numbers, both.positions(h), newest, static_cast<std::size_t>(ids.width()));
        CHECK(ours == listed(ids.id_row({h})));
        return ours;
      };
      Ids stored = list(0, self);
      for (const Position p : list(1, cross)) stored.push_back(p);
      for (const Position p : positions_from(static_cast<Position>(newest), policy.protects)) stored.push_back(p);
      CHECK(sorted(stored) == listed(twice.id_row({h})));
    }
    check_evicted_to_mask(both, golden.get(name + "_intersection_mask"));
    policy.picks = Csp::Picks::either;
    Cache either = read_prompt(layer, policy, kinds);
    check_evicted_to_mask(either, golden.get(name + "_union_mask"));
  }
}

void lookm_text_prior(Golden& golden) {
  const Layer layer = layer_of(golden);
  const std::vector<TokenKind> kinds = kinds_of(golden);
  const Tensor score = golden.get("score");
  Index i = 0;
  for (const auto& config : golden.json("configs")) {
    const std::string name = "c" + std::to_string(i++);
    INFO(name);
    const HeavyHitter policy{.heavy = config.at("heavy").get<Index>(), .recent = config.at("recent").get<Index>()};
    Cache cache = read_prompt(layer, Protect(PromptOnly(policy), {.kind = TokenKind::text}), kinds);
    check_stats(cache, 0, score, 1, trace_score_bound);
    check_evicted(cache, golden.get(name + "_kept"));
  }
}

void scissorhands_variant(Golden& golden) {
  const Layer layer = layer_of(golden);
  const Index recent = golden.number("recent_size");
  const HeavyHitter sums{.heavy = golden.number("token_budget") - recent, .recent = recent};
  Cache cache = read_prompt(layer, Protect(LastQueries(sums, golden.number("history_window")), {.sinks = golden.number("sink_size")}));
  check_stats(cache, 0, golden.get("score"), 1, score_bound);
  check_evicted(cache, golden.get("kept"));
  // The published counter. No token is old enough for its first half to be forgotten.
  Tensor pivots = golden.get("pivot_count");
  pivots.values = ConstVectorRef<Token>(pivots.ids).cast<double>();
  check_stats(read_prompt(layer, Scissorhands{.keep = layer.tokens(), .history = 2 * layer.tokens()}), 0, pivots, 1, 0.5);
}

// ------------------------------------------------------------------------------------------------------------ one-shot scorers

/// The scorers of one prompt, by name.
class Presses {
 public:
  explicit Presses(Golden& golden)
      : golden_(golden),
        layer_(layer_of(golden)),
        rope_(std::make_shared<const Rope<float>>(rope_of(golden, layer_.shape.head_dim))),
        keep_(rows_at_compression(layer_.tokens(), golden.real("compression_ratio"))) {
    CHECK(keep_ == golden.number("n_kept"));
    const Ids angles = positions_from(0, layer_.tokens());
    rope_->rotate(layer_.q, angles);
    rope_->rotate(layer_.k, angles);
  }

  void knorm() { check("knorm", AsPublished(KeyNorm{keep_})); }
  void keydiff() { check("keydiff", AsPublished(KeyDiff{.keep = keep_})); }
  void snapkv() { check("snapkv", snap()); }
  void tova() {  // this one keeps the newest token
    check("tova", Protect(Tova{keep_}, {.recent = 1}), 1 / static_cast<double>(layer_.shape.num_heads));
  }
  void observed() { check("observed", AsPublished(ObservedAttention{keep_})); }
  void expected() { expected_attention("expected", layer_, expected_policy()); }
  void expected_nocov() {  // the mean query's weights as they are: what values of norm 1 give
    Layer layer = layer_;
    layer.v.setZero();
    for (Index h = 0; h < layer.shape.num_kv_heads; ++h) layer.v.col(h * layer.shape.head_dim).setOnes();
    ExpectedAttention<float> policy = expected_policy();
    policy.epsilon = 0;
    policy.covariance = false;
    expected_attention("expected_nocov", layer, policy);
  }
  void lagkv() {
    check("lagkv", AsPublished(LagKv{.keep = keep_, .sinks = golden_.number("lag_n_sink"), .lag = golden_.number("lag_size")}));
  }
  void cur() {
    const Cur policy{.keep = keep_, .sinks = golden_.number("cur_num_sinks"), .block = golden_.number("cur_local_window")};
    // They are made a share of all, which moves no rank.
    const Cache all = read_prompt(layer_, Cur{.keep = keep_, .sinks = 0, .block = policy.block});
    const std::vector<Vector<float>> plain = scores_of(all);
    Cache cache = read_prompt(layer_, AsPublished(policy));
    std::vector<Vector<float>> shares = scores_of(cache);
    for (std::size_t h = 0; h < plain.size(); ++h) shares[h] /= plain[h].sum();
    check_press(cache, shares, "cur", 1);
  }
  void critical_snapkv() {
    const Matrix<float> wo = matrix_of(golden_.get("wo"));
    CriticalValues<SnapKv> policy(snap(), std::make_shared<const Matrix<float>>(wo));
    policy.epsilon = static_cast<float>(golden_.real("critical_epsilon"));
    policy.first_stage = golden_.real("critical_first_stage_ratio");
    check("critical_snapkv", policy);
  }
  void streaming() {
    const Index sinks = golden_.number("streaming_n_sink");
    Cache cache = read_prompt(layer_, SinkWindow{.sinks = sinks, .window = keep_ - sinks, .positions = RopePositions::text});
    check_evicted(cache, golden_.get("streaming_kept"));
  }
  void chunkkv_knorm() {
    Cache cache = read_prompt(layer_, AsPublished(Chunkwise(KeyNorm{keep_}, golden_.number("chunk_length"))));
    check_evicted(cache, golden_.get("chunkkv_knorm_kept"));
  }
  void adakv() {
    Cache cache = read_prompt(layer_, Adaptive(snap(), {.floor = golden_.real("adakv_alpha")}));
    check_evicted_to_mask(cache, golden_.get("adakv_mask"));
  }

 private:
  SnapKv snap() const { return {.keep = keep_, .window = golden_.number("snap_window"), .kernel = golden_.number("snap_kernel")}; }

  void check(const std::string& name, AnyPolicy<float> policy, double factor = 1) {
    Cache cache = read_prompt(layer_, std::move(policy));
    check_press(cache, scores_of(cache), name, factor);
  }

  void check_press(Cache& cache, const std::vector<Vector<float>>& ours, const std::string& name, double factor) {
    const Tensor theirs = golden_.get(name + "_score");
    double largest = 1;
    for (const double score : theirs.values)
      if (std::isfinite(score)) largest = std::max(largest, score);
    check_scores(cache, ours, theirs, factor, press_bound * largest);
    check_evicted(cache, golden_.get(name + "_kept"));
  }

  void expected_attention(const std::string& name, const Layer& layer, const ExpectedAttention<float>& policy) {
    Cache cache = read_prompt(layer, AsPublished(policy));
    // A cache does not show the memory of a head: the policy is shown the queries once more.
    Matrix<float> memory = Matrix<float>::Zero(layer.shape.num_kv_heads, policy.memory(layer.shape));
    const Index group = layer.shape.group(), d = layer.shape.head_dim;
    const Matrix<float> none;
    for (Index h = 0; h < layer.shape.num_kv_heads; ++h) {
      Matrix<float> queries(layer.tokens() * group, d);
      for (Index q = 0; q < queries.rows(); ++q) queries.row(q) = layer.q.row(q / group).segment((h * group + q % group) * d, d);
      const KvRows<float> rows{h, layer.shape, cache.next_position(), cache.positions(h), cache.kinds(h), cache.stats(h)};
      policy.observe({.kv_head = h, .weights = none, .queries = queries, .first_query = 0}, rows, {}, VectorRef<float>(memory.row(h)));
    }
    check_press(cache, scores_of(cache, memory), name, 1);
  }
  ExpectedAttention<float> expected_policy() const {
    return {.rope = rope_,
            .keep = keep_,
            .sinks = golden_.number("expected_n_sink"),
            .future = golden_.number("expected_n_future"),
            .epsilon = static_cast<float>(golden_.real("expected_epsilon"))};
  }

  Golden& golden_;
  Layer layer_;
  std::shared_ptr<const Rope<float>> rope_;
  Index keep_;
};

void kvpress_scorers(Golden& golden) {
  const std::map<std::string, void (Presses::*)()> known{{"knorm", &Presses::knorm},
                                                         {"keydiff", &Presses::keydiff},
                                                         {"snapkv", &Presses::snapkv},
                                                         {"tova", &Presses::tova},
                                                         {"observed", &Presses::observed},
                                                         {"expected", &Presses::expected},
                                                         {"expected_nocov", &Presses::expected_nocov},
                                                         {"lagkv", &Presses::lagkv},
                                                         {"cur", &Presses::cur},
                                                         {"critical_snapkv", &Presses::critical_snapkv},
                                                         {"streaming", &Presses::streaming},
                                                         {"chunkkv_knorm", &Presses::chunkkv_knorm},
                                                         {"adakv", &Presses::adakv}};
  Presses presses(golden);
  int found = 0;
  for (const std::string& name : golden.names())
    for (const std::string ending : {"_kept", "_mask"}) {
      if (!name.ends_with(ending)) continue;
      const std::string press = name.substr(0, name.size() - ending.size());
      INFO(press);
      REQUIRE(known.count(press) == 1);
      (presses.*known.at(press))();
      ++found;
    }
  CHECK(found > 0);
}

// ------------------------------------------------------------------------------------------------------------ traces

/// Chunks of a stream, each appended, attended and evicted in turn; tensors are called `prefix` + what they are. check(cache, call) sees
/// what is left after each.
template <class Check> void replay(Golden& golden, const Layer& layer, AnyPolicy<float> policy, const std::string& prefix, Check&& check) {
  const Rope<float> rope = rope_of(golden, layer.shape.head_dim);
  const std::vector<Token> chunks = golden.ids(prefix + "chunks");
  const Tensor out = golden.get(prefix + "out");
  Cache cache(layer.shape, std::move(policy), {.max_chunk = *std::max_element(chunks.begin(), chunks.end())});
  Index first = 0;
  for (std::size_t call = 0; call < chunks.size(); ++call) {
    INFO(prefix << "call " << call);
    const Index n = chunks[call];
    const Ids angles = positions_from(cache.query_position(), n), near = positions_from(cache.query_position() - cache.gap(), n);
    Matrix<float> q = layer.q.middleRows(first, n), q_sinks = q, k = layer.k.middleRows(first, n);
    rope.rotate(q, angles);
    rope.rotate(q_sinks, near);
    rope.rotate(k, angles);
    cache.append(k, layer.v.middleRows(first, n));
    const Matrix<float> ours = look(cache, q, {.q_sinks = q_sinks, .gap = cache.gap()});
    for (Index t = 0; t < n; ++t) CHECK(distance(ours.row(t), out.row({first + t})) < out_bound);
    cache.evict();
    cache.reindex(rope);
    check(cache, static_cast<Index>(call));
    first += n;
  }
  CHECK(first == layer.tokens());
}

void streaming_llm_attention(Golden& golden) {
  const Layer layer = layer_of(golden);
  REQUIRE_THAT(golden.word("positions"), pith_test::contains("slot index inside the cache"));
  const Tensor kept = golden.get("kept_ids");
  const std::vector<Token> sizes = golden.ids("kept_len");
  replay(golden, layer, SinkWindow{.sinks = golden.number("start_size"), .window = golden.number("recent_size")}, "",
         [&](const Cache& cache, Index call) {
           for (Index h = 0; h < layer.shape.num_kv_heads; ++h) {
             check_kept(cache, h, listed(kept.id_row({call})));
             CHECK(cache.size(h) == sizes[static_cast<std::size_t>(call)]);
           }
         });
}

/// One or several readings of the same stream: tensors carry the reading's name, or the file has only one and says which.
void h2o_real_drop(Golden& golden) {
  const Layer layer = layer_of(golden);
  if (golden.says("group_reduction")) REQUIRE(golden.word("group_reduction").starts_with("sum"));
  const HeavyHitter policy{.heavy = golden.number("heavy_size"), .recent = golden.number("recent_size")};
  int found = 0;
  for (const std::string reading : {"original", "compact"}) {
    const bool alone = golden.says("positions") && golden.word("positions") == reading;
    const std::string prefix = alone ? "" : reading + "_";
    if (!golden.has(prefix + "kept")) continue;
    ++found;
    const Tensor kept = golden.get(prefix + "kept"), score = golden.get(prefix + "score");
    const AnyPolicy<float> read = reading == "compact" ? AnyPolicy<float>(AtCachePositions(policy)) : AnyPolicy<float>(policy);
    replay(golden, layer, read, prefix, [&](const Cache& cache, Index call) {
      for (Index h = 0; h < layer.shape.num_kv_heads; ++h) {
        const Ids ids = listed(kept.id_row({call, h}));
        check_kept(cache, h, ids);
        for (std::size_t slot = 0; slot < ids.size(); ++slot) {
          const Index row = row_at(cache, h, ids[slot]);
          REQUIRE(row < cache.size(h));
          CHECK(std::abs(double(cache.stats(h)(0, row)) - score.row({call, h})[slot]) < trace_score_bound);
        }
      }
    });
  }
  CHECK(found > 0);
}

void tova(Golden& golden) {
  const Layer layer = layer_of(golden);
  REQUIRE(golden.word("positions") == "original");
  const Tensor kept = golden.get("kept");
  replay(golden, layer, Tova{golden.number("cache_size")}, "", [&](const Cache& cache, Index call) {
    for (Index h = 0; h < layer.shape.num_kv_heads; ++h) check_kept(cache, h, listed(kept.id_row({call})));
  });
}

void h2o_masked_simulation(Golden& golden) {
  Layer layer = layer_of(golden);
  REQUIRE(golden.word("positions") == "original");
  const Rope<float> rope = rope_of(golden, layer.shape.head_dim);
  const Ids angles = positions_from(0, layer.tokens());
  rope.rotate(layer.q, angles);
  rope.rotate(layer.k, angles);
  const Index prompt = golden.number("prefill");
  const auto share = [&](const char* ratio) { return static_cast<Index>(golden.real(ratio) * static_cast<double>(prompt)); };
  const Index heavy = share("heavy_ratio"), recent = share("recent_ratio");
  CHECK(heavy == golden.number("heavy_budget"));
  CHECK(recent == golden.number("recent_budget"));
  const Tensor out = golden.get("out"), visible = golden.get("visible_next"), score = golden.get("score");
  MaskedHeavyHitters masked(layer.shape, heavy, recent, layer.tokens());
  Index seen = 0;
  for (Index step = 0; step < score.extent(0); ++step) {
    INFO("step " << step);
    const Index n = step == 0 ? prompt : 1;
    const Matrix<float> ours = masked.call(layer.q.middleRows(seen, n), layer.k.topRows(seen + n), layer.v.topRows(seen + n));
    for (Index t = 0; t < n; ++t) CHECK(distance(ours.row(t), out.row({seen + t})) < out_bound);
    seen += n;
    for (Index h = 0; h < layer.shape.num_kv_heads; ++h) {
      Ids next;
      for (Index t = 0; t <= seen; ++t)
        if (masked.visible(h, t)) next.push_back(static_cast<Position>(t));
      CHECK(next == marked(visible.id_row({step, h})));
      for (Index t = 0; t < score.width(); ++t)
        CHECK(std::abs(double(masked.score(h, t)) - score.row({step, h})[static_cast<std::size_t>(t)]) < trace_score_bound);
    }
  }
  CHECK(seen == layer.tokens());
}

/// The published cache counts slots: once sinks were dropped, the rows behind them are its sinks. pith's stay the first tokens.
void promote_sinks(Cache& cache, Index sinks) {
  KvSnapshot<float> snapshot = cache.snapshot();
  snapshot.lost_initial = 0;
  snapshot.heads[1] = sinks;  // where the window begins
  cache.restore(snapshot);
}

/// The bookkeeping alone: the key of a token is its id. Operations count rows in order of age.
void streaming_llm_cache_trace(Golden& golden) {
  const Tensor ops = golden.get("ops"), kept = golden.get("kept_ids");
  const std::vector<Token> sizes = golden.ids("kept_len");
  const nlohmann::json codes = golden.json("op_codes");
  Index tokens = 1;
  for (Index i = 0; i < ops.extent(0); ++i) tokens += ops.id_row({i})[1];
  Cache cache({1, 1, 1}, SinkWindow{golden.number("start_size"), golden.number("recent_size"), RopePositions::text}, {.max_chunk = tokens});
  for (Index i = 0; i < ops.extent(0); ++i) {
    const auto op = ops.id_row({i});
    const std::string what = codes.at(std::to_string(op[0])).get<std::string>();
    INFO("operation " << i << ": " << what);
    if (what.starts_with("append")) {
      Matrix<float> ids(op[1], 1);
      for (Index t = 0; t < ids.rows(); ++t) ids(t, 0) = static_cast<float>(cache.next_position() + t);
      cache.append(ids, ids);
    } else if (what.starts_with("evict to capacity")) {
      cache.evict();
    } else if (what.starts_with("make room")) {
      cache.evict(op[1]);
    } else if (what.starts_with("drop slots")) {
      const Ids ids = sorted(cache.positions(0));
      const auto first = static_cast<std::size_t>(op[1]), last = std::min(static_cast<std::size_t>(op[2]), ids.size());
      if (first < last) cache.drop(ids[first], ids[last - 1] + 1);
      promote_sinks(cache, golden.number("start_size"));
    } else {
      FAIL("no such operation");
    }
    check_kept(cache, 0, listed(kept.id_row({i})));
    CHECK(cache.size(0) == sizes[static_cast<std::size_t>(i)]);
    for (Index r = 0; r < cache.size(0); ++r)
      CHECK(cache.keys(0)(r, 0) == static_cast<float>(cache.positions(0)[static_cast<std::size_t>(r)]));
  }
}

// ------------------------------------------------------------------------------------------------------------ pieces

void key_rerotation(Golden& golden) {
  const Tensor k = golden.get("k"), kept = golden.get("kept"), rerotated = golden.get("rerotated"), fresh = golden.get("fresh");
  const Matrix<float> raw = token_rows(k), theirs = token_rows(golden.get("k_rotated"));
  const AttentionShape shape{k.extent(0), k.extent(0), k.width()};
  const Rope<float> rope = rope_of(golden, shape.head_dim);
  Matrix<float> keys = raw;
  rope.rotate(keys, positions_from(0, keys.rows()));
  for (Index t = 0; t < keys.rows(); ++t) CHECK((keys - theirs).row(t).cwiseAbs().maxCoeff() < out_bound);

  // Eviction to these rows, then reindex().
  Chosen chosen;
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    const Ids ids = listed(kept.id_row({h}));
    chosen.kept.emplace_back(ids.begin(), ids.end());
  }
  Cache cache(shape, AtCachePositions(chosen), {.max_chunk = keys.rows()});
  cache.append(theirs, theirs);
  cache.evict();
  cache.reindex(rope);
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    const Ids ids = listed(kept.id_row({h}));
    check_kept(cache, h, ids);
    for (std::size_t slot = 0; slot < ids.size(); ++slot) {
      INFO("head " << h << ", slot " << slot);
      const auto to = static_cast<Position>(slot), by = to - ids[slot];
      const auto expected = rerotated.row({h, to}), afresh = fresh.row({h, to});
      Matrix<float> turned = theirs.row(ids[slot]).segment(h * shape.head_dim, shape.head_dim), rotated = head_of(k, h).row(ids[slot]);
      rope.rotate_by(turned, {&by, 1});
      rope.rotate(rotated, {&to, 1});
      CHECK(distance(turned.row(0), expected) < out_bound);
      CHECK(distance(rotated.row(0), afresh) < out_bound);
      CHECK(distance(cache.keys(h, cache.rope_positions()).row(row_at(cache, h, ids[slot])), expected) < out_bound);
    }
  }
}

void pyramid_budgets(Golden& golden) {
  const auto compare = [&](const std::string& name, auto&& budgets_of) {
    if (!golden.has(name + "_rows")) return;
    const Tensor rows = golden.get(name + "_rows");
    std::vector<Index> ours;
    for (Index i = 0; i < rows.extent(0); ++i)
      for (const Index budget : budgets_of(rows.id_row({i}), i)) ours.push_back(budget);
    const std::vector<Token> theirs = golden.ids(name + "_budget");
    CHECK(ours == std::vector<Index>(theirs.begin(), theirs.end()));
  };
  compare("press", [&](std::span<const Token> row, Index i) {
    return Pyramid{.layers = row[1], .window = row[2], .beta = row[3]}.budgets_at(golden.get("press_ratio").values[i], row[0]);
  });
  compare("factory", [&](std::span<const Token> row, Index) {
    return Pyramid{.layers = row[2], .window = row[3], .beta = row[4]}.budgets(row[1], row[0]);
  });
}

/// Keys and values of a head, as an eviction leaves them to a rule: values alone change.
/// Tensors are called n<number>.
void n_softmax(Golden& golden) {
  const Matrix<float> x = matrix_of(golden.get("x"));
  for (const std::string& name : golden.names()) {
    if (name.front() != 'n') continue;
    INFO(name);
    Matrix<float> ours = x;
    softmax_n<float>(ours, std::stof(name.substr(1)));
    const Tensor theirs = golden.get(name);
    for (Index r = 0; r < ours.rows(); ++r) CHECK(distance(ours.row(r), theirs.row({r})) < softmax_bound);
  }
}

void check_codes(std::span<const std::uint8_t> ours, std::span<const Token> theirs) {
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    INFO("code " << i);
    CHECK(Token(ours[i]) == theirs[i]);
  }
}

void kivi(Golden& golden) {
  const int bits = static_cast<int>(golden.number("bits"));
  const Index group = golden.number("group");
  const auto check = [&](const std::string& name, auto&& encode) {
    const Tensor x = golden.get(name), codes = golden.get(name + "_code");
    const Tensor scales = golden.get(name + "_scale"), minima = golden.get(name + "_min");
    for (Index h = 0; h < x.extent(0); ++h) {
      INFO(name << ", head " << h);
      const Matrix<float> numbers = head_of(x, h).topRows(codes.extent(1));
      std::vector<std::uint8_t> ours(static_cast<std::size_t>(numbers.size()));
      Matrix<float> scale(scales.extent(1), scales.width()), minimum = scale;
      encode(numbers, bits, group, ours, scale, minimum);
      check_codes(ours, std::span(codes.ids).subspan(static_cast<std::size_t>(h) * ours.size(), ours.size()));
      for (Index g = 0; g < scale.rows(); ++g) {
        CHECK(distance(scale.row(g), scales.row({h, g})) < scale_bound);
        CHECK(distance(minimum.row(g), minima.row({h, g})) < scale_bound);
      }
    }
  };
  check("k", [](auto&&... all) { kivi_encode_keys<float>(all...); });
  check("v", [](auto&&... all) { kivi_encode_values<float>(all...); });
}

/// ggml's blocks, row by row.
void blocks(Golden& golden) {
  const Matrix<float> x = matrix_of(golden.get("x"));
  const Tensor q8_numbers = golden.get("q8_0_dequant"), q4_numbers = golden.get("q4_0_dequant");
  std::vector<std::uint8_t> q8, q4;
  const auto push = [](std::vector<std::uint8_t>& all, std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) all.push_back(std::to_integer<std::uint8_t>(b));
  };
  for (Index r = 0; r < x.rows(); ++r) {
    INFO("row " << r);
    std::vector<std::byte> row(static_cast<std::size_t>(q8_row_bytes(x.cols())));
    q8_encode(&x(r, 0), x.cols(), row.data());
    push(q8, row);
    Vector<float> decoded(x.cols());
    q8_decode(row.data(), x.cols(), decoded.data());
    CHECK(distance(decoded, q8_numbers.row({r})) == 0);
    for (Index i = 0; i < x.cols(); i += Index(Q4Block::numbers)) {
      const Q4Block block = Q4Block::encode(&x(r, i));
      push(q4, block.bytes);
      for (std::size_t j = 0; j < Q4Block::numbers; ++j) decoded[i + Index(j)] = block.number(j);
    }
    CHECK(distance(decoded, q4_numbers.row({r})) == 0);
  }
  check_codes(q8, golden.ids("q8_0_bytes"));
  check_codes(q4, golden.ids("q4_0_bytes"));
  // A cache's rows are the same bytes.
  KvCache<Q8> cache({1, 1, x.cols()}, {}, {.max_tokens = x.rows()});
  cache.append(x, x);
  const KvRun<Q8> run = cache.view().runs.front();
  CHECK(std::equal(q8.begin(), q8.end(), reinterpret_cast<const std::uint8_t*>(run.keys)));
  CHECK(std::equal(q8.begin(), q8.end(), reinterpret_cast<const std::uint8_t*>(run.values)));
}

void kv_quant(Golden& golden) {
  kivi(golden);
  blocks(golden);
}

// ------------------------------------------------------------------------------------------------------------ whole models

/// A chat: before each prompt room is made for the turn, and nothing leaves during it. A turn may overflow their budget: ours is larger by
/// `spare`, and so is the room that is asked for.
void chat(Golden& trace) {
  const Decoder<float> decoder = load(golden_folder("model") / trace.word("model"), "config.json", WeightsLayout::packed);
  const std::vector<Token> ids = trace.ids("ids"), prompts = trace.ids("prompt_len"), sizes = trace.ids("cache_len_after_turn");
  const Tensor logits = trace.get("logits"), kept = trace.get("kept_before_prompt");
  const Index answer = trace.number("max_gen_len"), spare = static_cast<Index>(ids.size());
  auto session = decoder.start(SinkWindow{.sinks = trace.number("sinks"), .window = trace.number("recent") + spare}, room_for(ids.size()));
  std::span<const Token> rest(ids);
  Index call = 0;
  const auto check = [&](ConstMatrixRef<float> row) {
    INFO("call " << call);
    CHECK(distance(row.row(0), logits.row({call++})) < trace_bound);
  };
  for (std::size_t turn = 0; turn < prompts.size(); ++turn) {
    INFO("turn " << turn);
    session.make_room(prompts[turn] + answer + spare);
    check_kept(session, kept, static_cast<Index>(turn));
    const auto prompt = static_cast<std::size_t>(prompts[turn]);
    check(session.prefill(rest.first(prompt)));
    rest = rest.subspan(prompt);
    for (Index t = 1; t < answer; ++t, rest = rest.subspan(1)) check(session.decode(rest.front()));
    for (const Cache& cache : session.caches())
      for (Index h = 0; h < cache.shape().num_kv_heads; ++h) CHECK(cache.size(h) == sizes[turn]);
  }
  CHECK(rest.empty());
  CHECK(call == logits.extent(0));
  trace.done();
}

}  // namespace

TEST_CASE("golden.kv: every trace of published cache code", "[golden]") {
  const Replays cases{{"adakv_budgets", adakv_budgets},
                      {"csp_select", csp_select},
                      {"h2o_masked_simulation", h2o_masked_simulation},
                      {"h2o_real_drop", h2o_real_drop},
                      {"h2o_real_drop_gqa", h2o_real_drop},
                      {"key_rerotation", key_rerotation},
                      {"kv_quant", kv_quant},
                      {"kvpress_scorers", kvpress_scorers},
                      {"lookm_text_prior", lookm_text_prior},
                      {"n_softmax", n_softmax},
                      {"pyramid_budgets", pyramid_budgets},
                      {"scissorhands_variant", scissorhands_variant},
                      {"snapkv_select", snapkv_select},
                      {"streaming_llm_attention", streaming_llm_attention},
                      {"streaming_llm_cache_trace", streaming_llm_cache_trace},
                      {"tova", tova},
                      {"values-only merging of the best share", values_only_share}};
  replay_folder("kv", "case", cases);
}

TEST_CASE("golden.kv: every trace of a whole model at cache positions", "[golden]") {
  int replayed = 0;
  std::error_code no_models;  // golden.model fails then
  for (const auto& entry : fs::recursive_directory_iterator(golden_folder("model"), no_models)) {
    const fs::path folder = entry.path().parent_path();
    if (entry.path().extension() != ".safetensors" || fs::exists(folder / "config.json") || fs::exists(folder / "adapter_config.json"))
      continue;
    Golden trace(entry.path());
    if (owner(trace) != Owner::kv) continue;  // golden.model fails where there is no owner
    INFO(entry.path().string());
    if (trace.says("max_gen_len")) {
      chat(trace);
    } else {
      check_trace(entry.path(), trace, AtCachePositions(HeavyHitter{.heavy = trace.number("heavy"), .recent = trace.number("recent")}),
                  serial);
    }
    ++replayed;
  }
  std::printf("golden.kv: %d traces of models replayed\n", replayed);
}

}  // namespace golden_kv
