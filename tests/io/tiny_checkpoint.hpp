#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/core/types.hpp>
#include <pith/io/safetensors_writer.hpp>

#include "io/temp_folder.hpp"

namespace pith_test {

/// A llama of two layers in memory, to be changed and written: hidden 8, inner 6, 2 heads over 1 kv head of 4, vocabulary 5.
struct TinyCheckpoint {
  std::string config = R"({"model_type":"llama","vocab_size":5,"hidden_size":8,"intermediate_size":6,)"
                       R"("num_hidden_layers":2,"num_attention_heads":2,"num_key_value_heads":1})";
  std::map<std::string, pith::Matrix<float>> tensors;
  std::map<std::string, pith::DType> dtypes;  ///< F32 where not said

  TinyCheckpoint() {
    put("model.embed_tokens.weight", 5, 8);
    for (int l = 0; l < 2; ++l) {
      const std::string layer = "model.layers." + std::to_string(l) + ".";
      put(layer + "input_layernorm.weight", 8, 1);
      put(layer + "post_attention_layernorm.weight", 8, 1);
      put(layer + "self_attn.q_proj.weight", 8, 8);
      put(layer + "self_attn.k_proj.weight", 4, 8);
      put(layer + "self_attn.v_proj.weight", 4, 8);
      put(layer + "self_attn.o_proj.weight", 8, 8);
      put(layer + "mlp.gate_proj.weight", 6, 8);
      put(layer + "mlp.up_proj.weight", 6, 8);
      put(layer + "mlp.down_proj.weight", 8, 6);
    }
    put("model.norm.weight", 8, 1);
    put("lm_head.weight", 5, 8);
  }

  /// cols 1: a vector.
  void put(const std::string& name, pith::Index rows, pith::Index cols) {
    pith::Matrix<float> m(rows, cols);
    for (pith::Index i = 0; i < m.size(); ++i)
      m.data()[i] = static_cast<float>(static_cast<int>(rng_() % 65)) / 16 - 2;  // exact in every type
    tensors[name] = m;
  }

  void write(const TempFolder& folder, const std::function<bool(const std::string&)>& keep = {},
             const std::string& file = "model.safetensors") const {
    folder.write("config.json", config);
    pith::SafetensorsWriter writer;
    for (const auto& [name, m] : tensors)
      if (!keep || keep(name)) {
        const auto dtype = dtypes.find(name);
        const std::vector<std::byte> data = bytes(m, dtype == dtypes.end() ? pith::DType::f32 : dtype->second);
        writer.add(name, dtype == dtypes.end() ? pith::DType::f32 : dtype->second,
                   m.cols() == 1 ? std::vector<pith::Index>{m.rows()} : std::vector<pith::Index>{m.rows(), m.cols()}, data);
      }
    writer.write(folder / file);
  }

 private:
  template <class T> static std::vector<std::byte> as(const pith::Matrix<float>& m) {
    std::vector<std::byte> out(static_cast<std::size_t>(m.size()) * sizeof(T));
    for (pith::Index i = 0; i < m.size(); ++i) {
      const T value = static_cast<T>(m.data()[i]);
      std::memcpy(out.data() + static_cast<std::size_t>(i) * sizeof(T), static_cast<const void*>(&value), sizeof(T));
    }
    return out;
  }
  static std::vector<std::byte> bytes(const pith::Matrix<float>& m, pith::DType dtype) {
    switch (dtype) {
      case pith::DType::f64:
        return as<double>(m);
      case pith::DType::f16:
        return as<pith::half>(m);
      case pith::DType::bf16:
        return as<pith::bfloat16>(m);
      case pith::DType::i8:
        return as<std::int8_t>(m);
      default:
        return as<float>(m);
    }
  }
  std::mt19937_64 rng_{7};
};

}  // namespace pith_test
