// A folder of an adapter, some of whose files the input replaces: refused, or an adapter that a session can use; the decoder stays as it
// is.
#include <array>
#include <optional>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "fuzz/fuzz.hpp"
#include "io/tiny_adapter.hpp"
#include "io/tiny_checkpoint.hpp"
#include "support/random_matrix.hpp"

namespace pith_fuzz {
namespace {

constexpr std::string_view config_name = "adapter_config.json", tensors_name = "adapter_model.safetensors";

struct Base {
  std::filesystem::path folder = scratch() / "adapter";
  pith::Decoder<float> decoder = load();
  std::string config, tensors;
  pith::Matrix<float> plain = logits(nullptr);

  Base() {
    std::filesystem::create_directory(folder);
    const pith_test::TempFolder made;
    pith_test::TinyAdapter().write(made);
    config = made.read(std::string(config_name));
    tensors = made.read(std::string(tensors_name));
  }

  pith::Matrix<float> logits(const pith::ModelAdapter<float>* adapter, const pith::KvPrefix& prefix = {}) const {
    auto session = decoder.start(pith::Dense{}, {.max_prompt = 64, .max_tokens = 128, .max_draft = 0, .prefix = prefix});
    session.use(adapter);
    const std::array<pith::Token, 3> prompt{0, 1, 2};
    session.prefill(prompt);
    return session.decode(pith::Token{3});
  }

 private:
  static pith::Decoder<float> load() {
    const pith_test::TempFolder made;
    pith_test::TinyCheckpoint().write(made);
    return pith::load_decoder<float>(made.path());
  }
};

}  // namespace

void run_adapter(Bytes bytes) {
  static const Base base;
  write_file(base.folder / config_name, base.config);
  write_file(base.folder / tensors_name, base.tensors);
  for_files(bytes, config_name, [&](std::string_view name, std::string_view text) {
    if (name == config_name || name == tensors_name) write_file(base.folder / name, text);
  });
  const Outcome outcome = attempt([&] {
    const pith::PeftFolder folder(base.folder);
    for (const std::string& module : folder.modules()) attempt([&] { folder.load<float>(module); });
    if (folder.config().type == pith::PeftType::prefix_tuning) {
      const pith::KvPrefix prefix = pith::load_prefix<float>(folder, base.decoder);
      attempt([&] { base.logits(nullptr, prefix); });
      return;
    }
    const pith::ModelAdapter<float> adapter = pith::load_adapter(folder, base.decoder);
    attempt([&] { base.logits(&adapter); });  // a prompt may be longer than a session takes
  });
  demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::unsupported || outcome == Outcome::memory,
         "an adapter is refused as a file");
  if (outcome == Outcome::done) demand(pith_test::same_bits(base.logits(nullptr), base.plain), "an adapter leaves the decoder as it is");
}

}  // namespace pith_fuzz
