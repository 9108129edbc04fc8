#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/model.hpp>

#include "model_text.hpp"

// The vision-language model that ships with pith, its images and the dialogues about them.
namespace example {

inline std::vector<pith::Token> bytes_of(const std::string& text) {
  std::vector<pith::Token> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

enum QuestionKind { color_of, pattern_of, where_is, question_kinds };
inline constexpr const char* question_names[question_kinds] = {"color of", "pattern of", "where is"};

struct Question {
  QuestionKind kind;
  std::vector<pith::Token> question, answer;
};
struct Scene {
  pith::Matrix<float> patches;  ///< [patches, 3*4*4] channels first, 0 .. 1; patches row by row
  std::vector<Question> dialogue;
};

/// Loads the first `most` images of a folder with scenes.safetensors and scenes.jsonl.
inline std::vector<Scene> load_scenes(const std::filesystem::path& folder, std::size_t most = 1000) {
  const pith::Safetensors file = pith::Safetensors::map(folder / "scenes.safetensors");
  const std::vector<pith::Index> shape(file.at("patches").shape.begin(), file.at("patches").shape.end());
  const std::span<const std::byte> pixels = file.bytes(file.at("patches"));
  std::ifstream lines(folder / "scenes.jsonl");
  if (!lines || shape.size() != 3) throw std::runtime_error(folder.string() + " holds no scenes");
  std::vector<Scene> scenes;
  for (std::string line; scenes.size() < most && std::getline(lines, line);) {
    const nlohmann::json entry = nlohmann::json::parse(line);
    const pith::Index image = entry.at("image").get<pith::Index>(), size = shape[1] * shape[2];
    if (image < 0 || image >= shape[0]) throw std::runtime_error("scenes.jsonl speaks of image " + std::to_string(image));
    Scene scene{pith::Matrix<float>(shape[1], shape[2]), {}};
    for (pith::Index i = 0; i < size; ++i)
      scene.patches.data()[i] = static_cast<float>(pixels[static_cast<std::size_t>(image * size + i)]) / 255.f;
    for (const auto& turn : entry.at("dialogue")) {
      const auto question = turn.at("question").get<std::string>();
      const auto known =
          std::find_if(std::begin(question_names), std::end(question_names), [&](const char* n) { return question.starts_with(n); });
      if (known == std::end(question_names)) throw std::runtime_error("unknown question: " + question);
      scene.dialogue.push_back({static_cast<QuestionKind>(known - std::begin(question_names)), bytes_of(question),
                                bytes_of(turn.at("answer").get<std::string>())});
    }
    scenes.push_back(std::move(scene));
  }
  return scenes;
}

/// Token 0, the image, and the first question: the prompt before any row is evicted.
inline pith::SplicedPrompt<float> scene_prompt(const pith::Decoder<float>& decoder, const Scene& scene,
                                               const pith::MediaRows<float>& image) {
  constexpr pith::Token placeholder = -1;
  std::vector<pith::Token> tokens{0, placeholder};
  tokens.insert(tokens.end(), scene.dialogue.front().question.begin(), scene.dialogue.front().question.end());
  return pith::splice<float>(decoder.weights().embed_tokens, tokens, placeholder, std::span(&image, 1), pith::Placeholders::one_an_image);
}

struct Answers {
  std::array<int, question_kinds> right{}, asked{};
  std::vector<std::vector<double>> thoughts;  ///< log-probabilities before every byte of every answer
  int all_right() const { return right[color_of] + right[pattern_of] + right[where_is]; }
};

/// Reads the image and all questions with their true answers. An answer is right if each of its bytes was the likeliest.
template <class Session>
void answer(Session& session, const pith::Decoder<float>& decoder, const Scene& scene, const pith::MediaRows<float>& image,
            Answers& answers) {
  const pith::SplicedPrompt<float> prompt = scene_prompt(decoder, scene, image);
  session.clear();
  pith::Vector<float> expected = session.prefill(prompt.embeddings, prompt.kinds, {.masses = prompt.masses}).row(0);
  const auto read = [&](std::span<const pith::Token> tokens) {  // in chunks; the last row follows the last token
    pith::Matrix<float> rows(static_cast<pith::Index>(tokens.size()), session.vocab_size());
    const std::size_t chunk = 9;  // max_draft + 1
    for (std::size_t t = 0; t < tokens.size(); t += chunk) {
      const auto piece = tokens.subspan(t, std::min(chunk, tokens.size() - t));
      rows.middleRows(static_cast<pith::Index>(t), static_cast<pith::Index>(piece.size())) = session.decode(piece);
    }
    return rows;
  };
  for (std::size_t q = 0; q < scene.dialogue.size(); ++q) {
    const Question& turn = scene.dialogue[q];
    if (q > 0) expected = read(turn.question).bottomRows(1).transpose();
    const pith::Matrix<float> after = read(turn.answer);
    bool right = true;
    for (std::size_t i = 0; i < turn.answer.size(); ++i) {
      pith::Index likeliest = 0;
      expected.maxCoeff(&likeliest);
      right = right && likeliest == turn.answer[i];
      answers.thoughts.push_back(log_probabilities(expected));
      expected = after.row(static_cast<pith::Index>(i));
    }
    answers.right[turn.kind] += right;
    ++answers.asked[turn.kind];
  }
}

/// Mean KL divergence from a session with the full cache: the effect of leaving rows out.
inline double divergence(const Answers& full, const Answers& other) {
  double sum = 0;
  for (std::size_t i = 0; i < full.thoughts.size(); ++i)
    for (std::size_t t = 0; t < full.thoughts[i].size(); ++t)
      sum += std::exp(full.thoughts[i][t]) * (full.thoughts[i][t] - other.thoughts[i][t]);
  return sum / static_cast<double>(full.thoughts.size());
}

}  // namespace example
