// A whole decoder of any Llama shape: a random checkpoint is written, loaded as any other, and asked for tokens. A program of its own, not
// a set of Google Benchmark cases: see --help.
//
// load      seconds: to load it; unchecked: without looking for NaN; reading: to read the file's bytes once. All from the system's cache,
//           the better of two
// pp<n>     a prompt of n tokens; of_peak: share of the multiply-adds that the same threads can do, measured in between
// tg@<n>    tokens decoded after n others. Their rows are put into the caches as random numbers, not computed: how many are attended,
//           scored and evicted does not depend on them
//           /skip:<n>: rows of n thousandths of a softmax may stay unread (/scouts: keys as well); needed: the share that could not, for
//           all heads of a group together. Random keys are not a text's: --spread says how far logits spread
// lora<r>   (-bf16: with A and B in bfloat16) the same as tg@0 with LoRA of rank r on every projection: over is what it adds to the time,
// bytes to MB/token, both in percent.
//           Its B is 0, which costs as much as any other: every logit has to be the plain model's, bit for bit
// batch<n>  a token of each of n sessions, decoded together; in turns with one session alone, whose logits have to be those it has in the
//           batch, bit for bit. times_one: a pass of the batch over the token alone; MB/token: what a pass moves, for each token
// MB/token  weights of all projections and the head, once, and the cached rows that a token attends to
// of_read   time in which the same threads read as many bytes as a token moves, over a token's time, measured in between: 1 is the limit
// RSS_MB    the most memory resident at once (load: while loading), less the buffer that reading is measured on
// rel_err   logits of a prompt and the tokens after it against the model without a cache in double, both on a small checkpoint of the same
//           heads (or on your own, if that is small): a larger error than the rows' width explains ends the program with 1
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/prebuilt.hpp>

#include "support/context.hpp"
#include "support/decoder_arguments.hpp"
#include "support/measure.hpp"
#include "support/pace.hpp"
#include "support/random_checkpoint.hpp"
#include "support/report.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

constexpr double mega = 1e6;

/// What --weights names: how a random checkpoint stores them, and how they are loaded.
struct WeightsKind {
  std::string name;
  std::optional<DType> file;  ///< unset: the file is the user's
  WeightsLayout layout;
  double tolerance;  ///< against the same numbers in double
  Compute compute = Compute::exact;
  LoadOptions options() const { return {.weights = layout, .compute = compute}; }
};
const std::vector<WeightsKind> weights_kinds{{"f32", DType::f32, WeightsLayout::packed, 1e-5},
                                             {"bf16", DType::bf16, WeightsLayout::packed, 1e-5},
                                             {"f16", DType::f16, WeightsLayout::packed, 1e-5},
                                             {"bf16+bf16", DType::bf16, WeightsLayout::packed, 5e-2, Compute::bf16},
                                             {"int8", DType::f32, WeightsLayout::int8, 3e-2},
                                             {"int8+int15", DType::f32, WeightsLayout::int8, 3e-2, Compute::int15},
                                             {"int4", DType::f32, WeightsLayout::int4, 5e-1},
                                             {"own", {}, WeightsLayout::packed, 1e-5},
                                             {"own+bf16", {}, WeightsLayout::packed, 5e-2, Compute::bf16},
                                             {"own-int8", {}, WeightsLayout::int8, 1e-1},
                                             {"own-int8+int15", {}, WeightsLayout::int8, 1e-1, Compute::int15},
                                             {"own-int4", {}, WeightsLayout::int4, 5e-1}};

template <class T> constexpr double rows_tolerance = 0;
template <> constexpr double rows_tolerance<half> = 5e-3;
template <> constexpr double rows_tolerance<bfloat16> = 3e-2;
template <> constexpr double rows_tolerance<Q8> = 3e-2;
template <> constexpr double rows_tolerance<Kv<Q8, Rotated<Q4>>> = 3e-1;
template <> constexpr double rows_tolerance<Rotated<Q4>> = 3e-1;

template <class Use> void with_rows(const std::string& name, Use&& use) {
  if (name == "f32") return use.template operator()<float>();
  if (name == "bf16") return use.template operator()<bfloat16>();
  if (name == "f16") return use.template operator()<half>();
  if (name == "q8+q4") return use.template operator()<Kv<Q8, Rotated<Q4>>>();
  if (name == "q4") return use.template operator()<Rotated<Q4>>();
  use.template operator()<Q8>();
}

void write_checkpoint(const std::filesystem::path& folder, const DecoderConfig& c, DType dtype) {
  if (dtype == DType::f32) return write_random_checkpoint<float>(folder, c);
  if (dtype == DType::bf16) return write_random_checkpoint<bfloat16>(folder, c);
  write_random_checkpoint<half>(folder, c);
}

std::vector<Token> random_tokens(Index count, Index vocab) {
  std::mt19937_64 rng(2);
  std::vector<Token> tokens(static_cast<std::size_t>(count));
  for (Token& t : tokens) t = static_cast<Token>(rng() % static_cast<std::uint64_t>(vocab));
  return tokens;
}

/// A policy for each layer: some need the layer's weights.
std::vector<AnyPolicy<float>> policies_of(const Decoder<float>& decoder, const PolicyChoice& choice) {
  const DecoderConfig& c = decoder.config();
  const auto rope = std::make_shared<const Rope<float>>(c.rope());
  std::vector<AnyPolicy<float>> out;
  for (const LayerWeights<float>& layer : decoder.weights().layers) {
    PolicyModel<float> model{.rope = rope};
    if (choice.name == "critical") {
      const auto o = std::make_shared<Matrix<float>>(layer.o_proj.out(), layer.o_proj.in());
      layer.o_proj.copy_weight(0, *o);
      model.o_proj = o;
    }
    out.push_back(make_policy(choice.name, choice.budget, model));
  }
  return out;
}

/// A checkpoint small enough to be computed in double.
struct Reference {
  Decoder<float> decoder;
  std::vector<Token> tokens;
  Matrix<double> logits;

  Reference(const std::filesystem::path& folder, const WeightsKind& kind)
      : decoder(load_decoder(folder, kind.options())),
        tokens(random_tokens(24, decoder.vocab_size())),
        logits(load_decoder<double>(folder).forward(tokens)) {}

  template <KvStorage T> double error(const PolicyChoice& policy, ExecutorRef executor) const {
    const Index prompt = 16, n = static_cast<Index>(tokens.size());
    const PolicyChoice roomy{policy.name, std::max(policy.budget, 2 * n)};
    auto session = decoder.start<T>(policies_of(decoder, roomy), {.max_prompt = prompt, .max_tokens = n, .executor = executor});
    Matrix<float> out(n - prompt + 1, decoder.vocab_size());
    out.row(0) = session.prefill(std::span(tokens).first(static_cast<std::size_t>(prompt))).row(0);
    for (Index t = prompt; t < n; ++t) out.row(t - prompt + 1) = session.decode(tokens[static_cast<std::size_t>(t)]).row(0);
    return rel_err(out, logits.bottomRows(out.rows()));
  }
};

/// LoRA of this rank on every projection of a decoder, with B = 0.
ModelAdapter<float> lora_of(const Decoder<float>& decoder, Index rank, const std::string& factors) {
  const AdapterTarget target = decoder.adapter_target();
  AdapterParts<float> parts{.layers = std::vector<LayerAdapter<float>>(static_cast<std::size_t>(target.num_layers))};
  for (LayerAdapter<float>& layer : parts.layers)
    for (std::size_t p = 0; p < num_projections; ++p) {
      const Index in = target.in(Projection(p)), out = target.out(Projection(p));
      const LoraAdapter<float> lora(random_matrix(rank, in, p + 1), Matrix<float>(Matrix<float>::Zero(out, rank)), {.alpha = double(rank)});
      if (factors == "bf16")
        layer.projections[p].narrow_terms.push_back(LowRankTerm<float, bfloat16>::of(lora));
      else
        layer.projections[p].terms.push_back(LowRankTerm<float>::of(lora));
    }
  return {target, std::move(parts)};
}

class Bench {
 public:
  explicit Bench(DecoderArguments arguments) : a_(std::move(arguments)) {}

  void run() {
    if (!a_.out.empty()) out_.open(a_.out);
    if (!a_.out.empty() && !out_) throw std::runtime_error("cannot open " + a_.out.string() + " for writing");
    for (const std::string& name : a_.weights)
      for (const WeightsKind& kind : weights_kinds)
        if (kind.name == name) measure(kind);
    if (a_.out.empty()) return report_.write(std::cout, a_.format);
    report_.write(std::cout, "md");
    report_.write(out_, a_.format);
    if (!out_.flush()) throw std::runtime_error("cannot write " + a_.out.string());
  }

 private:
  struct Case {
    std::string rows;
    PolicyChoice policy;
    ExecutorRef executor;
    double error;
  };

  void measure(const WeightsKind& kind) {
    weights_ = kind.name;
    std::optional<TemporaryFolder> temporary;
    std::filesystem::path folder = a_.folder;
    if (kind.file) {
      if (!fits(*kind.file)) return;
      temporary.emplace(a_.folder);
      folder = temporary->path();
      write_checkpoint(folder, a_.config, *kind.file);
    } else {
      a_.config = read_config(folder / "config.json");
    }
    const Reference reference = reference_for(kind, folder);
    load(kind, folder);
    temporary.reset();
    for (const std::string& rows : a_.rows)
      for (const Index threads : a_.threads) {
        ThreadPool pool(threads);
        for (const PolicyChoice& policy : a_.policies)
          with_rows(rows, [&]<class T> {
            const double error = reference.template error<T>(policy, pool);
            if (!(error < std::max(kind.tolerance, rows_tolerance<T>)))
              throw std::runtime_error("wrong result: " + kind.name + " weights, " + rows + " rows, " + policy.text() + ": rel_err is " +
                                       std::to_string(error));
            const Case c{rows, policy, pool, error};
            for (const Index prompt : a_.prompts)
              if (prompt > 0) prefill<T>(c, prompt);
            for (const Index context : policy.bounded() ? a_.bounded_contexts : a_.contexts)
              for (const Index skip : a_.skips) decode<T>(c, context, skip);
            for (const Index batch : a_.batches) decode_batch<T>(c, batch);
            for (const Index rank : a_.ranks)
              for (const std::string& factors : a_.factors) decode_adapted<T>(c, rank, factors);
          });
      }
    decoder_.reset();
  }

  /// Whether a random checkpoint finds room: the file, which a folder in memory holds as well, and what is loaded of it.
  bool fits(DType dtype) const {
    const DecoderConfig& c = a_.config;
    double weights = static_cast<double>(c.hidden_size) * static_cast<double>(c.vocab_size) * 2;
    const LayerWeights<float> layer;
    detail::for_each_projection(layer, c, [&](const char*, const auto&, Index out, Index in) {
      weights += static_cast<double>(out) * static_cast<double>(in) * static_cast<double>(c.num_hidden_layers);
    });
    const double needed = 2 * weights * dtype_bits(dtype) / 8 + (1u << 30);
    const auto available = static_cast<double>(available_memory());
    if (available == 0 || needed < available) return true;
    std::fprintf(stderr, "decoder: %s %s skipped: it takes %.1f GB of memory, %.1f are available\n", a_.model.c_str(), weights_.c_str(),
                 needed * 1e-9, available * 1e-9);
    return false;
  }

  Reference reference_for(const WeightsKind& kind, const std::filesystem::path& folder) const {
    constexpr std::uintmax_t small_file = std::uintmax_t(64) << 20;
    if (!kind.file && file_bytes(folder) <= small_file) return Reference(folder, kind);
    DecoderConfig c = a_.config;
    const Index group = c.num_attention_heads / c.num_key_value_heads;
    c.num_hidden_layers = 2;
    c.num_key_value_heads = std::min<Index>(c.num_key_value_heads, 2);
    c.num_attention_heads = group * c.num_key_value_heads;
    c.hidden_size = std::min<Index>(c.hidden_size, 256);
    c.intermediate_size = std::min<Index>(c.intermediate_size, 512);
    c.vocab_size = std::min<Index>(c.vocab_size, 512);
    const TemporaryFolder small(kind.file ? a_.folder : std::filesystem::temp_directory_path());
    write_checkpoint(small.path(), c, kind.file.value_or(DType::f32));
    return Reference(small.path(), kind);
  }

  static std::uintmax_t file_bytes(const std::filesystem::path& folder) {
    std::uintmax_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
    return bytes;
  }

  static double read_seconds(const std::filesystem::path& folder) {
    std::vector<char> buffer(std::size_t(4) << 20);
    return seconds_of([&] {
      for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        std::ifstream file(entry.path(), std::ios::binary);
        while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()))) keep(buffer);
      }
    });
  }

  void load(const WeightsKind& kind, const std::filesystem::path& folder) {
    const double reading = read_seconds(folder);
    double unchecked = std::numeric_limits<double>::infinity(), seconds = unchecked;
    for (int round = 0; round < 2; ++round) {  // the first one also pays for memory that the system has yet to find
      const auto load_once = [&](bool check_finite) {
        decoder_.reset();
        PeakMemory::begin();
        LoadOptions options = kind.options();
        options.check_finite = check_finite;
        return seconds_of([&] { decoder_.emplace(load_decoder(folder, options)); });
      };
      unchecked = std::min(unchecked, load_once(false));
      seconds = std::min(seconds, load_once(true));
    }
    const DecoderConfig& c = decoder_->config();
    const auto add = [&](const AnyLinear<float>& linear, double& numbers) {
      numbers += static_cast<double>(linear.in()) * static_cast<double>(linear.out());
      weight_bytes_ += static_cast<double>(linear.bytes());
    };
    weight_bytes_ = layer_numbers_ = head_numbers_ = 0;
    for (const LayerWeights<float>& layer : decoder_->weights().layers)
      detail::for_each_projection(layer, c, [&](const char*, const auto& linear, Index, Index) { add(linear, layer_numbers_); });
    add(decoder_->weights().lm_head, head_numbers_);
    ReportRow row = row_of({}, "load", seconds);
    row.cells.insert(row.cells.end(),
                     {{"seconds", Number{seconds, 2}}, {"unchecked", Number{unchecked, 2}}, {"reading", Number{reading, 2}}});
    finish(std::move(row));
  }

  template <KvStorage T> void prefill(const Case& c, Index n) {
    const DecoderConfig& config = decoder_->config();
    auto session = decoder_->start<T>(policies_of(*decoder_, c.policy),
                                      {.max_prompt = n, .max_tokens = n, .max_generated = 1, .max_draft = 0, .executor = c.executor});
    const std::vector<Token> tokens = random_tokens(n, config.vocab_size);
    Samples times, peaks;
    PeakMemory::begin();
    for (int round = 0; round < 3; ++round) {
      session.clear();
      times.add(seconds_of([&] { session.prefill(tokens); }));
      check(session.logits());
      peaks.add(peak_of(c.executor, times.median()));
    }
    const double attended = static_cast<double>(n) * static_cast<double>(n + 1) / 2;
    const double flops = 2 * (layer_numbers_ * static_cast<double>(n) + head_numbers_) +
                         4 * attended * static_cast<double>(config.num_attention_heads * config.head_dim * config.num_hidden_layers);
    const double seconds = times.median();
    ReportRow row = row_of(c, "pp" + std::to_string(n), seconds);
    row.cells.insert(row.cells.end(), {{"tokens/s", Number{static_cast<double>(n) / seconds, 1}},
                                       {"GFLOPS", Number{flops / seconds * 1e-9, 0}},
                                       {"of_peak", Number{flops / seconds / peaks.median(), 2}},
                                       {"cache_MB", Number{static_cast<double>(session.cache_bytes()) / mega, 1}},
                                       {"rel_err", Number{c.error, -1}}});
    finish(std::move(row));
  }

  template <KvStorage T> void decode(const Case& c, Index context, Index skip) {
    const Index chunk = std::max<Index>(1, a_.tokens / 8), rounds = a_.tokens / chunk;
    const std::vector<Token> tokens = random_tokens(1 + rounds * chunk, decoder_->vocab_size());
    const Index coming = static_cast<Index>(tokens.size());
    const bool scouts = skip > 0 && a_.scouts && PlainStorage<T>;
    auto session = decoder_->start<T>(policies_of(*decoder_, c.policy), {.max_prompt = 1,
                                                                         .max_tokens = context + coming,
                                                                         .max_generated = coming,
                                                                         .max_draft = 0,
                                                                         .skip_below = 1e-3 * static_cast<double>(skip),
                                                                         .scout_keys = scouts,
                                                                         .executor = c.executor});
    begin_at(session, context, a_.spread);
    PeakMemory::begin();
    auto next = tokens.begin();
    session.decode(*next++);  // touches every buffer once
    Samples times, bytes, reading;
    for (Index round = 0; round < rounds; ++round) {
      const double before = attended_bytes(session);
      times.add(seconds_of([&] {
                  for (Index t = 0; t < chunk; ++t) session.decode(*next++);
                }) /
                static_cast<double>(chunk));
      check(session.logits());
      bytes.add(weight_bytes_ + (before + attended_bytes(session)) / 2);
      reading.add(pace_.seconds(bytes.median(), c.executor));
    }
    const double seconds = times.median();
    const std::string skipping = skip == 0 ? "" : "/skip:" + std::to_string(skip) + (scouts ? "/scouts" : "");
    ReportRow row = row_of(c, "tg@" + std::to_string(context) + skipping, seconds);
    row.cells.insert(row.cells.end(), {{"tokens/s", Number{1 / seconds, 2}},
                                       {"ms/token", Number{seconds * 1e3, 2}},
                                       {"MB/token", Number{bytes.median() / mega, 1}},
                                       {"read_GB/s", Number{bytes.median() / reading.median() * 1e-9, 1}},
                                       {"of_read", Number{reading.median() / seconds, 2}},
                                       {"cache_MB", Number{static_cast<double>(session.cache_bytes()) / mega, 1}},
                                       {"rel_err", Number{c.error, -1}}});
    if (skip > 0) {
      const AttentionReads reads = session.reads();
      row.cells.push_back({"needed", Number{static_cast<double>(reads.needed) / static_cast<double>(reads.rows), 2}});
    }
    finish(std::move(row));
  }

  template <KvStorage T> void decode_batch(const Case& c, Index n) {
    const std::vector<Token> tokens = random_tokens((1 + a_.tokens) * n, decoder_->vocab_size());
    const Index coming = 1 + a_.tokens;
    const SessionOptions options{.max_prompt = 1, .max_tokens = coming, .max_generated = coming, .max_draft = 0, .executor = c.executor};
    auto alone = decoder_->start<T>(policies_of(*decoder_, c.policy), options);
    std::vector<Session<float, T>> sessions;
    for (Index i = 0; i < n; ++i) sessions.push_back(decoder_->start<T>(policies_of(*decoder_, c.policy), options));
    std::vector<Session<float, T>*> together;
    for (auto& session : sessions) together.push_back(&session);
    Workspace ws(decoder_->together_workspace_bytes<T>(together, c.executor.size()), c.executor);
    Matrix<float> logits(n, decoder_->vocab_size());
    PeakMemory::begin();
    Samples times, times_one, reading, peaks;
    double attended = 0;
    for (Index t = 0; t < coming; ++t) {
      const std::span<const Token> next = std::span(tokens).subspan(static_cast<std::size_t>(t * n), static_cast<std::size_t>(n));
      const double seconds = seconds_of([&] { decoder_->decode_together<T>(together, next, logits, ws); });
      const double of_one = seconds_of([&] { alone.decode(next[0]); });
      check(logits);
      if (logits.row(0) != alone.logits().row(0)) throw std::runtime_error("wrong result: a batch changes logits");
      if (t == 0) continue;  // it touches every buffer once
      attended = 0;
      for (const auto& session : sessions) attended += attended_bytes(session);
      times.add(seconds);
      times_one.add(seconds / of_one);
      reading.add(pace_.seconds(weight_bytes_ + attended, c.executor));
      peaks.add(peak_of(c.executor, seconds));
    }
    const double seconds = times.median(), count = static_cast<double>(n), flops = 2 * (layer_numbers_ + head_numbers_) * count;
    double cache_bytes = 0;
    for (const auto& session : sessions) cache_bytes += static_cast<double>(session.cache_bytes());
    ReportRow row = row_of(c, "batch" + std::to_string(n), seconds);
    row.cells.insert(row.cells.end(), {{"tokens/s", Number{count / seconds, 2}},
                                       {"ms/token", Number{seconds * 1e3 / count, 2}},
                                       {"MB/token", Number{(weight_bytes_ + attended) / count / mega, 1}},
                                       {"of_read", Number{reading.median() / seconds, 2}},
                                       {"times_one", Number{times_one.median(), 2}},
                                       {"GFLOPS", Number{flops / seconds * 1e-9, 0}},
                                       {"of_peak", Number{flops / seconds / peaks.median(), 2}},
                                       {"cache_MB", Number{cache_bytes / mega, 1}},
                                       {"rel_err", Number{c.error, -1}}});
    finish(std::move(row));
  }

  template <KvStorage T> void decode_adapted(const Case& c, Index rank, const std::string& factors) {
    const std::vector<Token> tokens = random_tokens(1 + a_.tokens, decoder_->vocab_size());
    const Index coming = static_cast<Index>(tokens.size());
    const ModelAdapter<float> adapter = lora_of(*decoder_, rank, factors);
    const SessionOptions options{.max_prompt = 1, .max_tokens = coming, .max_generated = coming, .max_draft = 0, .executor = c.executor};
    auto plain = decoder_->start<T>(policies_of(*decoder_, c.policy), options);
    auto adapted = decoder_->start<T>(policies_of(*decoder_, c.policy), options);
    adapted.use(&adapter);
    PeakMemory::begin();
    Samples times, over;
    bool adapted_first = false;
    for (std::size_t t = 0; t < tokens.size(); ++t, adapted_first = !adapted_first) {
      const auto seconds_of_token = [&](auto& session) { return seconds_of([&] { session.decode(tokens[t]); }); };
      double without = adapted_first ? 0 : seconds_of_token(plain);
      const double with = seconds_of_token(adapted);
      if (adapted_first) without = seconds_of_token(plain);
      if (plain.logits() != adapted.logits()) throw std::runtime_error("wrong result: an adapter with B = 0 changes logits");
      if (t == 0) continue;  // it touches every buffer once
      times.add(with);
      over.add(100 * (with / without - 1));
    }
    const double seconds = times.median(), bytes = weight_bytes_ + attended_bytes(plain), added = static_cast<double>(adapter.bytes());
    ReportRow row = row_of(c, "lora" + std::to_string(rank) + (factors == "bf16" ? "-bf16" : ""), seconds);
    row.cells.insert(row.cells.end(), {{"tokens/s", Number{1 / seconds, 2}},
                                       {"ms/token", Number{seconds * 1e3, 2}},
                                       {"MB/token", Number{(bytes + added) / mega, 1}},
                                       {"over", Number{over.median(), 2}},
                                       {"bytes", Number{100 * added / bytes, 2}},
                                       {"cache_MB", Number{static_cast<double>(adapted.cache_bytes()) / mega, 1}},
                                       {"rel_err", Number{c.error, -1}}});
    finish(std::move(row));
  }

  static void check(ConstMatrixRef<float> logits) {
    if (!logits.allFinite()) throw std::runtime_error("wrong result: logits that are not finite");
  }

  ReportRow row_of(const std::optional<Case>& c, const std::string& test, double seconds) const {
    const double table = static_cast<double>(decoder_->weights().embed_tokens.rows() * decoder_->weights().embed_tokens.cols());
    const double params = layer_numbers_ + table + (decoder_->config().tie_word_embeddings ? 0 : head_numbers_);
    ReportRow row{.name = a_.model + "/weights:" + weights_, .seconds = seconds};
    row.cells = {{"model", a_.model}, {"params", Number{params / mega, 0}}, {"weights", weights_}};
    if (c) {
      const std::string threads = std::to_string(c->executor.size());
      row.name += "/rows:" + c->rows + "/policy:" + c->policy.text() + "/threads:" + threads;
      row.cells.insert(row.cells.end(), {{"rows", c->rows}, {"policy", c->policy.text()}, {"threads", threads}});
    }
    row.name += "/" + test;
    row.cells.push_back({"test", test});
    return row;
  }

  void finish(ReportRow row) {
    if (const std::size_t peak = PeakMemory::bytes(); peak > 0)
      row.cells.push_back({"RSS_MB", Number{static_cast<double>(peak - pace_.bytes()) / mega, 0}});
    std::fprintf(stderr, "decoder: %s: %.4g s\n", row.name.c_str(), row.seconds);
    report_.add(std::move(row));
  }

  DecoderArguments a_;
  Pace pace_;
  Report report_{{"model",    "params",   "weights",   "rows",    "policy",    "threads",   "test",    "tokens/s",
                  "ms/token", "MB/token", "read_GB/s", "of_read", "times_one", "needed",    "over",    "bytes",
                  "GFLOPS",   "of_peak",  "cache_MB",  "RSS_MB",  "seconds",   "unchecked", "reading", "rel_err"}};
  std::string weights_;
  std::optional<Decoder<float>> decoder_;
  std::ofstream out_;
  double weight_bytes_ = 0, layer_numbers_ = 0, head_numbers_ = 0;
};

}  // namespace

int main(int argc, char** argv) try {
  std::vector<std::string> random, own;
  for (const WeightsKind& kind : weights_kinds) (kind.file ? random : own).push_back(kind.name);
  const DecoderArguments arguments = parse_decoder_arguments(argc, argv, random, own);
  if (arguments.help) {
    std::cout << decoder_usage;
    return 0;
  }
  Bench(arguments).run();
  return 0;
} catch (const ArgumentError& error) {
  std::fprintf(stderr, "decoder: %s\n", error.what());
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "decoder: %s\n", error.what());
  return 1;
}
