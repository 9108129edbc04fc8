// The programs and snippets of README.md and include/pith/README.md, compiled and run. What stands between "--- shown" and "--- end" is in
// one of the two files word for word, without its indentation, and they hold no other C++.
#define main readme_program
// --- shown
#include <cstdio>
#include <random>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/text.hpp>

int main(int, char** argv) {
  const auto llama = pith::load_decoder(argv[1]);                          // a Hugging Face folder, as downloaded
  const auto tokenizer = pith::load_tokenizer(argv[1]);                    // and its tokenizer.json
  auto session = llama.start(pith::SinkWindow{.sinks = 4, .window = 252},  // 256 rows, however long the text
                             {.max_prompt = 512});
  pith::Detokenizer text(tokenizer, /*skip_special=*/true);
  std::mt19937_64 rng(1);
  pith::generate(session, tokenizer.encode("Ownership"),
                 {.max_tokens = 100, .sampler = {.temperature = 0.7f}, .stop_tokens = tokenizer.stop_tokens()}, rng,
                 [&](pith::Token token) { std::printf("%s", text.add(token).c_str()); });
  std::printf("%s\n%zu bytes of cache\n", text.finish().c_str(), session.cache_bytes());
  return 0;
}
// --- end
#undef main

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

namespace {

using Numbers = pith::Matrix<float>;
Numbers numbers(pith::Index rows, pith::Index cols, std::uint64_t seed) { return pith_test::random_matrix<float>(rows, cols, seed); }

void lora(const Numbers& W, const Numbers& A, const Numbers& B, const Numbers& x) {
  const Eigen::MatrixXf weight = W.transpose();
  // --- shown
  struct YourLinear {  // any layer that computes y = x Wᵀ
    using Scalar = float;
    Eigen::MatrixXf weight;  // [in, out]
    pith::Index in() const { return weight.rows(); }
    pith::Index out() const { return weight.cols(); }
    void forward(pith::ConstMatrixRef<float> x, pith::MatrixRef<float> y, pith::Workspace&) const { y = x * weight; }
  };
  pith::LoraLinear layer(YourLinear{weight}, pith::LoraAdapter(A, B, {.alpha = 16}));  // A [rank, in], B [out, rank]
  pith::Matrix<float> y = layer.forward(x);                                            // your layer + alpha / rank · (x Aᵀ) Bᵀ
  layer.adapter().set_scale(0);                                                        // your layer alone, bit for bit
  pith::LoraLinear over(pith::LinearView{W}, pith::LoraAdapter(A, B, {.alpha = 16}));  // W [out, in], read where it lies
  pith::Linear<float> merged = over.merged();                                          // W + alpha / rank · B A
  // --- end
  CHECK((merged.forward(x) - y).norm() < 1e-4f * y.norm());
  CHECK((layer.forward(x) - x * weight).norm() < 1e-5f * y.norm());
}

void ranks(const Numbers& W, const Numbers& A, const Numbers& B, const Numbers& x, const Numbers& dy) {
  const pith::Index in = W.cols(), out = W.rows();
  std::mt19937_64 rng(1);
  const std::vector<pith::LowRankGradients<float>> gradients{{12, in, out}};
  // --- shown
  pith::LoraLinear layer(pith::LinearView{W}, pith::DyLoraAdapter(A, B));
  layer.adapter().set_rank(2);  // DyLoRA: uses the first 2 components, without a copy
  auto pruned = pith::fresh_adalora(in, out, 12, {.alpha = 32}, rng);
  pith::RankAllocator<float> pruning({&pruned}, {.target_rank = 8, .total_steps = 1000});
  pruning.step(gradients);  // AdaLoRA, after the optimizer's step: λ of the least important triplets becomes 0
  auto grown = pith::fresh_increlora(in, out, 1, {.capacity = 9}, rng);
  pith::IncrementalAllocator<float> growing({&grown}, {.target_total = 8});
  const std::vector scores{pith::increment_score(grown, x, dy)};
  growing.step(scores, rng);  // IncreLoRA, before the optimizer's step: the modules that matter most gain a component
  // --- end
  CHECK(std::as_const(layer).adapter().rank() == 2);
  CHECK(pruning.steps() == 1);
  CHECK(grown.rank() == 2);
}

void houlsby(const Numbers& D, const Numbers& U, const Numbers& hidden, const Numbers& residual) {
  const pith::LayerNorm<float> norm(pith::Vector<float>::Ones(D.cols()), pith::Vector<float>::Zero(D.cols()));
  // --- shown
  const pith::HoulsbyAdapter<float> adapter({.down = pith::Linear<float>(D), .up = pith::Linear<float>(U)});  // D [c, d], U [d, c]
  pith::Matrix<float> y = adapter.forward(hidden, residual, norm);  // norm(hidden + relu(hidden Dᵀ) Uᵀ + residual)
  // --- end
  CHECK(y.rows() == hidden.rows());
  using pith_test::times_transposed;
  Numbers expected = hidden + times_transposed(times_transposed(hidden, D).cwiseMax(0), U).cast<float>() + residual;
  norm.forward(Numbers(expected), expected);
  CHECK((y - expected).norm() < 1e-4f * expected.norm());
}

void soft_prompts(const pith::Decoder<float>& llama, const std::vector<pith::Token>& instruction, const std::vector<pith::Token>& text) {
  const pith::Index layers = llama.config().num_hidden_layers, width = llama.adapter_target().kv;
  const pith::PrefixEncoder<float> encoder(numbers(3, 8, 1), pith::Linear<float>(numbers(6, 8, 2)),
                                           pith::Linear<float>(numbers(2 * layers * width, 6, 3)));
  // --- shown
  const auto& table = llama.weights().embed_tokens;
  const auto soft = pith::PromptTuning<float>::from_text(20, instruction, table);  // 20 rows to train, in front of the text
  pith::Matrix<float> rows(soft.size() + pith::Index(text.size()), table.cols());
  soft.prepend_to(text, table, rows);
  auto session = llama.start();
  session.prefill(rows);
  // Prefix tuning: encoder.rows() are learned keys and values for every layer.
  const pith::KvPrefix prefix = pith::prefix_tuning(encoder.rows(), llama.config().attention(), llama.config().num_hidden_layers);
  auto prefixed = llama.start(pith::Dense{}, {.prefix = prefix});
  // --- end
  prefixed.prefill(text);
  CHECK(session.next_position() == rows.rows());
  CHECK(prefixed.next_position() == 3 + pith::Index(text.size()));
}

void speculation(char** argv, const std::vector<pith::Token>& prompt) {
  // --- shown
  const auto llama = pith::load_decoder(argv[1]);
  auto target = llama.start(pith::HeavyHitter{.heavy = 96, .recent = 96});  // its evictions are rolled back exactly
  pith::PromptLookup draft(target.vocab_size(), {.ngram = 3});              // guesses from the text itself, reads no weights
  pith::SpeculativeDecoder spec(target, draft, {.draft_tokens = 5, .sampler = {.temperature = 0}});
  spec.prefill(prompt);
  std::mt19937_64 rng(42);
  pith::generate(spec, {.max_tokens = 60}, rng, [](pith::Token token) { std::printf("%c", token); });
  std::printf("\n%.0f%% of the guesses accepted\n", 100 * spec.stats().acceptance_rate());
  // --- end
}

void policies(const pith::Decoder<float>& llama, const std::vector<pith::Token>& prompt) {
  // --- shown
  auto dense = llama.start(pith::Dense{}, {.max_tokens = 4096});               // every row
  auto window = llama.start(pith::Window{1024});                               // the newest rows
  auto streaming = llama.start(pith::SinkWindow{.sinks = 4, .window = 1020});  // StreamingLLM: the initial tokens and the newest
  auto h2o = llama.start(pith::HeavyHitter{.heavy = 512, .recent = 512});      // H2O: the rows with most attention, and the newest
  auto snapkv = llama.start(pith::Adaptive(pith::SnapKv{.keep = 1024}));       // SnapKV with AdaKV's budgets for each head
  auto by_name = llama.start(pith::make_policy("tova", 1024));                 // any policy of the table
  // --- end
  for (auto* session : {&dense, &window, &streaming, &h2o, &snapkv, &by_name}) {
    session->prefill(prompt);
    CHECK(session->next_position() == static_cast<pith::Position>(prompt.size()));
  }
}

// --- shown
struct SmallValues {  // your own policy: keeps the rows with the smallest values, and the 64 newest
  pith::Index budget() const { return 256; }
  pith::PolicyTraits traits() const { return {.reads_rows = true}; }
  template <class S> void score(const pith::KvRows<S>& rows, pith::VectorRef<S> score) const {
    score = -rows.values.rowwise().norm();
    pith::keep_newest(rows, 64, score);
  }
};
// --- end

void your_own_loop(const Numbers& k, const Numbers& v, const Numbers& q, const pith::Decoder<float>& llama) {
  const auto softmax = [](const Numbers& logits) {
    Numbers w = logits.array().exp();
    w.array().colwise() /= w.rowwise().sum().array().eval();
    return w;
  };
  Numbers out(8, 64);
  // --- shown
  pith::KvCache cache({.num_heads = 8, .num_kv_heads = 2, .head_dim = 64}, pith::HeavyHitter{.heavy = 512, .recent = 512});
  cache.append(k, v);  // one token, [1, 128]: its rotated keys and its values
  for (pith::Index h = 0; h < 2; ++h) {
    const pith::Matrix<float> weights = softmax(q.middleRows(4 * h, 4) * cache.keys(h).transpose() / 8);  // your attention
    out.middleRows(4 * h, 4) = weights * cache.values(h);
    cache.observe({.kv_head = h, .weights = weights});  // for policies that watch it
  }
  cache.evict();
  // --- end
  CHECK((out.row(0) - v.leftCols(64)).norm() < 1e-5f);
  auto session = llama.start(SmallValues{}, {.max_prompt = 300});
  session.prefill(std::vector<pith::Token>(300, 'a'));
  CHECK(session.caches()[0].size(0) == 256);
}

void merging(const pith::Decoder<float>& llama, const std::vector<pith::Token>& prompt) {
  // --- shown
  // LOOK-M: all text stays; the image rows that the prompt evicts are merged into the kept rows with the most similar keys.
  const pith::Protect look_m(pith::PromptOnly(pith::HeavyHitter{.heavy = 200, .recent = 56}), {.kind = pith::TokenKind::text});
  auto averaged = llama.start(look_m, {}, pith::Averaged{});
  auto pivotal = llama.start(look_m, {}, pith::Pivotal{});
  auto weighted = llama.start(look_m, {}, pith::Weighted{});  // by cosine similarity
  auto by_masses = llama.start(look_m, {.keep_masses = true}, pith::MassWeighted{});
  auto csp = llama.start(pith::Csp{.heavy = 128, .recent = 128}, {}, pith::make_merge("d2o"));  // cross- and self-attention apart
  // --- end
  for (auto* session : {&averaged, &pivotal, &weighted, &by_masses, &csp}) {
    session->prefill(prompt);
    CHECK(session->next_position() == static_cast<pith::Position>(prompt.size()));
  }
}

void merging_in_your_own_loop() {
  // --- shown
  pith::KvCache cache{pith::AttentionShape{.num_heads = 32, .num_kv_heads = 8, .head_dim = 64},
                      pith::HeavyHitter{.heavy = 512, .recent = 512},
                      {.keep_masses = true},
                      pith::MassWeighted{}};
  // --- end
  CHECK(cache.budget() == 1024);
}

void image_tokens(const std::filesystem::path& folder, const Numbers& patches, const std::vector<pith::Token>& question) {
  const pith::Decoder<float> llama = pith::load_decoder(folder);
  constexpr pith::Token placeholder = -1;
  std::vector<pith::Token> tokens{0, placeholder};
  tokens.insert(tokens.end(), question.begin(), question.end());
  // --- shown
  const pith::Matrix<float> image = pith::load_linear(folder / "projector.safetensors").forward(patches);
  const auto map = pith::match_bipartite(image, {.r = 16});                    // ToMe: the 16 most similar pairs of tokens, by cosine
  const pith::Matrix<float> merged = map.merged(image);                        // their mean; or with a rule, pith::Pivotal{}
  const pith::MediaRows<float> media{.rows = merged, .row_of = map.row_of()};  // takes the placeholder's place in the question
  const auto& table = llama.weights().embed_tokens;
  const auto prompt = pith::splice(table, tokens, placeholder, {&media, 1}, pith::Placeholders::one_an_image);
  auto session = llama.start(pith::Csp{.heavy = 30, .recent = 30});  // keeps 60 rows of image and question
  session.prefill(prompt.embeddings, prompt.kinds);
  // --- end
  CHECK(map.rows() == image.rows() - 16);
  CHECK(session.next_position() == static_cast<pith::Position>(map.rows()) + static_cast<pith::Position>(tokens.size()) - 1);
}

}  // namespace

// --- shown
int adapted(const pith::Decoder<float>& llama, const char* one, const char* other, const std::vector<pith::Token>& prompt) {
  const auto polite = pith::load_adapter(one, llama);  // PEFT folders, unconverted
  const auto terse = pith::load_adapter(other, llama);
  auto a = llama.start(), b = llama.start(), base = llama.start();
  a.use(&polite);  // a pointer assignment: nothing is copied, the decoder stays shared
  b.use(&terse);
  for (auto* session : {&a, &b, &base}) session->prefill(prompt);

  const std::vector<pith::Session<float>*> batch{&a, &b, &base};  // one token of each, every weight read once
  pith::Workspace ws(llama.together_workspace_bytes(batch));
  pith::Matrix<float> logits(3, llama.vocab_size());
  const std::vector<pith::Token> next{'.', '.', '.'};
  llama.decode_together(batch, next, logits, ws);  // the bits of each decoded alone

  a.clear();       // rows cached under one adapter are refused under another
  a.use(nullptr);  // the base alone, exactly
  return 0;
}
// --- end

// --- shown
void ask_each(pith::Session<float>& session, std::span<const pith::ModelAdapter<float>> adapters) {  // the base has read the conversation
  const pith::Position end = session.next_position();
  for (const auto& adapter : adapters) {
    session.use(&adapter);
    session.prefill(adapter.parts().invocation);  // it begins here, at `end`: decode its answer …
    session.crop(end);                            // … and return to the base's rows (Dense; elsewhere by clone() or restore())
  }
  session.use(nullptr);
}
// --- end

namespace {

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream in(PITH_MODELS_DIR "/../../" + path);
  REQUIRE(in);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// What stands between the lines `begin` and `end`, without the indentation of `begin`.
std::vector<std::string> parts(const std::vector<std::string>& lines, const std::string& begin, const std::string& end) {
  std::vector<std::string> found;
  for (auto line = lines.begin(); line != lines.end(); ++line) {
    const std::size_t indent = line->find_first_not_of(' ');
    if (indent == std::string::npos || line->substr(indent) != begin) continue;
    std::string part;
    for (++line; line != lines.end() && *line != std::string(indent, ' ') + end; ++line)
      part += (line->size() > indent ? line->substr(indent) : "") + '\n';
    REQUIRE(line != lines.end());
    found.push_back(part);
  }
  return found;
}

}  // namespace

TEST_CASE("the READMEs show these snippets and no others", "[readme]") {
  const std::vector<std::string> here = parts(lines_of("tests/readme.test.cpp"), "// --- shown", "// --- end");
  std::vector<std::string> there = parts(lines_of("README.md"), "```cpp", "```");
  for (const std::string& snippet : parts(lines_of("include/pith/README.md"), "```cpp", "```")) there.push_back(snippet);
  CHECK(lines_of("README.md").size() <= 200);
  for (const std::string& snippet : here) {
    INFO("shown in no README:\n" << snippet);
    CHECK(std::count(there.begin(), there.end(), snippet) > 0);
  }
  for (const std::string& snippet : there) {
    INFO("not compiled here:\n" << snippet);
    CHECK(std::count(here.begin(), here.end(), snippet) > 0);
  }
}

TEST_CASE("the README of the headers lists every family, and no other", "[readme]") {
  std::vector<std::string> listed, expected;
  const std::string start = "| `";
  bool inside = false;
  for (const std::string& line : lines_of("include/pith/README.md")) {
    inside = line.starts_with("| `model_type` | models |") || (inside && line.starts_with("|"));
    if (inside && line.starts_with(start)) listed.push_back(line.substr(0, line.find(" | ", line.find(" | ") + 3)));
  }
  expected.push_back("| `model_type` | models");
  const auto add = [&](std::string_view type, std::string_view people) {
    expected.push_back(start + std::string(type) + "` | " + std::string(people));
  };
  for (const pith::detail::Family& family : pith::detail::families) add(family.model_type, family.people);
  for (const pith::detail::WrapperFamily& wrapper : pith::detail::wrapper_families) add(wrapper.model_type, wrapper.people);
  CHECK(listed == expected);
}

TEST_CASE("the README of the headers says what a session's cache takes", "[readme]") {
  const auto decoder = pith::load_decoder(PITH_MODELS_DIR "/tiny-prose");
  int rows = 0;
  bool inside = false;
  for (const std::string& line : lines_of("include/pith/README.md")) {
    inside = line.starts_with("| policy | `max_draft = 8` |") || (inside && line.starts_with("|"));
    if (!inside || !line.starts_with("| `")) continue;
    const std::string name = line.substr(3, line.find('`', 3) - 3);
    std::string expected = "| `" + name + "` |";
    for (const pith::Index drafts : {8, 0}) {
      const auto session =
          decoder.start(pith::make_policy(name, 128), {.max_prompt = 64, .max_tokens = 128, .max_generated = 64, .max_draft = drafts});
      expected += " " + std::to_string(session.cache_bytes()) + " |";
    }
    CHECK(line == expected);
    ++rows;
  }
  CHECK(rows == 7);
}

TEST_CASE("the README's program runs", "[readme]") {
  char folder[] = PITH_MODELS_DIR "/tiny-prose";
  char name[] = "program";
  char* argv[] = {name, folder, nullptr};
  CHECK(readme_program(2, argv) == 0);
  speculation(argv, {0, 'O', 'w', 'n', 'e', 'r', 's', 'h', 'i', 'p'});
}

TEST_CASE("the README's layers do as its comments say", "[readme]") {
  const Numbers W = numbers(7, 5, 1), A = numbers(4, 5, 2), B = numbers(7, 4, 3), x = numbers(3, 5, 4), dy = numbers(3, 7, 5);
  lora(W, A, B, x);
  ranks(W, A, B, x, dy);
  houlsby(numbers(2, 8, 6), numbers(8, 2, 7), numbers(3, 8, 8), numbers(3, 8, 9));
}

TEST_CASE("the README's caches do as its comments say", "[readme]") {
  const auto llama = pith::load_decoder(PITH_MODELS_DIR "/tiny-prose");
  const std::vector<pith::Token> prompt{0, 'O', 'w', 'n'};
  soft_prompts(llama, {'B', 'e', ' ', 'b', 'r', 'i', 'e', 'f'}, prompt);
  policies(llama, prompt);
  your_own_loop(numbers(1, 128, 1), numbers(1, 128, 2), numbers(8, 64, 3), llama);
  merging(llama, prompt);
  merging_in_your_own_loop();
  image_tokens(PITH_MODELS_DIR "/tiny-vlm", numbers(64, 48, 1), {'w', 'h', 'e', 'r', 'e'});
}

TEST_CASE("the README's adapters run on folders that are written here", "[readme]") {
  const pith_test::TempFolder folder;
  const auto llama = pith::load_decoder(PITH_MODELS_DIR "/tiny-prose");
  const pith::AdapterTarget target = llama.adapter_target();
  for (const std::uint64_t seed : {1u, 2u}) {
    pith::LoraFolderWriter<float> writer;
    writer.add("model.layers.0.self_attn.q_proj", pith::LoraAdapter<float>(pith_test::random_matrix<float>(4, target.hidden, seed),
                                                                           pith_test::random_matrix<float>(target.q, 4, seed)));
    writer.write(folder / std::to_string(seed));
  }
  CHECK(adapted(llama, (folder / "1").string().c_str(), (folder / "2").string().c_str(), {'O', 'w', 'n'}) == 0);
}
