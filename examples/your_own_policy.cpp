#include <cstdio>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

/// Keeps the rows with the smallest values, and the newest: tokens with little content tend to absorb attention.
struct QuietValues {
  pith::Index quiet = 8, recent = 24;
  pith::Index budget() const { return quiet + recent; }
  pith::Index stats(const pith::AttentionShape&) const { return 1; }  // one number per row: the norm of its value
  template <class S> void admit(const pith::KvRows<S>& fresh, pith::MatrixRef<S> stats) const {
    stats.row(0) = -fresh.values.rowwise().norm();
  }
  template <class S> void score(const pith::KvRows<S>& rows, pith::VectorRef<S> out) const {
    out = rows.stats.row(0);
    keep_newest(rows, recent, out);
  }
};

void your_own_policy(example::CommandLine& line) {
  const auto folder = example::model_folder(line);
  line.done();
  const auto decoder = pith::load_decoder(folder);
  const auto text = example::held_out(folder, decoder.vocab_size(), 240);
  auto quiet = decoder.start(QuietValues{}), window = decoder.start(pith::Window{32});
  std::printf("%-28s %6.4f nats/byte\n", "8 quietest + 24 newest:", example::nats_per_byte(quiet, std::span(text).first(240)));
  std::printf("%-28s %6.4f nats/byte\n", "32 newest:", example::nats_per_byte(window, std::span(text).first(240)));
}

int main(int argc, char** argv) { return example::run(argc, argv, "your_own_policy [FOLDER]", your_own_policy); }
