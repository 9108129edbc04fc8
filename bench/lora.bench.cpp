// The layer that adapters wrap, y = x Wᵀ + b through AnyLinear, and what LoRA costs beside it.
//
// of_read     time of reading the f32 bytes of W once over the time taken: 1 is the limit for f32 and one token, 2 for 16 bit
// over        time with the adapter over the time without, less 1, in percent; both in turns, medians
// bytes       what the adapter adds to the bytes read, in percent: the goal is this and 1.5 at one token, 5 at 128
// over_blas   `rows`: over OpenBLAS's plain product with its bias, where CMake finds it; the goal is 8, and 10 for `over`
// faster      `batch`: conversations with another adapter each and drafts that know their text and are wrong in 1 - accepted of all places:
//             tokens a second by SpeculativeBatch over those of decode_together, one token each, in the same run; the goal is 2 at 80 %
// same        `batch`: 1: every text is the one without drafts; anything else is not reported
// rel_err     against the product in double; a wrong result is not reported
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#ifdef PITH_BENCH_OPENBLAS
#include <cblas.h>
#endif

#include <pith/core.hpp>
#include <pith/model.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/multi_lora.hpp>

#include "support/cold.hpp"
#include "support/measure.hpp"
#include "support/register.hpp"
#include "support/speculating.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

struct Case {
  Index tokens, features;
  std::string text() const { return "/tokens:" + std::to_string(tokens) + "/features:" + std::to_string(features); }
};

template <class Prepare, class Run> void measure(benchmark::State& state, Case c, Prepare prepare, Run run) {
  const Matrix<float> w = random_matrix(c.features, c.features, 1), x = random_matrix(c.tokens, c.features, 2);
  const Vector<float> bias = random_matrix(c.features, 1, 3);
  const std::size_t bytes = static_cast<std::size_t>(w.size()) * sizeof(float);
  auto& layers = ColdCopies::of(bytes, [&] { return prepare(w, bias); });
  Matrix<float> y(c.tokens, c.features);
  Workspace ws(AnyLinear<float>(Linear<float>(w, bias)).workspace_bytes(c.tokens));
  run(layers[0], x, y, ws);
  const Eigen::MatrixXd reference = (x.cast<double>() * w.cast<double>().transpose()).rowwise() + bias.cast<double>().transpose();
  const double error = rel_err(y, reference);
  if (!(error < 1e-2)) return state.SkipWithError("wrong result");

  ColdRead read(bytes);
  Samples kernel, reading;
  std::size_t turn = 0;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { run(layers[turn++ % layers.size()], x, y, ws); });
    keep(y);
    state.SetIterationTime(seconds);
    kernel.add(seconds);
    reading.add(read.seconds());
  }
  state.counters["of_read"] = reading.median() / kernel.median();
  state.counters["rel_err"] = error;
}

template <class T> void layer(benchmark::State& state, Case c) {
  measure(
      state, c,
      [](const Matrix<float>& w, const Vector<float>& bias) {
        return AnyLinear<float>(PackedLinear<float, T>(PackedWeight<T>(Matrix<T>(w.template cast<T>())), bias));
      },
      [](const AnyLinear<float>& linear, const Matrix<float>& x, Matrix<float>& y, Workspace& ws) { linear.forward(x, y, ws); });
}

void eigen(benchmark::State& state, Case c) {
  struct Naive {
    Matrix<float> w;
    Vector<float> bias;
  };
  measure(
      state, c,
      [](const Matrix<float>& w, const Vector<float>& bias) {
        return Naive{w, bias};
      },
      [](const Naive& naive, const Matrix<float>& x, Matrix<float>& y, Workspace&) {
        y.noalias() = x * naive.w.transpose();
        y.rowwise() += naive.bias.transpose();
      });
}

// ------------------------------------------------------------------------------------------------------------ with adapters

struct Adapted {
  Index tokens, features, rank;
  std::string text() const {
    return "/tokens:" + std::to_string(tokens) + "/features:" + std::to_string(features) + "/rank:" + std::to_string(rank);
  }
};

/// Numbers that leave y near W's own size.
LoraAdapter<float> adapter_of(const Adapted& c, std::uint64_t seed) {
  return {random_matrix(c.rank, c.features, seed), random_matrix(c.features, c.rank, seed + 1), {.alpha = 1}};
}

Eigen::MatrixXd delta_of(const LoraAdapter<float>& a) { return double(a.scale()) * a.up().cast<double>() * a.down().cast<double>(); }

/// Runs `with` and `without` in turns, on one copy of the layer after the other.
template <class Layer, class With, class Without>
void measure_over(benchmark::State& state, const Adapted& c, std::vector<Layer>& layers, const Matrix<float>& reference, double bytes,
                  With with, Without without) {
  Matrix<float> y(c.tokens, c.features);
  with(layers[0], y);
  const double error = rel_err(y, reference.cast<double>());
  if (!(error < 1e-5)) return state.SkipWithError("wrong result");
  Samples adapted, plain;
  std::size_t turn = 0;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { with(layers[turn++ % layers.size()], y); });
    keep(y);
    state.SetIterationTime(seconds);
    adapted.add(seconds);
    plain.add(seconds_of([&] { without(layers[turn++ % layers.size()], y); }));
    keep(y);
  }
  state.counters["over"] = 100 * (adapted.median() / plain.median() - 1);
  state.counters["bytes"] = bytes;
  state.counters["rel_err"] = error;
}

struct Operands {
  explicit Operands(const Adapted& c)
      : w(random_matrix(c.features, c.features, 1)), x(random_matrix(c.tokens, c.features, 2)), bias(random_matrix(c.features, 1, 3)) {}
  Matrix<float> expected(const Eigen::MatrixXd& delta) const {
    return ((x.cast<double>() * (w.cast<double>() + delta).transpose()).rowwise() + bias.cast<double>().transpose()).cast<float>();
  }
  std::size_t bytes() const { return static_cast<std::size_t>(w.size()) * sizeof(float); }
  Matrix<float> w, x;
  Vector<float> bias;
};

double added_bytes(const Adapted& c) { return 100. * 2 * double(c.rank) / double(c.features); }

void lora(benchmark::State& state, Adapted c) {
  const Operands o(c);
  const LoraAdapter<float> adapter = adapter_of(c, 4);
  auto& layers = ColdCopies::of(o.bytes(), [&] { return LoraLinear(PackedLinear<float>(o.w, o.bias), adapter); });
  Workspace ws(layers[0].workspace_bytes(c.tokens));
  measure_over(
      state, c, layers, o.expected(delta_of(adapter)), added_bytes(c),
      [&](const auto& layer, Matrix<float>& y) { layer.forward(o.x, y, ws); },
      [&](const auto& layer, Matrix<float>& y) { layer.base().forward(o.x, y, ws); });
}

/// As one would write it over Eigen: products from right to left, in temporaries.
void eigen_lora(benchmark::State& state, Adapted c) {
  struct Naive {
    Matrix<float> w, a, bt;
  };
  const Operands o(c);
  const LoraAdapter<float> adapter = adapter_of(c, 4);
  auto& layers = ColdCopies::of(o.bytes(), [&] { return Naive{o.w, adapter.down_rows(), adapter.up_rows()}; });
  const auto base = [&](const Naive& layer, Matrix<float>& y) {
    y.noalias() = o.x * layer.w.transpose();
    y.rowwise() += o.bias.transpose();
  };
  measure_over(
      state, c, layers, o.expected(delta_of(adapter)), added_bytes(c),
      [&](const Naive& layer, Matrix<float>& y) {
        base(layer, y);
        const Matrix<float> t = adapter.scale() * (o.x * layer.a.transpose());
        y.noalias() += t * layer.bt;
      },
      base);
}

/// Another adapter for each row.
void rows(benchmark::State& state, Adapted c) {
  const Operands o(c);
  std::vector<LoraAdapter<float>> adapters;
  std::vector<Index> chosen;
  Matrix<float> expected = o.expected(Eigen::MatrixXd::Zero(c.features, c.features));
  for (Index t = 0; t < c.tokens; ++t) {
    adapters.push_back(adapter_of(c, 10 + 2 * static_cast<std::uint64_t>(t)));
    chosen.push_back(t);
    const LoraAdapter<float>& a = adapters.back();
    const Eigen::RowVectorXd through = o.x.row(t).cast<double>() * std::as_const(a).down().cast<double>().transpose();
    expected.row(t) =
        (expected.row(t).cast<double>() + double(a.scale()) * through * std::as_const(a).up_rows().cast<double>()).cast<float>();
  }
  auto& layers =
      ColdCopies::of(2 * o.bytes(), [&] { return MultiLoraLinear<PackedLinear<float>>(PackedLinear<float>(o.w, o.bias), adapters); });
  Workspace ws(layers[0].workspace_bytes(c.tokens));
  const auto adapted = [&](const auto& layer, Matrix<float>& y) { layer.forward(o.x, chosen, y, ws); };
  measure_over(state, c, layers, expected, 100. * double(c.tokens) * 2 * double(c.rank) / double(c.features), adapted,
               [&](const auto& layer, Matrix<float>& y) { layer.base().forward(o.x, y, ws); });
#ifdef PITH_BENCH_OPENBLAS
  openblas_set_num_threads(1);
  const auto& weights = ColdCopies::of(o.bytes(), [&] { return o.w; });
  const auto n = static_cast<blasint>(c.features), tokens = static_cast<blasint>(c.tokens);
  Samples blas, ours;
  Matrix<float> y(c.tokens, c.features);
  for (std::size_t turn = 0; turn < 100; ++turn) {
    const Matrix<float>& w = weights[turn % weights.size()];
    blas.add(seconds_of([&] {
      y.rowwise() = o.bias.transpose();
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, tokens, n, n, 1.f, o.x.data(), n, w.data(), n, 1.f, y.data(), n);
    }));
    keep(y);
    ours.add(seconds_of([&] { adapted(layers[turn % layers.size()], y); }));
    keep(y);
  }
  state.counters["over_blas"] = 100 * (ours.median() / blas.median() - 1);
#endif
}

struct Batch {
  Index conversations, percent, draft_tokens;
  std::string text() const {
    return "/conversations:" + std::to_string(conversations) + "/accepted:" + std::to_string(percent) +
           "%/guesses:" + std::to_string(draft_tokens);
  }
};
constexpr Index batch_prompt = 32, batch_text = 40;

/// LoRA of rank 16 on every projection, small enough to leave the logits finite.
ModelAdapter<float> adapter_over(const Decoder<float>& decoder, std::uint64_t seed) {
  const AdapterTarget target = decoder.adapter_target();
  AdapterParts<float> parts;
  parts.layers.resize(static_cast<std::size_t>(target.num_layers));
  for (LayerAdapter<float>& layer : parts.layers)
    for (std::size_t p = 0; p < num_projections; ++p) {
      const Index out = target.out(Projection(p)), in = target.in(Projection(p));
      layer.projections[p].terms.push_back(
          {random_matrix(16, in, ++seed), 0.01f * random_matrix(16, out, ++seed), Vector<float>::Ones(16)});
    }
  return {target, std::move(parts)};
}

/// A batch in which every conversation has its own adapter, with and without speculation, in turns.
void batch(benchmark::State& state, Batch c) {
  const Decoder<float>& decoder = cold_decoder();
  std::vector<ModelAdapter<float>> adapters;
  std::vector<std::vector<Token>> prompts, texts(static_cast<std::size_t>(c.conversations));
  std::mt19937_64 rng(7);
  for (Index i = 0; i < c.conversations; ++i) {
    adapters.push_back(adapter_over(decoder, 1000 * static_cast<std::uint64_t>(i + 1)));
    prompts.emplace_back(static_cast<std::size_t>(batch_prompt));
    for (Token& t : prompts.back()) t = static_cast<Token>(rng() % 2048);
  }
  const auto started = [&] {
    std::vector<Session<float>> all;
    for (const ModelAdapter<float>& adapter : adapters) {
      all.push_back(decoder.start(Dense{}, {.max_prompt = batch_prompt, .max_tokens = 256}));
      all.back().use(&adapter);
    }
    return all;
  };
  const auto plain = [&](std::vector<std::vector<Token>>& out) {
    std::vector<Session<float>> all = started();
    std::vector<Session<float>*> sessions;
    std::vector<Token> next;
    for (std::size_t i = 0; i < all.size(); ++i) {
      sessions.push_back(&all[i]);
      next.push_back(
          static_cast<Token>(std::max_element(all[i].prefill(prompts[i]).data(), all[i].logits().data() + 2048) - all[i].logits().data()));
    }
    Workspace ws(decoder.together_workspace_bytes(sessions));
    Matrix<float> logits(c.conversations, decoder.vocab_size());
    return seconds_of([&] {
      for (Index t = 0; t < batch_text; ++t) {
        for (std::size_t i = 0; i < all.size(); ++i) out[i].push_back(next[i]);
        decoder.decode_together(sessions, next, logits, ws);
        for (std::size_t i = 0; i < all.size(); ++i) {
          const float* row = logits.row(static_cast<Index>(i)).data();
          next[i] = static_cast<Token>(std::max_element(row, row + 2048) - row);
        }
      }
    });
  };
  plain(texts);
  Samples speculative, one_by_one;
  for (auto _ : state) {
    std::vector<Session<float>> all = started();
    std::vector<InformedDraft> drafts;
    drafts.reserve(all.size());
    SpeculativeBatch<float> together;
    for (std::size_t i = 0; i < all.size(); ++i) {
      drafts.emplace_back(texts[i], batch_prompt, double(c.percent) / 100, decoder.vocab_size());
      together.add(all[i], drafts[i], {.draft_tokens = c.draft_tokens, .sampler = {.temperature = 0}});
      together.prefill(static_cast<Index>(i), prompts[i]);
    }
    std::vector<std::vector<Token>> found(all.size());
    const double seconds = seconds_of([&] {
      while (together.step([&](Index i, Token token) {
        auto& text = found[static_cast<std::size_t>(i)];
        text.push_back(token);
        return static_cast<Index>(text.size()) < batch_text;
      })) {
      }
    });
    if (found != texts) return state.SkipWithError("wrong result");
    std::vector<std::vector<Token>> again(all.size());
    one_by_one.add(plain(again));
    state.SetIterationTime(seconds);
    speculative.add(seconds);
  }
  state.counters["faster"] = one_by_one.median() / speculative.median();
  state.counters["tokens/s"] = double(c.conversations * batch_text) / speculative.median();
  state.counters["same"] = 1;
}

const bool registered = [] {
  for (const Batch c : {Batch{4, 80, 4}, Batch{8, 80, 4}, Batch{8, 60, 4}}) add("batch", batch, c);
  for (const Case c : {Case{1, 1024}, Case{1, 2048}, Case{8, 2048}, Case{64, 2048}}) {
    add("layer_f32", layer<float>, c);
    add("layer_bf16", layer<pith::bfloat16>, c);
    add("eigen", eigen, c);
  }
  for (const Adapted c : {Adapted{1, 1024, 16}, Adapted{1, 2048, 8}, Adapted{1, 2048, 16}, Adapted{1, 2048, 64}, Adapted{128, 2048, 8},
                          Adapted{128, 2048, 16}, Adapted{128, 2048, 64}}) {
    add("lora", lora, c);
    add("eigen_lora", eigen_lora, c);
  }
  for (const Adapted c : {Adapted{8, 1024, 16}, Adapted{64, 2048, 16}}) add("rows", rows, c);
  return true;
}();

}  // namespace
