#pragma once
// Quantised folders of a small llama, packed here by plain loops from random codes, beside the same weights in float.

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/safetensors_writer.hpp>

#include "io/temp_folder.hpp"

namespace pith_test {

/// A tensor in memory.
struct RawTensor {
  pith::DType dtype;
  std::vector<pith::Index> shape;
  std::vector<std::byte> bytes;

  template <class T> static RawTensor of(pith::DType dtype, std::vector<pith::Index> shape, const std::vector<T>& values) {
    RawTensor out{dtype, std::move(shape), std::vector<std::byte>(values.size() * sizeof(T))};
    if (!values.empty()) std::memcpy(out.bytes.data(), static_cast<const void*>(values.data()), out.bytes.size());
    return out;
  }
};

/// Random codes of a module: w[o, k] = (code[o, k] - zero[o, g]) scale[o, g] with g = group_of[k].
struct RandomCodes {
  int out, in, bits, groups;
  std::vector<int> code, zero, group_of;
  std::vector<float> scale;

  int& code_at(int o, int k) { return code[std::size_t(o * in + k)]; }
  int code_at(int o, int k) const { return code[std::size_t(o * in + k)]; }
  int zero_at(int o, int g) const { return zero[std::size_t(o * groups + g)]; }
  float scale_at(int o, int g) const { return scale[std::size_t(o * groups + g)]; }

  pith::Matrix<float> weight() const {
    pith::Matrix<float> w(out, in);
    for (int o = 0; o < out; ++o)
      for (int k = 0; k < in; ++k) {
        const int g = group_of[std::size_t(k)];
        w(o, k) = float(code_at(o, k) - zero_at(o, g)) * scale_at(o, g);
      }
    return w;
  }
};

/// The sizes of the model.
struct QuantisedSizes {
  int hidden = 64, inner = 96, heads = 2, kv_heads = 1, head_dim = 32, vocab = 40;
};

/// A folder whose projections a callback makes, and its twin in float.
class QuantisedFolder {
 public:
  using Sizes = QuantisedSizes;
  std::mt19937_64 rng{11};
  nlohmann::json config;
  std::map<std::string, RawTensor> tensors;
  std::map<std::string, pith::Matrix<float>> weights;  ///< what each coded module stands for, by its name

  explicit QuantisedFolder(nlohmann::json quantization, Sizes sizes = {}) : sizes_(sizes) {
    config = {{"model_type", "llama"},
              {"vocab_size", sizes.vocab},
              {"hidden_size", sizes.hidden},
              {"intermediate_size", sizes.inner},
              {"num_hidden_layers", 1},
              {"num_attention_heads", sizes.heads},
              {"num_key_value_heads", sizes.kv_heads},
              {"head_dim", sizes.head_dim}};
    if (!quantization.is_null()) config["quantization_config"] = std::move(quantization);
    floats("model.embed_tokens", sizes.vocab, sizes.hidden);
    floats("lm_head", sizes.vocab, sizes.hidden);
    for (const char* norm : {"model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"})
      tensors[std::string(norm) + ".weight"] =
          RawTensor::of(pith::DType::f32, {sizes.hidden}, std::vector<float>(std::size_t(sizes.hidden), 1.f));
  }

  /// Calls make(name, out, in) for each projection.
  void modules(const std::function<void(const std::string&, int, int)>& make) const {
    const Sizes& s = sizes_;
    const std::string layer = "model.layers.0.";
    make(layer + "self_attn.q_proj", s.heads * s.head_dim, s.hidden);
    make(layer + "self_attn.k_proj", s.kv_heads * s.head_dim, s.hidden);
    make(layer + "self_attn.v_proj", s.kv_heads * s.head_dim, s.hidden);
    make(layer + "self_attn.o_proj", s.hidden, s.heads * s.head_dim);
    make(layer + "mlp.gate_proj", s.inner, s.hidden);
    make(layer + "mlp.up_proj", s.inner, s.hidden);
    make(layer + "mlp.down_proj", s.hidden, s.inner);
  }

  int below(int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); }

  void floats(const std::string& name, int out, int in) {
    std::vector<float> values(std::size_t(out * in));
    for (float& value : values) value = float(below(129) - 64) / 256;
    tensors[name + ".weight"] = RawTensor::of(pith::DType::f32, {out, in}, values);
  }

  /// Random codes in groups of that many inputs, 0: one for all. Scales are exact in half and bfloat16. `middle`: all zeros are there; -1:
  /// random.
  RandomCodes random(int out, int in, int bits, int group, int middle = -1) {
    RandomCodes c{out, in, bits, group == 0 ? 1 : (in + group - 1) / group, {}, {}, {}, {}};
    for (int i = 0; i < out * in; ++i) c.code.push_back(below(1 << bits));
    for (int i = 0; i < out * c.groups; ++i) {
      c.zero.push_back(middle >= 0 ? middle : below(1 << bits));
      c.scale.push_back(std::ldexp(float(64 + below(64)), -9 - bits) * (below(8) == 0 ? -1.f : 1.f));
    }
    for (int k = 0; k < in; ++k) c.group_of.push_back(group == 0 ? 0 : k / group);
    return c;
  }

  static std::vector<std::uint16_t> halves(const std::vector<float>& values) {
    std::vector<std::uint16_t> out;
    for (const float value : values) out.push_back(Eigen::numext::bit_cast<std::uint16_t>(static_cast<pith::half>(value)));
    return out;
  }
  static std::vector<std::uint16_t> bfloats(const std::vector<float>& values) {
    std::vector<std::uint16_t> out;
    for (const float value : values) out.push_back(static_cast<pith::bfloat16>(value).value);
    return out;
  }
  /// [out, groups] as [groups, out].
  template <class T> static std::vector<T> turned(const RandomCodes& c, const std::vector<T>& values) {
    std::vector<T> out;
    for (int g = 0; g < c.groups; ++g)
      for (int o = 0; o < c.out; ++o) out.push_back(values[std::size_t(o * c.groups + g)]);
    return out;
  }

  /// AWQ: nibble i of a word holds output 8 j + pack[i].
  void awq(const std::string& name, const RandomCodes& c) {
    constexpr int pack[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    std::vector<std::uint32_t> codes, zeros;
    const auto word = [&](const auto& at, int j) {
      std::uint32_t out = 0;
      for (int i = 0; i < 8; ++i) out |= std::uint32_t(at(8 * j + pack[i])) << (4 * i);
      return out;
    };
    for (int k = 0; k < c.in; ++k)
      for (int j = 0; j < c.out / 8; ++j) codes.push_back(word([&](int o) { return c.code_at(o, k); }, j));
    for (int g = 0; g < c.groups; ++g)
      for (int j = 0; j < c.out / 8; ++j) zeros.push_back(word([&](int o) { return c.zero_at(o, g); }, j));
    tensors[name + ".qweight"] = RawTensor::of(pith::DType::i32, {c.in, c.out / 8}, codes);
    tensors[name + ".qzeros"] = RawTensor::of(pith::DType::i32, {c.groups, c.out / 8}, zeros);
    tensors[name + ".scales"] = RawTensor::of(pith::DType::f16, {c.groups, c.out}, halves(turned(c, c.scale)));
    weights[name] = c.weight();
  }

  /// GPTQ; `less`: what is taken from a zero before it is stored, within its bits. g_idx 0: none, else the tensor.
  void gptq(const std::string& name, const RandomCodes& c, int less, bool g_idx) {
    const int each = 32 / c.bits;
    std::vector<std::uint32_t> codes(std::size_t(c.in / each * c.out)), zeros(std::size_t(c.groups * c.out / each));
    for (int o = 0; o < c.out; ++o) {
      for (int k = 0; k < c.in; ++k) codes[std::size_t(k / each * c.out + o)] |= std::uint32_t(c.code_at(o, k)) << (k % each * c.bits);
      for (int g = 0; g < c.groups; ++g) {
        const auto stored = std::uint32_t(c.zero_at(o, g) - less) & ((1u << c.bits) - 1);
        zeros[std::size_t(g * (c.out / each) + o / each)] |= stored << (o % each * c.bits);
      }
    }
    tensors[name + ".qweight"] = RawTensor::of(pith::DType::i32, {c.in / each, c.out}, codes);
    tensors[name + ".qzeros"] = RawTensor::of(pith::DType::i32, {c.groups, c.out / each}, zeros);
    tensors[name + ".scales"] = RawTensor::of(pith::DType::bf16, {c.groups, c.out}, bfloats(turned(c, c.scale)));
    if (g_idx) tensors[name + ".g_idx"] = RawTensor::of(pith::DType::i32, {c.in}, c.group_of);
    weights[name] = c.weight();
  }

  /// compressed-tensors, packed: a stream of bits along a row, the least significant first.
  void packed(const std::string& name, const RandomCodes& c, bool zeros) {
    const auto stream = [&](int rows, int cols, const auto& at) {
      const int words = (cols * c.bits + 31) / 32;
      std::vector<std::uint32_t> out(std::size_t(rows * words));
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < cols; ++i)
          for (int b = 0; b < c.bits; ++b)
            out[std::size_t(r * words + (i * c.bits + b) / 32)] |= std::uint32_t(at(r, i) >> b & 1) << ((i * c.bits + b) % 32);
      return out;
    };
    tensors[name + ".weight_packed"] = RawTensor::of(pith::DType::i32, {c.out, (c.in * c.bits + 31) / 32},
                                                     stream(c.out, c.in, [&](int o, int k) { return c.code_at(o, k); }));
    tensors[name + ".weight_scale"] = RawTensor::of(pith::DType::bf16, {c.out, c.groups}, bfloats(c.scale));
    tensors[name + ".weight_shape"] = RawTensor::of(pith::DType::i64, {2}, std::vector<std::int64_t>{c.out, c.in});
    if (zeros) {
      const std::vector<std::uint32_t> along = stream(c.groups, c.out, [&](int g, int o) { return c.zero_at(o, g); });
      const int words = (c.out * c.bits + 31) / 32;
      std::vector<std::uint32_t> down;
      for (int w = 0; w < words; ++w)
        for (int g = 0; g < c.groups; ++g) down.push_back(along[std::size_t(g * words + w)]);
      tensors[name + ".weight_zero_point"] = RawTensor::of(pith::DType::i32, {words, c.groups}, down);
    }
    weights[name] = c.weight();
  }

  /// compressed-tensors, bytes: codes are stored less 128.
  void bytes(const std::string& name, const RandomCodes& c, bool zeros) {
    const auto less = [](const std::vector<int>& values) {
      std::vector<std::int8_t> out;
      for (const int value : values) out.push_back(static_cast<std::int8_t>(value - 128));
      return out;
    };
    tensors[name + ".weight"] = RawTensor::of(pith::DType::i8, {c.out, c.in}, less(c.code));
    tensors[name + ".weight_scale"] = RawTensor::of(pith::DType::f32, {c.out, c.groups}, c.scale);
    if (zeros) tensors[name + ".weight_zero_point"] = RawTensor::of(pith::DType::i8, {c.out, c.groups}, less(c.zero));
    weights[name] = c.weight();
  }

  /// The value of an F8_E4M3, from its bits.
  static float e4m3(int code) {
    const int e = code >> 3 & 15, m = code & 7;
    const float value = e == 0 ? std::ldexp(float(m), -9) : std::ldexp(1 + float(m) / 8, e - 7);
    return (code & 128) != 0 ? -value : value;
  }

  /// Floats of eight bits under a grid of scales; the scales' tensor is the caller's. Returns the scales [down, across].
  std::vector<float> float8(const std::string& name, int out, int in, int rows, int cols) {
    std::vector<std::uint8_t> codes;
    for (int i = 0; i < out * in; ++i) codes.push_back(static_cast<std::uint8_t>(below(2) * 128 + below(0x48)));
    const int across = (in + cols - 1) / cols;
    std::vector<float> scales;
    for (int i = 0; i < (out + rows - 1) / rows * across; ++i) scales.push_back(std::ldexp(1.f, -2 - below(3)));
    pith::Matrix<float>& w = weights[name] = pith::Matrix<float>(out, in);
    for (int o = 0; o < out; ++o)
      for (int k = 0; k < in; ++k) w(o, k) = e4m3(codes[std::size_t(o * in + k)]) * scales[std::size_t(o / rows * across + k / cols)];
    tensors[name + ".weight"] = RawTensor::of(pith::DType::f8_e4m3, {out, in}, codes);
    return scales;
  }

  /// bitsandbytes in four bits over the flattened matrix. `storage`: another type for the same bytes.
  void table4(const std::string& name, int out, int in, const std::string& type, int block, pith::DType storage, bool nested) {
    std::vector<float> table, absmax, outer;
    for (int i = 0; i < 16; ++i) table.push_back(float(i * i - 90) / 128);
    std::vector<std::uint8_t> codes(std::size_t(out * in / 2)), inner;
    const int blocks = (out * in + block - 1) / block;
    std::vector<float> nested_map;
    for (int i = 0; i < 256; ++i) nested_map.push_back(float(i) / 512 - .25f);
    for (int j = 0; j < (blocks + 255) / 256; ++j) outer.push_back(float(1 + below(7)) / 8);
    const float offset = .375f;
    for (int j = 0; j < blocks; ++j) {
      inner.push_back(static_cast<std::uint8_t>(below(256)));
      absmax.push_back(nested ? nested_map[inner.back()] * outer[std::size_t(j / 256)] + offset : float(1 + below(63)) / 64);
    }
    pith::Matrix<float>& w = weights[name] = pith::Matrix<float>(out, in);
    for (int i = 0; i < out * in; ++i) {
      const int code = below(16);
      codes[std::size_t(i / 2)] |= static_cast<std::uint8_t>(i % 2 == 0 ? code << 4 : code);
      w.data()[i] = table[std::size_t(code)] * absmax[std::size_t(i / block)];
    }
    nlohmann::json state = {{"quant_type", type}, {"blocksize", block}, {"dtype", "bfloat16"}, {"shape", {out, in}}};
    if (nested) state.update({{"nested_blocksize", 256}, {"nested_dtype", "float32"}, {"nested_offset", offset}});
    const std::string text = state.dump();
    const pith::Index width = pith::Index(pith::dtype_bits(storage) / 8);
    tensors[name + ".weight"] = RawTensor::of(pith::DType::u8, {out * in / 2 / width, 1}, codes);
    tensors[name + ".weight"].dtype = storage;
    tensors[name + ".weight.quant_map"] = RawTensor::of(pith::DType::f32, {16}, table);
    tensors[name + ".weight.absmax"] =
        nested ? RawTensor::of(pith::DType::u8, {blocks}, inner) : RawTensor::of(pith::DType::f32, {blocks}, absmax);
    tensors[name + ".weight.quant_state.bitsandbytes__" + type] =
        RawTensor::of(pith::DType::u8, {pith::Index(text.size())}, std::vector<char>(text.begin(), text.end()));
    if (!nested) return;
    tensors[name + ".weight.nested_absmax"] = RawTensor::of(pith::DType::f32, {pith::Index(outer.size())}, outer);
    tensors[name + ".weight.nested_quant_map"] = RawTensor::of(pith::DType::f32, {256}, nested_map);
  }

  void write(const TempFolder& folder) const {
    folder.write("config.json", config.dump());
    pith::SafetensorsWriter writer;
    for (const auto& [name, tensor] : tensors) writer.add(name, tensor.dtype, tensor.shape, tensor.bytes);
    writer.write(folder / "model.safetensors");
  }

  /// The same model with all its weights in float.
  void write_twin(const TempFolder& folder) const {
    QuantisedFolder twin = *this;
    twin.config.erase("quantization_config");
    twin.config.erase("compression_config");
    for (const auto& [name, weight] : weights) {
      std::erase_if(twin.tensors, [prefix = name + "."](const auto& tensor) { return tensor.first.starts_with(prefix); });
      twin.tensors[name + ".weight"] =
          RawTensor::of(pith::DType::f32, {weight.rows(), weight.cols()}, std::vector<float>(weight.data(), weight.data() + weight.size()));
    }
    twin.write(folder);
  }

 private:
  Sizes sizes_;
};

}  // namespace pith_test
