// Replays every checkpoint and cache trace of the published reference code under <golden>/model.
//
// Everything (shapes, budgets, rules) comes from the files: a directory is what it holds, a trace is what its metadata says. Adapter
// folders, image prompts and the traces of other tests are known by the same marks and left to them; anything else fails.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/catch.hpp"

using namespace pith;
namespace fs = std::filesystem;

namespace {

constexpr double logits_bound = 1e-4, trace_bound = 2e-4;  // what the files' README allows a float32 implementation

fs::path golden() {
  const char* given = std::getenv("PITH_GOLDEN_DIR");
  return fs::path(given != nullptr && *given != '\0' ? given : PITH_GOLDEN_DEFAULT_DIR) / "model";
}

struct Tensor {
  std::vector<Index> shape;
  Vector<double> values;
  std::vector<Token> ids;
  Index extent(std::size_t axis) const { return axis < shape.size() ? shape[axis] : 1; }
  Index width() const { return shape.back(); }
  /// The last axis at these leading indices.
  template <class V> auto row_of(const V& all, std::initializer_list<Index> at) const {
    Index offset = 0;
    std::size_t axis = 0;
    for (const Index i : at) offset = offset * shape[axis++] + i;
    for (; axis + 1 < shape.size(); ++axis) offset *= shape[axis];
    return std::span(all.data() + offset * shape.back(), static_cast<std::size_t>(shape.back()));
  }
  std::span<const double> row(std::initializer_list<Index> at) const { return row_of(values, at); }
  std::span<const Token> id_row(std::initializer_list<Index> at) const { return row_of(ids, at); }
};

/// All of a golden file; every tensor has to be asked for, or done() fails.
class Golden {
 public:
  explicit Golden(const fs::path& path) : path_(path), file_(Safetensors::map(path)), metadata_(file_.metadata()) {
    for (const TensorInfo& info : file_.tensors()) unread_.insert(info.name);
  }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  Tensor get(const std::string& name) {
    unread_.erase(name);
    const TensorInfo& info = file_.at(name);
    Tensor tensor{{info.shape.begin(), info.shape.end()}, {}, {}};
    if (info.dtype == DType::i32 || info.dtype == DType::i16) {
      const Vector<std::int32_t> ids = file_.load_values<std::int32_t>(name);
      tensor.ids.assign(ids.data(), ids.data() + ids.size());
    } else {
      tensor.values = file_.load_values<double>(name);
    }
    return tensor;
  }
  std::vector<Token> ids(const std::string& name) { return get(name).ids; }
  bool says(const std::string& key) const { return metadata_.count(key) == 1; }
  Index number(const std::string& key) const { return std::stoll(metadata_.at(key)); }
  std::string word(const std::string& key) const { return metadata_.at(key); }
  void done() const {
    INFO(path_.string() << ": a tensor that no test reads");
    CHECK(unread_ == std::set<std::string>{});
  }

 private:
  fs::path path_;
  Safetensors file_;
  std::map<std::string, std::string> metadata_;
  std::set<std::string> unread_;
};

template <class Row> double distance(const Row& ours, std::span<const double> theirs) {
  REQUIRE(ours.size() == static_cast<Index>(theirs.size()));
  double worst = 0;
  for (Index i = 0; i < ours.size(); ++i) worst = std::max(worst, std::abs(double(ours[i]) - theirs[static_cast<std::size_t>(i)]));
  return std::isfinite(double(ours.sum())) ? worst : INFINITY;
}

Token argmax(ConstVectorRef<float> row) {
  Index best = 0;
  for (Index i = 1; i < row.size(); ++i)
    if (row[i] > row[best]) best = i;
  return static_cast<Token>(best);
}

template <class Weights> Decoder<float> load(const fs::path& folder, const std::string& config, Weights layout) {
  LoadOptions options;
  options.config = config;
  options.weights = layout;
  return load_decoder(folder, options);
}

SessionOptions room_for(std::size_t tokens) {
  return {.max_prompt = static_cast<Index>(std::max<std::size_t>(tokens, 1)), .max_tokens = static_cast<Index>(tokens) + 128};
}

// ------------------------------------------------------------------------------------------------------------ checkpoints

/// One call at a time after a prefill: rows of logits as the calls return them.
void check_steps(const Decoder<float>& decoder, std::span<const Token> ids, const Tensor& expected) {
  auto session = decoder.start(Dense{}, room_for(ids.size()));
  const std::size_t prompt = ids.size() - static_cast<std::size_t>(expected.extent(0)) + 1;
  CHECK(distance(session.prefill(ids.first(prompt)).row(0), expected.row({0})) < logits_bound);
  for (std::size_t i = prompt; i < ids.size(); ++i)
    CHECK(distance(session.decode(ids[i]).row(0), expected.row({static_cast<Index>(i - prompt + 1)})) < logits_bound);
}

void check_greedy(const Decoder<float>& decoder, std::span<const Token> prompt, Golden& golden) {
  const std::vector<Token> expected = golden.ids("greedy_ids");
  const Tensor margin = golden.get("greedy_margin");
  auto session = decoder.start(Dense{}, room_for(prompt.size() + expected.size()));
  Vector<float> row = session.prefill(prompt).row(0);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    REQUIRE(argmax(row) == expected[i]);
    const float top = row[expected[i]];
    row[expected[i]] = -std::numeric_limits<float>::infinity();
    CHECK(std::abs(double(top - row.maxCoeff()) - margin.values[static_cast<Index>(i)]) < 2 * logits_bound);
    row = session.decode(expected[i]).row(0);
  }
}

/// Cached decoding is full recomputation: bit for bit where the angles of a token do not depend on who follows it.
void check_cached(const Decoder<float>& decoder, std::span<const Token> ids, const Matrix<float>& full) {
  const bool moving =
      decoder.config().rope_scaling.type == RopeType::dynamic && static_cast<Index>(ids.size()) > decoder.config().max_position_embeddings;
  if (moving) return;
  auto session = decoder.start(Dense{}, room_for(ids.size()));
  const std::size_t prompt = ids.size() / 2;
  CHECK(session.prefill(ids.first(prompt)).row(0) == full.row(static_cast<Index>(prompt) - 1));
  for (std::size_t i = prompt; i < ids.size(); ++i) CHECK(session.decode(ids[i]).row(0) == full.row(static_cast<Index>(i)));
}

void check_config(const fs::path& folder, const std::string& config, const fs::path& golden_file) {
  INFO(folder.string() << ", " << config << " against " << golden_file.filename().string());
  const Decoder<float> decoder = load(folder, config, WeightsLayout::packed);
  Golden golden(golden_file);
  const std::vector<Token> ids = golden.ids("input_ids");
  const Tensor logits = golden.get("logits");
  std::optional<Tensor> states;
  if (golden.has("hidden_states")) states = golden.get("hidden_states");
  Index layers_seen = 0;
  const Matrix<float> full = decoder.forward(ids, [&](Index layer, ConstMatrixRef<float> hidden) {
    ++layers_seen;
    if (!states) return;
    for (Index t = 0; t < states->extent(1); ++t) CHECK(distance(hidden.row(t), states->row({layer, t})) < logits_bound);
  });
  CHECK(layers_seen == (states ? states->extent(0) : layers_seen));
  REQUIRE(full.rows() == logits.extent(0));
  for (Index t = 0; t < full.rows(); ++t) CHECK(distance(full.row(t), logits.row({t})) < logits_bound);
  CHECK(load(folder, config, WeightsLayout::mapped).forward(ids) == full);  // mapped weights: the same bits
  check_cached(decoder, ids, full);
  if (golden.has("step_logits")) check_steps(decoder, ids, golden.get("step_logits"));
  if (golden.has("greedy_ids")) check_greedy(decoder, ids, golden);
  if (golden.has("inv_freq")) {
    const Tensor inv_freq = golden.get("inv_freq");
    const DecoderConfig& c = decoder.config();
    const Rope<float> rope(
        {.head_dim = c.head_dim, .theta = c.rope_theta, .scaling = c.rope_scaling, .max_position_embeddings = c.max_position_embeddings});
    for (Index i = 0; i < inv_freq.width(); ++i)
      CHECK(std::abs(double(rope.inv_freq()[i]) - inv_freq.values[i]) <=
            4 * double(std::numeric_limits<float>::epsilon()) * inv_freq.values[i]);
  }
  golden.done();
}

/// golden.X.safetensors is of config.X.json; a config without its own is another spelling of config.json.
void check_checkpoint(const fs::path& folder) {
  std::map<std::string, fs::path> goldens;
  std::vector<std::string> configs;
  const auto middle = [](const std::string& name, std::string_view before, std::string_view after) -> std::optional<std::string> {
    if (name.size() < before.size() + after.size() || name.rfind(before, 0) != 0 || !name.ends_with(after)) return {};
    return name.substr(before.size(), name.size() - before.size() - after.size());
  };
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (const auto suffix = middle(name, "golden", ".safetensors"))
      goldens[*suffix] = entry.path();
    else if (middle(name, "config", ".json"))
      configs.push_back(name);
    else if (!middle(name, "model", ".safetensors") && name != "model.safetensors.index.json")
      FAIL_CHECK("nobody tests " << entry.path().string());
  }
  std::set<std::string> used;
  for (const std::string& config : configs) {
    const std::string suffix = *middle(config, "config", ".json");
    const std::string of = goldens.count(suffix) == 1 ? suffix : "";
    REQUIRE(goldens.count(of) == 1);
    used.insert(of);
    check_config(folder, config, goldens[of]);
  }
  for (const auto& [suffix, path] : goldens)
    if (used.count(suffix) == 0) FAIL_CHECK("no config for " << path.string());
}

// ------------------------------------------------------------------------------------------------------------ traces

/// Positions of one head after a call, from [calls, rows] (all layers and heads alike) or [calls, layers, heads, rows]; -1: unused.
std::vector<Position> kept_by(const Tensor& kept, Index call, Index layer, Index h) {
  std::vector<Position> out;
  for (const Token p : kept.shape.size() == 2 ? kept.id_row({call}) : kept.id_row({call, layer, h}))
    if (p >= 0) out.push_back(p);
  return out;
}

void check_kept(const Session<float>& session, const Tensor& kept, Index call) {
  for (std::size_t layer = 0; layer < session.caches().size(); ++layer) {
    const auto& cache = session.caches()[layer];
    for (Index h = 0; h < cache.shape().num_kv_heads; ++h) {
      std::vector<Position> ours(cache.positions(h).begin(), cache.positions(h).end());
      std::vector<Position> theirs = kept_by(kept, call, static_cast<Index>(layer), h);
      std::sort(ours.begin(), ours.end());
      std::sort(theirs.begin(), theirs.end());
      INFO("call " << call << ", layer " << layer << ", head " << h);
      REQUIRE(ours == theirs);
    }
  }
}

Index row_at(const Session<float>::Cache& cache, Index h, Position p) {
  const auto positions = cache.positions(h);
  return std::find(positions.begin(), positions.end(), p) - positions.begin();
}

/// Accumulated attention [layers, heads, rows], matched by position.
void check_scores(const Session<float>& session, const Tensor& scores, const Tensor& kept, Index call) {
  for (std::size_t layer = 0; layer < session.caches().size(); ++layer) {
    const auto& cache = session.caches()[layer];
    for (Index h = 0; h < cache.shape().num_kv_heads; ++h) {
      const std::vector<Position> positions = kept_by(kept, call, static_cast<Index>(layer), h);
      const auto expected = scores.row({static_cast<Index>(layer), h});
      REQUIRE(positions.size() <= expected.size());
      for (std::size_t r = 0; r < positions.size(); ++r)
        CHECK(std::abs(double(cache.stats(h)(0, row_at(cache, h, positions[r]))) - expected[r]) < trace_bound);
    }
  }
}

/// The leading features of layer 0's rows after the last call, as the reference keeps them: keys before rotation.
void check_rows(const Decoder<float>& decoder, const Session<float>& session, Golden& golden, const Tensor& kept, Index call) {
  const DecoderConfig& c = decoder.config();
  const Rope<float> rope(
      {.head_dim = c.head_dim, .theta = c.rope_theta, .scaling = c.rope_scaling, .max_position_embeddings = c.max_position_embeddings});
  const Tensor k = golden.get("k0_final"), v = golden.get("v0_final");
  const auto& cache = session.caches()[0];
  for (Index h = 0; h < k.extent(0); ++h) {
    const std::vector<Position> positions = kept_by(kept, call, 0, h);
    for (std::size_t r = 0; r < positions.size(); ++r) {
      const Index row = row_at(cache, h, positions[r]);
      Matrix<float> key = cache.keys(h).row(row);
      const Position back = -positions[r];
      rope.rotate_by(key, std::span(&back, 1));
      CHECK(distance(key.row(0).head(k.width()), k.row({h, static_cast<Index>(r)})) < trace_bound);
      CHECK(distance(cache.values(h).row(row).head(v.width()), v.row({h, static_cast<Index>(r)})) < trace_bound);
    }
  }
}

enum class Owner { model, kv, merge, nobody };

/// Who replays a trace, by what it says of itself.
Owner owner(const Golden& trace, const fs::path& path) {
  if (trace.has("image_spans") || trace.has("prompt_ids") || trace.says("kind")) return Owner::merge;
  if (!trace.says("model")) return trace.has("image_row") ? Owner::merge : Owner::nobody;
  if (trace.says("max_gen_len")) return Owner::kv;
  if (trace.says("heavy") && trace.says("recent"))  // heavy hitters at stream or at cache positions: only the name tells
    return path.stem().string().find("streaming") == std::string::npos ? Owner::model : Owner::kv;
  if (trace.says("sinks") && trace.says("recent")) return Owner::model;
  return trace.has("prefill_ids") ? Owner::model : Owner::nobody;
}

AnyPolicy<float> policy_of(const Golden& trace) {
  if (trace.says("heavy")) return HeavyHitter{.heavy = trace.number("heavy"), .recent = trace.number("recent")};
  if (!trace.says("sinks")) return Dense{};
  if (trace.number("sinks") == 0) return Window{.window = trace.number("recent")};
  return SinkWindow{.sinks = trace.number("sinks"), .window = trace.number("recent")};
}

void check_trace(const fs::path& path, Golden& trace, ExecutorRef executor) {
  INFO(path.string());
  const Decoder<float> decoder = load(golden() / trace.word("model"), "config.json", WeightsLayout::packed);
  const bool prompted = trace.has("prefill_ids");
  const std::vector<Token> prompt = prompted ? trace.ids("prefill_ids") : std::vector<Token>{};
  const std::vector<Token> fed = trace.ids(prompted ? "decode_ids" : "ids");
  const Tensor logits = trace.get("logits");
  std::optional<Tensor> kept;
  if (trace.has("kept")) kept = trace.get("kept");
  SessionOptions options = room_for(prompt.size() + fed.size());
  options.executor = executor;
  auto session = decoder.start(policy_of(trace), options);

  Index call = 0;
  REQUIRE(logits.extent(0) == static_cast<Index>(fed.size()) + (prompted ? 1 : 0));
  const auto check = [&](ConstMatrixRef<float> row) {
    INFO("call " << call);
    CHECK(distance(row.row(0), logits.row({call})) < trace_bound);
    if (kept) check_kept(session, *kept, call);
    ++call;
  };
  if (prompted) check(session.prefill(prompt));
  if (trace.has("score_prefill")) check_scores(session, trace.get("score_prefill"), *kept, 0);
  for (const Token token : fed) check(session.decode(token));
  if (trace.has("score_final")) check_scores(session, trace.get("score_final"), *kept, call - 1);
  if (trace.has("k0_final")) check_rows(decoder, session, trace, *kept, call - 1);
  trace.done();
}

}  // namespace

TEST_CASE("golden.model: every checkpoint, config spelling and cache trace", "[golden]") {
  int checkpoints = 0, traces = 0, left_to_others = 0;
  ThreadPool pool(2);
  REQUIRE(fs::is_directory(golden()));
  for (const auto& entry : fs::directory_iterator(golden())) {
    if (entry.is_regular_file() && entry.path().extension() == ".md") continue;
    REQUIRE(entry.is_directory());
    if (fs::exists(entry.path() / "adapter_config.json")) {
      ++left_to_others;  // golden.lora
    } else if (fs::exists(entry.path() / "config.json")) {
      check_checkpoint(entry.path());
      ++checkpoints;
    } else {
      for (const auto& file : fs::directory_iterator(entry.path())) {
        if (file.path().extension() != ".safetensors") {
          FAIL_CHECK("nobody tests " << file.path().string());
          continue;
        }
        Golden trace(file.path());
        switch (owner(trace, file.path())) {
          case Owner::model:
            check_trace(file.path(), trace, traces % 2 == 0 ? ExecutorRef(serial) : ExecutorRef(pool));
            ++traces;
            break;
          case Owner::nobody:
            FAIL_CHECK("nobody tests " << file.path().string());
            break;
          default:
            ++left_to_others;
        }
      }
    }
  }
  CHECK(checkpoints > 0);
  CHECK(traces > 0);
  std::printf("golden.model: %d checkpoints, %d traces replayed; %d left to golden.kv, golden.lora and golden.merge\n", checkpoints, traces,
              left_to_others);
}
