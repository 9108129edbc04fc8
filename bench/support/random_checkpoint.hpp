#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/io/safetensors_writer.hpp>
#include <pith/model/config.hpp>
#include <pith/model/weights.hpp>

namespace pith_bench {

/// A folder of its own below another one, gone with its owner.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::filesystem::path& parent) {
    std::string name = (parent / "pith-bench-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder in " + parent.string());
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_config(const std::filesystem::path& path, const pith::DecoderConfig& c) {
  const nlohmann::json json{{"model_type", "llama"},
                            {"hidden_act", "silu"},
                            {"vocab_size", c.vocab_size},
                            {"hidden_size", c.hidden_size},
                            {"intermediate_size", c.intermediate_size},
                            {"num_hidden_layers", c.num_hidden_layers},
                            {"num_attention_heads", c.num_attention_heads},
                            {"num_key_value_heads", c.num_key_value_heads},
                            {"head_dim", c.head_dim},
                            {"max_position_embeddings", c.max_position_embeddings},
                            {"rms_norm_eps", c.norm_eps},
                            {"rope_theta", c.rope().theta},
                            {"tie_word_embeddings", c.tie_word_embeddings}};
  std::ofstream out(path);
  out << json.dump(1) << '\n';
  if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
}

/// A Llama of this shape with random weights stored as T, a folder as Hugging Face has it. Weights are uniform with variance 1/in, so
/// activations keep their size through any number of layers.
///
/// Tensors of equal `in` are stretches of one pool of random numbers, each from another place: beside the file there is only the largest of
/// them in memory.
template <class T> void write_random_checkpoint(const std::filesystem::path& folder, const pith::DecoderConfig& c) {
  using pith::Index;
  struct Planned {
    std::string name;
    Index out, in;
  };
  std::vector<Planned> matrices{{"model.embed_tokens.weight", c.vocab_size, c.hidden_size}};
  if (!c.tie_word_embeddings) matrices.push_back({"lm_head.weight", c.vocab_size, c.hidden_size});
  std::vector<std::string> norms{"model.norm.weight"};
  for (Index l = 0; l < c.num_hidden_layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    norms.push_back(prefix + "input_layernorm.weight");
    norms.push_back(prefix + "post_attention_layernorm.weight");
    const pith::LayerWeights<float> layer;
    pith::detail::for_each_projection(layer, c, [&](const char* name, const auto&, Index out, Index in) {
      matrices.push_back({prefix + name + ".weight", out, in});
    });
  }

  constexpr Index places = 1 << 16, step = 977;
  std::map<Index, std::vector<T>> pools;
  for (const Planned& m : matrices) {
    std::vector<T>& pool = pools[m.in];
    pool.resize(std::max(pool.size(), static_cast<std::size_t>(m.out * m.in + places)));
  }
  std::mt19937_64 rng(1);
  for (auto& [in, pool] : pools) {
    const float scale = std::sqrt(3.f / static_cast<float>(in));
    for (T& value : pool) value = static_cast<T>(scale * (2.f * pith::canonical<float>(rng) - 1.f));
  }

  pith::SafetensorsWriter writer;
  Index turn = 0;
  for (const Planned& m : matrices)
    writer.add_view(
        m.name, pith::detail::dtype_of<T>(), {m.out, m.in},
        std::as_bytes(
            std::span(pools[m.in]).subspan(static_cast<std::size_t>(turn++ * step % places), static_cast<std::size_t>(m.out * m.in))));
  const pith::Vector<T> ones = pith::Vector<float>::Ones(c.hidden_size).cast<T>();
  for (const std::string& name : norms) writer.add(name, ones);
  write_config(folder / "config.json", c);
  writer.write(folder / "model.safetensors");
}

}  // namespace pith_bench
