// Prompt tuning, prefix tuning and a Houlsby adapter on one frozen model. No training: each gets parameters whose effect is known.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t predicted = 128;  // bytes of the text behind the prompt, over which nats are averaged

/// An encoder whose prefix is the keys and values of a session's rows, as training would leave it: one hidden feature for each row.
PrefixEncoder<float> encoder_of(const Session<float>& session, Index rows) {
  const AttentionShape shape = session.config().attention();
  const Index dim = shape.head_dim, width = shape.num_kv_heads * dim, layers = session.config().num_hidden_layers;
  Matrix<float> learned(2 * layers * width, rows);  // a column for each row: keys of layer 0, its values, keys of layer 1, …
  for (Index layer = 0; layer < layers; ++layer) {
    const KvCache<float>& cache = session.caches()[static_cast<std::size_t>(layer)];
    for (Index h = 0; h < shape.num_kv_heads; ++h)
      for (Index r = 0; r < rows; ++r) {
        const Index position = cache.positions(h)[static_cast<std::size_t>(r)], at = 2 * layer * width + h * dim;
        learned.col(position).segment(at, dim) = cache.keys(h).row(r).transpose();
        learned.col(position).segment(at + width, dim) = cache.values(h).row(r).transpose();
      }
  }
  const Matrix<float> one_each = Matrix<float>::Identity(rows, rows);
  learned /= std::tanh(1.f);
  return {one_each, Linear<float>(one_each), Linear<float>(learned)};
}

/// A block of one hidden feature, behind the last norm: where `from` is likelier than `to`, it exchanges their logits.
///
///   h + 2 relu(h·v) (-v) / |v|²,   v = w_from - w_to, rows of the head
HoulsbyAdapter<float> exchange(const Matrix<float>& head, Token from, Token to, float strength) {
  const Matrix<float> v = head.row(from) - head.row(to);
  const Matrix<float> up = v.transpose() * (-2 * strength / v.squaredNorm());
  return HoulsbyAdapter<float>({.down = Linear<float>(v), .up = Linear<float>(up)}, {.norm_after = false});
}

/// The likeliest bytes behind a prompt, each from the last hidden state as the adapter changes it.
std::string continued(const Decoder<float>& decoder, const Matrix<float>& head, std::vector<Token> text,
                      const HoulsbyAdapter<float>& adapter) {
  std::string out;
  for (int i = 0; i < 60; ++i) {
    Matrix<float> last;
    decoder.forward(text, [&](Index, const ConstMatrixRef<float>& hidden) { last = hidden.bottomRows(1); });
    const Matrix<float> no_residual = Matrix<float>::Zero(1, last.cols());
    Index best = 0;
    (adapter.forward(last, no_residual) * head.transpose()).row(0).maxCoeff(&best);
    text.push_back(static_cast<Token>(best));
    out += best >= ' ' && best < 127 ? static_cast<char>(best) : ' ';
  }
  return out;
}

constexpr const char* usage = R"(soft_prompts [FOLDER [ROWS]]

FOLDER holds a model of bytes and its heldout.txt. ROWS (48): virtual tokens, in place of as many bytes of the text.)";

int soft_prompts(example::CommandLine& line) {
  const fs::path model = example::model_folder(line);
  const Index rows = line.next<Index>("ROWS", 48, 1, 128);
  line.done();
  const Decoder<float> decoder = load_decoder(model);
  const std::vector<Token> text = example::held_out(model, decoder.vocab_size(), static_cast<std::size_t>(rows) + predicted);
  const auto prompt = std::span(text).first(static_cast<std::size_t>(rows)), rest = std::span(text).subspan(prompt.size(), predicted);
  const SessionOptions sizes{.max_prompt = rows, .max_tokens = rows + Index(predicted)};
  std::printf("%-44s %10s %10s\n", "before the text", "parameters", "nats/byte");
  const auto print = [&](const char* name, Index parameters, Session<float>& session) {
    const double nats = example::nats_per_byte(session, rest);
    std::printf("%-44s %10td %10.4f\n", name, parameters, nats);
    return nats;
  };

  auto none = decoder.start(Dense{}, sizes), read = decoder.start(Dense{}, sizes);
  print("nothing", 0, none);
  read.prefill(prompt);
  const PrefixEncoder<float> encoder = encoder_of(read, rows);
  const double expected = print("the prompt, read as tokens", 0, read);

  // Prompt tuning: rows of embeddings in front of the text. They begin as those of a text, and then have its effect.
  const auto soft = PromptTuning<float>::from_text(rows, prompt, decoder.weights().embed_tokens);
  auto prompted = decoder.start(Dense{}, sizes);
  prompted.prefill(soft.rows());
  const double by_prompt = print("prompt tuning, from the prompt's embeddings", soft.parameters(), prompted);

  // Prefix tuning: keys and values in front of every layer's. With those of a text, no token of it is read.
  const Matrix<float> learned = encoder.rows();
  auto prefixed =
      decoder.start(Dense{}, {.max_prompt = rows,
                              .max_tokens = rows + Index(predicted),
                              .prefix = prefix_tuning(learned, decoder.config().attention(), decoder.config().num_hidden_layers)});
  const double by_prefix = print("prefix tuning, the prompt's keys and values", learned.size(), prefixed);

  // A Houlsby adapter: a small block behind a frozen layer. Its place in a layer is yours: pith's decoders have none.
  Matrix<float> head(decoder.vocab_size(), decoder.config().hidden_size);
  decoder.weights().lm_head.copy_weight(0, head);
  const std::vector<Token> start(prompt.begin(), prompt.end());
  const HoulsbyAdapter<float> idle = exchange(head, ' ', '_', 0), exchanging = exchange(head, ' ', '_', 1);
  std::printf("\nA Houlsby adapter of %td parameters behind the last norm, which exchanges spaces and underscores:\n",
              exchanging.parameters());
  const std::string plain = continued(decoder, head, start, idle);
  std::printf("  up = 0   …%s\n  by hand  …%s\n", plain.c_str(), continued(decoder, head, start, exchanging).c_str());
  return by_prompt == expected && std::abs(by_prefix - expected) < 1e-3 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, soft_prompts); }
