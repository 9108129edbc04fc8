// Your own model as a draft: it needs decode(), checkpoint() and crop(). This one is a single attention layer over random vectors that
// looks up the token after an earlier occurrence of the newest one. Its cache evicts, and is rolled back exactly.
#include <cmath>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;

class Induction {
 public:
  using Scalar = float;

  Induction(Index vocab, Index rows)
      : cache_({.num_heads = 1, .num_kv_heads = 1, .head_dim = dim}, HeavyHitter{.heavy = rows / 2, .recent = rows / 2},
               {.max_chunk = 1, .max_draft = 8}),
        words_(vocab, dim) {
    std::mt19937_64 rng(1);
    for (Index i = 0; i < words_.size(); ++i) words_.data()[i] = normal<float>(rng) / std::sqrt(float(dim));
  }

  Index vocab_size() const { return words_.rows(); }
  Position next_position() const { return cache_.next_position(); }
  ConstMatrixRef<float> decode(std::span<const Token> tokens) {
    logits_.resize(std::ssize(tokens), vocab_size());
    for (Index i = 0; i < logits_.rows(); ++i) {
      text_.push_back(tokens[std::size_t(i)]);
      cache_.append(words_.row(text_[text_.size() - 2]), words_.row(text_.back()));  // keyed by the previous token
      const Matrix<float> scores = (20.f * words_.row(text_.back()) * cache_.keys(0).transpose()).array().exp();
      const Matrix<float> weights = scores / scores.sum();
      logits_.row(i) = 6.f * weights * cache_.values(0) * words_.transpose();
      cache_.observe({.kv_head = 0, .weights = weights});
      cache_.evict();
    }
    return logits_;
  }
  void checkpoint() { cache_.checkpoint(); }
  void crop(Position p) {
    cache_.crop(p);
    text_.resize(std::size_t(p) + 1);
  }

 private:
  static constexpr Index dim = 128;
  KvCache<> cache_;
  Matrix<float> words_, logits_;  ///< [vocab, dim]; [tokens, vocab]
  std::vector<Token> text_{0};    ///< a start token, then all tokens read
};

int your_own_model(example::CommandLine& line) {
  const auto folder = example::model_folder(line);
  line.done();
  const auto decoder = load_decoder(folder);
  const auto text = example::held_out(folder, decoder.vocab_size(), 400);
  auto target = decoder.start(SinkWindow{.sinks = 4, .window = 252});
  Induction draft(decoder.vocab_size(), 512);
  SpeculativeDecoder spec(target, draft, {.draft_tokens = 4, .sampler = {.temperature = 0}});
  spec.prefill(std::span(text).first(400));
  std::mt19937_64 rng(1);
  generate(spec, {.max_tokens = 240}, rng, [](Token token) {
    std::printf("%c", token);
    std::fflush(stdout);
  });
  std::printf("\n\n%td tokens in %td passes of the target, %.0f%% of the guesses accepted\n", spec.stats().tokens, spec.stats().steps,
              100 * spec.stats().acceptance_rate());

  auto alone = decoder.start(SinkWindow{.sinks = 4, .window = 252});  // without the draft: the same text
  const auto expected = generate(alone, alone.prefill(std::span(text).first(400)), {.max_tokens = 240, .sampler = {.temperature = 0}}, rng);
  return spec.pending() == expected.back() ? 0 : 1;
}

int main(int argc, char** argv) { return example::run(argc, argv, "your_own_model [FOLDER]", your_own_model); }
