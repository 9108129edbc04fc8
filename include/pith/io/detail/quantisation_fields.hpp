#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/compressed_fields.hpp>
#include <pith/io/detail/family_fields.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/quantisation.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

// Reads the keys of quantised checkpoints in config.json, and refuses by name what would change the numbers.
namespace pith { inline namespace v0 { namespace detail {

/// The value of a key that only quantised checkpoints have, for a refusal.
inline std::string shown_method(std::string_view file, const std::string& key, const Json& value) {
  if (!value.is_object()) return value.dump(40);
  const JsonFields q(file, value, text(key, "."));
  if (const auto* method = q.find("quant_method")) return method->dump(40);
  return q.find("bits") != nullptr && q.find("group_size") != nullptr ? "by MLX" : "by an unnamed method";
}

/// One text in lower case, under any of these keys; two of them have to agree.
inline std::string spelling(const JsonFields& q, std::initializer_list<const char*> keys, const char* otherwise) {
  std::string said;
  for (const char* key : keys)
    if (q.find(key) != nullptr) {
      std::string word = q.string(key);
      std::transform(word.begin(), word.end(), word.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
      if (!said.empty() && said != word) q.refuse(key, text(in_quotes(said), ", as another key has it"));
      said = std::move(word);
    }
  return said.empty() ? otherwise : said;
}

inline NameIndex read_skipped(const JsonFields& q, std::initializer_list<const char*> keys) {
  std::vector<std::string> names;
  for (const char* key : keys)
    if (const Json* list = q.find(key)) {
      const char* expected = "a list of names of modules";
      if (!list->is_array()) q.refuse(key, expected);
      for (const Json& one : *list) {
        if (!one.is_string()) q.refuse(key, expected);
        names.push_back(one.get<std::string>());
      }
    }
  return NameIndex(std::move(names));
}

/// A group size: -1 for all inputs, or a positive number.
inline Index read_group(const JsonFields& q, const char* key, Index otherwise) {
  const Index group = q.size(key, otherwise, -1, max_config_size);
  if (group == 0) q.refuse(key, "-1 or a number from 1");
  return group;
}

inline void read_awq(const JsonFields& q, Quantisation& out) {
  const bool old = q.find("w_bit") != nullptr;
  out.bits = q.size(old ? "w_bit" : "bits", 4, 1, 64);
  if (out.bits != 4) unsupported(q.file(), text(q.path(old ? "w_bit" : "bits"), " is ", out.bits, ", which is not supported: AWQ has 4"));
  out.group = read_group(q, old ? "q_group_size" : "group_size", 128);
  q.boolean("zero_point", true);  // the tensors tell
  const std::string version = spelling(q, {"version", "format"}, "gemm");
  if (version != "gemm")
    unsupported(q.file(), text(q.path("version"), " ", in_quotes(version), " is not supported: its codes lie in another order; gemm is"));
  if (spelling(q, {"backend"}, "") == "llm-awq")
    unsupported(q.file(), text(q.path("backend"), " 'llm-awq' is not supported: its codes lie in another order; autoawq is"));
  out.skipped = read_skipped(q, {"modules_to_not_convert"});
}

inline void check_gptq_bits(const JsonFields& q, const char* key, Index bits) {
  if (bits != 4 && bits != 8) unsupported(q.file(), text(q.path(key), " is ", bits, ", which is not supported: of GPTQ, 4 and 8 bits are"));
}

inline void read_gptq_overrides(const JsonFields& q, Quantisation& out) {
  const Json* all = q.find("dynamic");
  if (all == nullptr || (all->is_boolean() && !all->get<bool>())) return;
  const JsonFields dynamic(q.file(), *all, q.path("dynamic") + ".");
  for (const auto& [key, value] : all->items()) {
    const bool skip = key.starts_with("-:"), marked = skip || key.starts_with("+:");
    GptqOverride one{Pattern(marked ? key.substr(2) : key, text("pith: ", in_quotes(q.file()), ": ", q.path("dynamic"))), skip};
    if (!skip) {
      const JsonFields fields(q.file(), value, dynamic.path(key) + ".");
      if (fields.find("bits") != nullptr) {
        one.bits = fields.size("bits", {}, 1, 64);
        check_gptq_bits(fields, "bits", *one.bits);
      }
      if (fields.find("group_size") != nullptr) one.group = read_group(fields, "group_size", -1);
    }
    out.hold(one.names.states());
    out.overrides.push_back(std::move(one));
  }
}

inline void read_gptq(const JsonFields& q, Quantisation& out) {
  out.bits = q.size("bits", 4, 1, 64);
  check_gptq_bits(q, "bits", out.bits);
  out.group = read_group(q, "group_size", 128);
  out.act_order = q.boolean("desc_act", false);
  if (q.boolean("is_marlin_format", false))
    unsupported(q.file(), text(q.path("is_marlin_format"), " is true, which is not supported: its codes lie in another order"));
  const std::string format = spelling(q, {"checkpoint_format", "format"}, "gptq");
  if (format != "gptq" && format != "gptq_v2")
    unsupported(q.file(), text(q.path("checkpoint_format"), " ", in_quotes(format), " is not supported: gptq and gptq_v2 are"));
  out.zeros_minus_one = format == "gptq";
  if (const std::string words = spelling(q, {"pack_dtype"}, "int32"); words != "int32")
    unsupported(q.file(), text(q.path("pack_dtype"), " ", in_quotes(words), " is not supported: int32 is"));
  out.skipped = read_skipped(q, {"modules_to_not_convert"});
  read_gptq_overrides(q, out);
}

inline void read_fp8(const JsonFields& q, Quantisation& out) {
  if (const std::string format = spelling(q, {"fmt"}, "e4m3"); format != "e4m3")
    unsupported(q.file(), text(q.path("fmt"), " ", in_quotes(format), " is not supported: e4m3 is"));
  const char* key = "weight_block_size";
  const bool described = q.find(key) != nullptr || q.is_null(key);
  if (!described && spelling(q, {"activation_scheme"}, "dynamic") == "static")
    q.refuse(key, "null (one scale for each weight) or [rows, columns], where activation_scheme is 'static'");
  out.block_rows = out.block_cols = described ? 0 : 128;
  if (const Json* block = q.find(key)) {
    if (!block->is_array() || block->size() != 2) q.refuse(key, "null, or a list of two numbers");
    out.block_rows = q.whole(key, (*block)[0], 1, max_config_size);
    out.block_cols = q.whole(key, (*block)[1], 1, max_config_size);
  }
  out.skipped = read_skipped(q, {"modules_to_not_convert", "ignored_layers"});
}

inline void read_bitsandbytes(const JsonFields& q, Quantisation& out) {
  const bool four = q.boolean("load_in_4bit", false), eight = q.boolean("load_in_8bit", false);
  if (four == eight) q.refuse("load_in_4bit", "true, or load_in_8bit is, but not both");
  out.bits = four ? 4 : 8;
  if (const std::string type = spelling(q, {"bnb_4bit_quant_type"}, "fp4"); four && type != "nf4" && type != "fp4")
    unsupported(q.file(), text(q.path("bnb_4bit_quant_type"), " ", in_quotes(type), " is not supported: nf4 and fp4 are"));
  out.skipped = read_skipped(q, {"llm_int8_skip_modules"});
}

/// Reads the value of a key that says how weights are quantised.
inline Quantisation read_quantisation(const JsonFields& c, const std::string& key, const Json& value, std::string_view otherwise = {}) {
  const JsonFields q(c.file(), value, c.path(key) + ".");
  Quantisation out;
  out.where = text("pith: ", in_quotes(c.file()), ": ", c.path(key));
  const std::string method = spelling(q, {"quant_method"}, std::string(otherwise).c_str());
  const struct {
    const char* name;
    QuantMethod method;
    void (*read)(const JsonFields&, Quantisation&);
  } readers[] = {{"awq", QuantMethod::awq, read_awq},
                 {"gptq", QuantMethod::gptq, read_gptq},
                 {"compressed-tensors", QuantMethod::compressed_tensors, read_compressed_tensors},
                 {"fp8", QuantMethod::fp8, read_fp8},
                 {"bitsandbytes", QuantMethod::bitsandbytes, read_bitsandbytes}};
  for (const auto& reader : readers)
    if (method == reader.name) {
      out.method = reader.method;
      reader.read(q, out);
      return out;
    }
  unsupported(c.file(),
              text(c.path(key), " (", shown_method(c.file(), key, value),
                   "): quantised checkpoints of this method are not supported; awq, gptq, compressed-tensors, fp8 and bitsandbytes "
                   "are, and F32, F16 and BF16 folders"));
}

/// Reads quantization_config, or compression_config in old folders, of a decoder or of what is around it. Refuses MLX's `quantization`.
inline Quantisation find_quantisation(const JsonFields& outer, const JsonFields& decoder) {
  Quantisation out;
  const bool same = outer.path("") == decoder.path("");
  for (const JsonFields* c : {&outer, &decoder}) {
    if (same && c == &decoder) continue;
    if (const Json* mlx = c->find("quantization"))
      unsupported(c->file(), text(c->path("quantization"), " (", shown_method(c->file(), "quantization", *mlx),
                                  "): quantised checkpoints of MLX are not supported; use the F32, F16 or BF16 one"));
    for (const char* key : {"quantization_config", "compression_config"})
      if (const Json* value = c->find(key)) {
        if (out) c->refuse(key, "one such key in all, quantization_config or compression_config");
        out = read_quantisation(*c, key, *value, std::string_view(key) == "compression_config" ? "compressed-tensors" : "");
      }
  }
  return out;
}

}}}  // namespace pith::v0::detail
