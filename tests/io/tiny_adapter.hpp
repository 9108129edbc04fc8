#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/io/safetensors_writer.hpp>

#include "io/temp_folder.hpp"

namespace pith_test {

/// A PEFT folder in memory, to be changed and written: LoRA of rank 2 on the q and up projections of both layers of a TinyCheckpoint.
struct TinyAdapter {
  nlohmann::ordered_json config = nlohmann::ordered_json::parse(
      R"({"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj","up_proj"],"lora_dropout":0.05,"bias":"none"})");
  std::map<std::string, pith::Matrix<float>> tensors;
  std::map<std::string, std::vector<pith::Index>> shapes;  ///< of tensors that are no matrices, where not said by put()
  std::map<std::string, pith::DType> dtypes;               ///< F32 where not said; I8 writes zeros

  TinyAdapter() {
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      lora(layer + "self_attn.q_proj", 8, 2, 8);
      lora(layer + "mlp.up_proj", 6, 2, 8);
    }
  }

  static std::string name(const std::string& module, const std::string& part) { return "base_model.model." + module + "." + part; }
  void lora(const std::string& module, pith::Index out, pith::Index rank, pith::Index in) {
    put(name(module, "lora_A.weight"), rank, in);
    put(name(module, "lora_B.weight"), out, rank);
  }
  /// cols -1: a vector.
  pith::Matrix<float>& put(const std::string& tensor, pith::Index rows, pith::Index cols = -1) {
    pith::Matrix<float> m(rows, cols < 0 ? 1 : cols);
    for (pith::Index i = 0; i < m.size(); ++i)
      m.data()[i] = static_cast<float>(static_cast<int>(rng_() % 65)) / 16 - 2;  // exact in every type
    vectors_[tensor] = cols < 0;
    return tensors[tensor] = m;
  }

  void write(const TempFolder& folder) const {
    folder.write("adapter_config.json", config.dump());
    pith::SafetensorsWriter writer;
    for (const auto& entry : tensors) {
      const auto& tensor = entry.first;
      const auto& m = entry.second;
      const auto dtype = dtypes.find(tensor);
      const auto said = shapes.find(tensor);
      const std::vector<pith::Index> shape = said != shapes.end()  ? said->second
                                             : vectors_.at(tensor) ? std::vector<pith::Index>{m.rows()}
                                                                   : std::vector<pith::Index>{m.rows(), m.cols()};
      const auto add = [&]<class T>(T, pith::DType type) {
        const pith::Matrix<T> values = m.template cast<T>();
        writer.add(tensor, type, shape, std::as_bytes(std::span(values.data(), static_cast<std::size_t>(values.size()))));
      };
      if (dtype == dtypes.end())
        add(float{}, pith::DType::f32);
      else if (dtype->second == pith::DType::f16)
        add(pith::half{}, pith::DType::f16);
      else if (dtype->second == pith::DType::bf16)
        add(pith::bfloat16{}, pith::DType::bf16);
      else if (dtype->second == pith::DType::f64)
        add(double{}, pith::DType::f64);
      else if (dtype->second == pith::DType::i8)
        add(std::int8_t{}, pith::DType::i8);
    }
    writer.write(folder / "adapter_model.safetensors");
  }

 private:
  std::map<std::string, bool> vectors_;
  std::mt19937_64 rng_{11};
};

}  // namespace pith_test
