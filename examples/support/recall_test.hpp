#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <pith/core/types.hpp>

// Records in filler, and questions about them: how many answers a session still knows. Used by the examples and by tests.
namespace example {

struct RecallQuestion {
  std::vector<pith::Token> ask;  ///< "?K"
  pith::Token digits[2] = {};
};

struct RecallDocument {
  std::vector<pith::Token> context;  ///< token 0, then the bytes of the text
  std::vector<RecallQuestion> questions;

  /// What stands in the text if the question of this number is asked and answered.
  std::vector<pith::Token> answered(std::size_t number) const {
    std::vector<pith::Token> tokens = questions[number].ask;
    tokens.insert(tokens.end(), {questions[number].digits[0], questions[number].digits[1], pith::Token(' ')});
    return tokens;
  }
};

/// The first `most` documents of a file of JSON lines.
inline std::vector<RecallDocument> recall_documents(const std::filesystem::path& file, std::size_t most) {
  std::ifstream lines(file);
  if (!lines) throw std::runtime_error("cannot open " + file.string());
  std::vector<RecallDocument> documents;
  for (std::string line; documents.size() < most && std::getline(lines, line);) {
    const nlohmann::json entry = nlohmann::json::parse(line);
    RecallDocument& document = documents.emplace_back();
    document.context.push_back(0);
    for (const char c : entry.at("context").get<std::string>()) document.context.push_back(static_cast<unsigned char>(c));
    for (const auto& given : entry.at("questions")) {
      const std::string ask = given.at("ask").get<std::string>(), answer = given.at("answer").get<std::string>();
      if (answer.size() != 2) throw std::runtime_error(file.string() + ": answer '" + answer + "', expected two digits");
      RecallQuestion& question = document.questions.emplace_back();
      for (const char c : ask) question.ask.push_back(static_cast<unsigned char>(c));
      for (std::size_t d = 0; d < 2; ++d) question.digits[d] = static_cast<unsigned char>(answer[d]);
    }
  }
  return documents;
}

/// Asks a session; whether both digits are the most likely ones, the first one given. `stays`: the true answer stays in the text, else the
/// question is taken back.
template <class Session> bool knows(Session& session, const RecallQuestion& question, bool stays) {
  const pith::Position start = session.next_position();
  if (!stays) session.checkpoint();
  const auto best = [&](std::span<const pith::Token> tokens) {
    const auto logits = session.decode(tokens);
    pith::Index token = 0;
    logits.row(logits.rows() - 1).maxCoeff(&token);
    return static_cast<pith::Token>(token);
  };
  const bool first = best(question.ask) == question.digits[0];
  const bool second = best({&question.digits[0], 1}) == question.digits[1];
  if (stays) {
    const pith::Token end[] = {question.digits[1], ' '};
    session.decode(end);
  } else {
    session.crop(start);
  }
  return first && second;
}

/// Questions asked and answered rightly, by the number of the question.
struct Recalled {
  std::vector<double> right, asked;

  void note(std::size_t number, bool knew) {
    if (number >= asked.size()) right.resize(number + 1), asked.resize(number + 1);
    right[number] += knew;
    asked[number] += 1;
  }
  double share(std::size_t first = 0, std::size_t end = static_cast<std::size_t>(-1)) const {
    double r = 0, a = 0;
    for (std::size_t i = first; i < asked.size() && i < end; ++i) r += right[i], a += asked[i];
    return a > 0 ? r / a : 0;
  }
};

}  // namespace example
