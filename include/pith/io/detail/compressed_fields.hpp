#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <pith/core/types.hpp>
#include <pith/io/detail/family_fields.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/quantisation.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

// Reads the quantization_config of compressed-tensors.
namespace pith { inline namespace v0 { namespace detail {

/// Refuses what changes numbers or layout beyond the codes of single modules.
inline void refuse_transforms(const JsonFields& q) {
  if (const std::string status = q.string("quantization_status", "compressed"); status != "compressed")
    unsupported(q.file(), text(q.path("quantization_status"), " ", in_quotes(status), " is not supported: compressed is"));
  if (const Json* sparsity = q.find("sparsity_config"); sparsity != nullptr && !(sparsity->is_object() && sparsity->empty())) {
    const JsonFields fields(q.file(), *sparsity, q.path("sparsity_config") + ".");
    if (const std::string format = fields.string("format", "dense"); format != "dense")
      unsupported(q.file(), text(fields.path("format"), " ", in_quotes(format), " is not supported: dense is"));
  }
  if (const Json* transforms = q.find("transform_config"); transforms != nullptr && !(transforms->is_structured() && transforms->empty()))
    unsupported(q.file(), text(q.path("transform_config"), " is ", transforms->dump(40), ": rotated weights are not supported"));
}

/// Reads `weights` of one group of modules.
inline CodeRule read_code_rule(const JsonFields& w, const std::string& format, const std::string& format_path) {
  CodeRule rule;
  rule.bits = w.size("num_bits", 8, 1, 64);
  const std::string type = w.string("type", "int");
  if (type != "int" && type != "float") w.refuse("type", "'int' or 'float'");
  rule.floats = type == "float";
  if (rule.floats ? rule.bits != 8 : rule.bits != 4 && rule.bits != 8)
    unsupported(w.file(), text(w.path("num_bits"), " is ", rule.bits, " of type ", type,
                               ", which is not supported: 4 and 8 of type int are, and 8 of type float"));
  const struct {
    const char* name;
    bool floats, ints;
  } formats[] = {
      {"pack-quantized", false, true}, {"int-quantized", false, true}, {"float-quantized", true, false}, {"naive-quantized", true, true}};
  bool known = false, fits = false;
  for (const auto& one : formats)
    if (format == one.name) {
      known = true;
      fits = rule.floats ? one.floats : one.ints;
    }
  if (!known)
    unsupported(w.file(), text(format_path, " ", in_quotes(format),
                               " is not supported: pack-quantized, int-quantized, float-quantized and naive-quantized are"));
  if (!fits) w.refuse("type", text("another one in format ", format));
  rule.packed = format == "pack-quantized";

  const std::string strategy = w.string("strategy", w.find("group_size") != nullptr ? "group" : "tensor");
  if (strategy == "tensor") {
    rule.strategy = ScaleStrategy::tensor;
  } else if (strategy == "channel") {
    rule.strategy = ScaleStrategy::channel;
  } else if (strategy == "group") {
    rule.strategy = ScaleStrategy::group;
    rule.group = w.size("group_size", {}, -1, max_config_size);
    if (rule.group == 0) w.refuse("group_size", "a number from 1");
    if (rule.group < 0) rule.strategy = ScaleStrategy::channel;
  } else if (strategy == "block") {
    rule.strategy = ScaleStrategy::block;
    const char* key = "block_structure";
    const Json* block = w.find(key);
    if (block == nullptr || !block->is_array() || block->size() != 2) w.refuse(key, "a list of two numbers");
    rule.block_rows = w.whole(key, (*block)[0], 1, max_config_size);
    rule.block_cols = w.whole(key, (*block)[1], 1, max_config_size);
  } else {
    unsupported(w.file(), text(w.path("strategy"), " ", in_quotes(strategy), " is not supported: tensor, channel, group and block are"));
  }
  return rule;
}

inline void read_compressed_tensors(const JsonFields& q, Quantisation& out) {
  refuse_transforms(q);
  const std::string format = q.string("format", "");
  const std::string file = text("pith: ", in_quotes(q.file()), ": ");
  const auto read_targets = [&](const JsonFields& fields, const char* key, const auto& add) {
    const Json* list = fields.find(key);
    const char* expected = "a list of modules";
    if (list == nullptr) return;
    if (!list->is_array()) fields.refuse(key, expected);
    for (const Json& one : *list) {
      if (!one.is_string()) fields.refuse(key, expected);
      ModuleTarget target(one.get<std::string_view>(), file + fields.path(key));
      out.hold(target.states());
      add(std::move(target));
    }
  };
  const Json* groups = q.find("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->empty())
    q.refuse("config_groups", "an object, one entry for each kind of module");
  for (const auto& [name, value] : groups->items()) {
    const JsonFields group(q.file(), value, text(q.path("config_groups"), ".", whole_letters(name, 60), "."));
    const Json* weights = group.find("weights");
    if (weights == nullptr) continue;  // only activations
    const JsonFields w(q.file(), *weights, group.path("weights") + ".");
    const bool own = group.find("format") != nullptr;
    out.rules.push_back(read_code_rule(w, own ? group.string("format") : format, own ? group.path("format") : q.path("format")));
    read_targets(group, "targets", [&](ModuleTarget target) { out.targets.emplace_back(std::move(target), out.rules.size() - 1); });
  }
  read_targets(q, "ignore", [&](ModuleTarget target) { out.ignore.push_back(std::move(target)); });
}

}}}  // namespace pith::v0::detail
