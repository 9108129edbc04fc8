#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

#include "command_line.hpp"

// Shared by the examples on the shipped byte-level model: its folder, its text, and nats per byte.
namespace example {

/// The folder named on the command line, or the model that ships with pith.
inline std::filesystem::path model_folder(CommandLine& line) { return line.next(PITH_MODELS_DIR "/tiny-prose"); }

/// The bytes of a text file as tokens, after token 0, which begins every text of a byte-level model.
inline std::vector<pith::Token> byte_tokens(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot open " + file.string());
  std::vector<pith::Token> tokens{0};
  for (std::istreambuf_iterator<char> c(in), end; c != end; ++c) tokens.push_back(static_cast<unsigned char>(*c));
  return tokens;
}

/// byte_tokens() of the folder's heldout.txt, which must have `least` bytes or more, for a model of bytes.
inline std::vector<pith::Token> held_out(const std::filesystem::path& folder, pith::Index vocab_size, std::size_t least) {
  if (vocab_size < 256)
    throw std::runtime_error(folder.string() + " has " + std::to_string(vocab_size) +
                             " tokens, expected 256 or more: the example reads a text of bytes");
  std::vector<pith::Token> tokens = byte_tokens(folder / "heldout.txt");
  if (tokens.size() <= least)
    throw std::runtime_error((folder / "heldout.txt").string() + " has " + std::to_string(tokens.size() - 1) + " bytes, expected " +
                             std::to_string(least) + " or more");
  return tokens;
}

/// log softmax(logits).
inline std::vector<double> log_probabilities(pith::ConstVectorRef<float> logits) {
  const double top = logits.maxCoeff();
  double sum = 0;
  for (pith::Index i = 0; i < logits.size(); ++i) sum += std::exp(double(logits[i]) - top);
  std::vector<double> out(static_cast<std::size_t>(logits.size()));
  for (pith::Index i = 0; i < logits.size(); ++i) out[static_cast<std::size_t>(i)] = double(logits[i]) - top - std::log(sum);
  return out;
}

/// Mean nats per byte, -log p(next), of `text` read token by token.
template <class Session> double nats_per_byte(Session& session, std::span<const pith::Token> text) {
  double nats = 0;
  for (std::size_t i = 0; i + 1 < text.size(); ++i)
    nats -= log_probabilities(session.decode(text[i]).row(0))[static_cast<std::size_t>(text[i + 1])];
  return nats / static_cast<double>(text.size() - 1);
}

}  // namespace example
