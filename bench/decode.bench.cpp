// A whole decoder, the shipped one, token by token over a Dense cache, against the same arithmetic written with plain Eigen products.
//
// tokens/s  of a text of 256 bytes from its first token on: the weights stay in the hardware's caches, attention grows from 1 row to 256
// rel_err   of the last token's logits against the decoder in double without a cache; a wrong result is not reported
#include <benchmark/benchmark.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/prebuilt.hpp>

#include "../examples/support/model_text.hpp"
#include "support/measure.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

const std::filesystem::path folder = PITH_MODELS_DIR "/tiny-prose";
constexpr Index text_length = 256;

std::vector<Token> text() {
  std::vector<Token> tokens = example::byte_tokens(folder / "heldout.txt");
  tokens.resize(static_cast<std::size_t>(text_length));
  return tokens;
}

/// `next(token)` returns the logits [1, vocab] after one more token, `restart()` forgets all of them.
template <class Restart, class Next> void measure(benchmark::State& state, Restart restart, Next next) {
  const std::vector<Token> tokens = text();
  Matrix<float> logits;
  const auto run = [&] {
    restart();
    for (const Token token : tokens) logits = next(token);
  };
  run();
  const Matrix<double> reference = load_decoder<double>(folder).forward(tokens).bottomRows(1);
  const double error = rel_err(logits, reference);
  if (!(error < 1e-5)) return state.SkipWithError("wrong result");
  Samples times;
  for (auto _ : state) {
    const double seconds = seconds_of(run);
    state.SetIterationTime(seconds);
    times.add(seconds);
  }
  state.counters["tokens/s"] = static_cast<double>(text_length) / times.median();
  state.counters["rel_err"] = error;
}

void session(benchmark::State& state) {
  const Decoder<float> decoder = load_decoder<float>(folder);
  auto conversation = decoder.start(Dense{}, {.max_prompt = 1, .max_tokens = text_length, .max_draft = 0});
  measure(
      state, [&] { conversation.clear(); }, [&](Token token) { return conversation.decode(token); });
}

/// What one writes first: float weights in rows, a product each, attention head by head.
class EigenDecoder {
 public:
  EigenDecoder() : c_(read_config(folder / "config.json")), file_(Safetensors::map(folder / "model.safetensors")) {
    embed_ = file_.load_matrix<float>("model.embed_tokens.weight");
    norm_ = file_.load_vector<float>("model.norm.weight");
    for (Index l = 0; l < c_.num_hidden_layers; ++l) {
      const auto matrix = [&](const char* name) { return file_.load_matrix<float>(of_layer(l, name)); };
      const auto vector = [&](const char* name) { return file_.load_vector<float>(of_layer(l, name)); };
      const Index kv = c_.num_key_value_heads * c_.head_dim;
      layers_.push_back({vector("input_layernorm"), vector("post_attention_layernorm"), matrix("self_attn.q_proj"),
                         matrix("self_attn.k_proj"), matrix("self_attn.v_proj"), matrix("self_attn.o_proj"), matrix("mlp.gate_proj"),
                         matrix("mlp.up_proj"), matrix("mlp.down_proj"), Matrix<float>(text_length, kv), Matrix<float>(text_length, kv)});
    }
  }

  void clear() { length_ = 0; }

  Matrix<float> decode(Token token) {
    const Index d = c_.head_dim, group = c_.num_attention_heads / c_.num_key_value_heads;
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    Vector<float> hidden = embed_.row(token).transpose();
    for (Layer& layer : layers_) {
      const Vector<float> x = normed(hidden, layer.input_norm);
      Vector<float> q = layer.q * x, k = layer.k * x, attended(q.size());
      rotate(q);
      rotate(k);
      layer.keys.row(length_) = k.transpose();
      layer.values.row(length_) = (layer.v * x).transpose();
      for (Index h = 0; h < c_.num_attention_heads; ++h) {
        const auto keys = layer.keys.block(0, h / group * d, length_ + 1, d), values = layer.values.block(0, h / group * d, length_ + 1, d);
        Vector<float> p = scale * (keys * q.segment(h * d, d));
        p = (p.array() - p.maxCoeff()).exp().matrix().eval();
        attended.segment(h * d, d) = values.transpose() * p / p.sum();
      }
      hidden += layer.o * attended;
      const Vector<float> y = normed(hidden, layer.post_norm);
      const Vector<float> gate = layer.gate * y, up = layer.up * y;
      hidden += layer.down * (gate.array() / (1 + (-gate.array()).exp()) * up.array()).matrix();
    }
    ++length_;
    return (embed_ * normed(hidden, norm_)).transpose();
  }

 private:
  struct Layer {
    Vector<float> input_norm, post_norm;
    Matrix<float> q, k, v, o, gate, up, down, keys, values;
  };

  static std::string of_layer(Index l, const std::string& name) { return "model.layers." + std::to_string(l) + "." + name + ".weight"; }

  Vector<float> normed(const Vector<float>& x, const Vector<float>& weight) const {
    const float scale = 1 / std::sqrt(x.squaredNorm() / static_cast<float>(x.size()) + static_cast<float>(c_.norm_eps));
    return (scale * x.array() * weight.array()).matrix();
  }

  void rotate(Vector<float>& x) const {
    const Index half = c_.head_dim / 2;
    for (Index h = 0; h < x.size(); h += c_.head_dim) {
      for (Index i = 0; i < half; ++i) {
        const double angle = static_cast<double>(length_) * std::pow(c_.rope().theta, -static_cast<double>(i) / static_cast<double>(half));
        const float cos = static_cast<float>(std::cos(angle)), sin = static_cast<float>(std::sin(angle)), a = x[h + i], b = x[h + half + i];
        x[h + i] = a * cos - b * sin;
        x[h + half + i] = b * cos + a * sin;
      }
    }
  }

  DecoderConfig c_;
  Safetensors file_;
  Matrix<float> embed_;
  Vector<float> norm_;
  std::vector<Layer> layers_;
  Index length_ = 0;
};

void eigen(benchmark::State& state) {
  EigenDecoder decoder;
  measure(
      state, [&] { decoder.clear(); }, [&](Token token) { return decoder.decode(token); });
}

}  // namespace

#define TEXT Repetitions(3)->ReportAggregatesOnly()->UseManualTime()->Unit(benchmark::kMillisecond)
BENCHMARK(session)->Name("decode/session")->TEXT;
BENCHMARK(eigen)->Name("decode/eigen")->TEXT;
