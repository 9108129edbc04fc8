#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <pith/model.hpp>

#include "model_text.hpp"

// Measures quality in the examples: log-probabilities of the last bytes of held-out windows, under a cache policy.
namespace example {

inline constexpr pith::Index window_bytes = 256, prompt_bytes = 192, measured = window_bytes - prompt_bytes;

/// Log-probabilities for the measured bytes of every window, one row per byte.
struct ShortRun {
  std::size_t bytes_held = 0;
  std::vector<std::vector<double>> thoughts;
};

template <class Session> ShortRun run_short(Session& session, std::span<const std::span<const pith::Token>> windows) {
  ShortRun run{session.cache_bytes(), {}};
  for (const std::span<const pith::Token> window : windows) {  // token 0, then 256 bytes
    session.clear();
    run.thoughts.push_back(log_probabilities(session.prefill(window.first(prompt_bytes + 1)).row(0)));
    for (pith::Index i = 1; i < measured; ++i)
      run.thoughts.push_back(log_probabilities(session.decode(window[static_cast<std::size_t>(prompt_bytes + i)]).row(0)));
  }
  return run;
}

struct Quality {
  double nats = 0, divergence = 0;
};

inline Quality compare(const ShortRun& run, const ShortRun& dense, std::span<const std::span<const pith::Token>> windows) {
  Quality quality;
  for (std::size_t i = 0; i < run.thoughts.size(); ++i) {
    const auto truth = windows[i / measured][static_cast<std::size_t>(prompt_bytes + 1) + i % measured];
    quality.nats -= run.thoughts[i][static_cast<std::size_t>(truth)];
    for (std::size_t t = 0; t < run.thoughts[i].size(); ++t)
      quality.divergence += std::exp(dense.thoughts[i][t]) * (dense.thoughts[i][t] - run.thoughts[i][t]);
  }
  const double bytes = static_cast<double>(run.thoughts.size());
  return {quality.nats / bytes, quality.divergence / bytes};
}

/// `count` evenly spaced windows of token 0 and window_bytes bytes.
class Windows {
 public:
  Windows(std::span<const pith::Token> text, std::size_t count) {
    const std::size_t size = text.size() - std::min<std::size_t>(text.size(), 1);
    if (count < 1 || size / window_bytes < count)
      throw std::invalid_argument(std::to_string(count) + " windows of " + std::to_string(window_bytes) + " bytes from a text of " +
                                  std::to_string(size) + ", expected 1 to " + std::to_string(size / window_bytes));
    const std::size_t apart = size / count;
    for (std::size_t w = 0; w < count; ++w) {
      owned_.push_back({0});
      const auto bytes = text.subspan(1 + w * apart, window_bytes);
      owned_.back().insert(owned_.back().end(), bytes.begin(), bytes.end());
    }
    spans_.assign(owned_.begin(), owned_.end());
  }
  std::span<const std::span<const pith::Token>> all() const { return spans_; }

 private:
  std::vector<std::vector<pith::Token>> owned_;
  std::vector<std::span<const pith::Token>> spans_;
};

}  // namespace example
