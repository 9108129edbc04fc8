#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/attention/rope_options.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

// Reads ropes from config.json, in the spellings of transformers 4 and 5.
namespace pith { inline namespace v0 { namespace detail {

/// Reads the ropes of one config: theta, the rotating features and the scaling, which may stand beside each other, in rope_scaling, in
/// rope_parameters, or there by layer type. What is said twice must agree.
class RopeReader {
 public:
  RopeReader(const JsonFields& c, const Family& family, const DecoderConfig& config) : c_(c), family_(family), config_(config) {}

  std::vector<RopeOptions> read() {
    std::vector<Source> full, local;
    if (const Json* parameters = c_.find("rope_parameters"); parameters != nullptr && by_layer_type(*parameters)) {
      types_.emplace(c_.file(), *parameters, c_.path("rope_parameters."));
      full.push_back(source(*types_, full_attention));
      local.push_back(source(*types_, sliding_attention));
    } else if (parameters != nullptr) {
      if (family_.local_theta_key != nullptr)
        c_.refuse("rope_parameters", text("ropes by layer type, ", full_attention, " and ", sliding_attention));
      full.push_back(source(c_, "rope_parameters"));
    }
    if (const Json* scaling = c_.find("rope_scaling"); scaling != nullptr) {
      static_cast<void>(by_layer_type(*scaling));
      full.push_back(source(c_, "rope_scaling"));
    }
    std::vector<RopeOptions> ropes{rope(full, "rope_theta", family_.theta)};
    if (!family_.two_ropes) return ropes;
    if (family_.local_theta_key != nullptr)
      ropes.push_back(rope(local, family_.local_theta_key, local_theta));
    else
      ropes.push_back(rope(local, "rope_theta", ropes.front().theta));
    return ropes;
  }

 private:
  static constexpr const char *full_attention = "full_attention", *sliding_attention = "sliding_attention", *theta_key = "rope_theta",
                              *part_key = "partial_rotary_factor", *length_key = "original_max_position_embeddings";
  static constexpr double local_theta = 10000;

  /// One object that describes a rope, and where it stands.
  struct Source {
    const JsonFields* in;
    const char* key;
    JsonFields fields;
    std::string said() const { return in->path(key); }
  };
  static Source source(const JsonFields& in, const char* key) {
    const Json* object = in.find(key);
    if (object == nullptr) in.refuse(key, "an object");
    return {&in, key, JsonFields(in.file(), *object, in.path(key) + ".")};
  }

  /// Whether the object holds ropes by layer type; refuses those of a family that has one rope, and unknown types.
  bool by_layer_type(const Json& object) const {
    if (!object.is_object()) return false;
    bool nested = false;
    for (const auto& [name, value] : object.items()) {
      if (!value.is_object()) continue;
      if (!family_.two_ropes || (name != full_attention && name != sliding_attention))
        unsupported(c_.file(), text("rope settings by layer type (", in_quotes(name), ") are not supported in ", family_.model_type));
      nested = true;
    }
    return nested;
  }

  RopeOptions rope(const std::vector<Source>& sources, const char* outer_theta, double theta) const {
    RopeOptions out;
    out.head_dim = config_.head_dim;
    out.max_position_embeddings = config_.max_position_embeddings;
    out.interleaved = family_.interleaved;
    out.theta = theta;
    std::string said;
    if (c_.find(outer_theta) != nullptr) said = c_.path(outer_theta), out.theta = c_.positive(outer_theta);
    for (const Source& s : sources) {
      if (s.fields.find(theta_key) == nullptr) continue;
      const double inside = s.fields.positive(theta_key);
      if (!said.empty() && inside != out.theta) s.fields.refuse(theta_key, text("what ", said, " says, or one of the two"));
      out.theta = inside;
      if (said.empty()) said = s.said();
    }
    if (out.theta == 0) c_.refuse(outer_theta, "a number above 0: versions of transformers disagree about the default");
    out.rotary_dim = rotary_dim(sources);
    std::string scaled;
    for (const Source& s : sources) {
      RopeScaling scaling = read_scaling(s.fields, out.rotary_width());
      if (!scaled.empty() && !(scaling == out.scaling)) s.in->refuse(s.key, text("the scaling that ", scaled, " says, or one of the two"));
      out.scaling = std::move(scaling);
      scaled = s.said();
    }
    return out;
  }

  /// The features of a head that rotate; 0: all.
  Index rotary_dim(const std::vector<Source>& sources) const {
    double part = family_.rotating;
    std::string said;
    const auto read = [&](const JsonFields& fields) {
      if (fields.find(part_key) == nullptr) return;
      const double value = fields.positive(part_key);
      if (!said.empty() && value != part) fields.refuse(part_key, text("what ", said, " says, or one of the two"));
      if (value > 1) fields.refuse(part_key, "at most 1");
      if (value != 1 && !family_.partial)
        unsupported(c_.file(), text(fields.path(part_key), " ", fields.find(part_key)->dump(), " is not supported in ", family_.model_type,
                                    ": all features must rotate"));
      part = value;
      said = fields.path(part_key);
    };
    read(c_);
    for (const Source& s : sources) read(s.fields);
    const auto width = static_cast<Index>(static_cast<double>(config_.head_dim) * part);
    if (width < 2 || width % 2 != 0) {
      const std::string expected = text("a part of head_dim, ", config_.head_dim, ", that is an even number of features; it is ", width);
      if (said.empty() && part == 1) c_.refuse("head_dim", text("an even number; it is ", config_.head_dim));
      for (const Source& s : sources)
        if (s.fields.find(part_key) != nullptr) s.fields.refuse(part_key, expected);
      c_.refuse(part_key, expected);
    }
    return width == config_.head_dim ? 0 : width;
  }

  RopeScaling read_scaling(const JsonFields& rope, Index width) const {
    RopeScaling scaling;
    std::string type = rope.string("rope_type", rope.string("type", "default"));
    read_mrope(rope, width, type);
    if (type == "default") return scaling;
    if (family_.longrope && (type == "su" || type == "yarn")) type = "longrope";  // as its files spelled it
    if (type == "linear")
      scaling.type = RopeType::linear;
    else if (type == "dynamic")
      scaling.type = RopeType::dynamic;
    else if (type == "llama3")
      scaling.type = RopeType::llama3;
    else if (type == "yarn")
      scaling.type = RopeType::yarn;
    else if (type == "longrope" && family_.longrope)
      scaling.type = RopeType::longrope;
    else
      unsupported(c_.file(), text(rope.path("rope_type"), " ", in_quotes(type), " is not supported",
                                  type == "longrope" || type == "su" ? text(" in ", family_.model_type) : std::string(),
                                  ": default, linear, dynamic, llama3 and yarn are, and longrope in phi3"));
    if (scaling.type == RopeType::longrope) return read_longrope(rope, std::move(scaling), width);
    if (scaling.type == RopeType::yarn) return read_yarn(rope, std::move(scaling));
    scaling.factor = rope.positive("factor");
    if (scaling.type != RopeType::llama3) return scaling;
    scaling.low_freq_factor = rope.positive("low_freq_factor");
    scaling.high_freq_factor = rope.positive("high_freq_factor");
    if (scaling.low_freq_factor >= scaling.high_freq_factor) rope.refuse("low_freq_factor", "less than high_freq_factor");
    scaling.original_max_position_embeddings = original_length(rope, {});
    return scaling;
  }

  /// Of text, all three positions of M-RoPE are equal, and it is a plain rope.
  void read_mrope(const JsonFields& rope, Index width, std::string& type) const {
    const char* key = "mrope_section";
    const Json* sections = rope.find(key);
    if (sections == nullptr && type != "mrope") return;
    if (!family_.mrope)
      unsupported(c_.file(), text("M-RoPE (", rope.path(sections != nullptr ? key : "type"), ") is not supported in ", family_.model_type,
                                  ": three positions a token are missing"));
    const std::string expected = text("three whole numbers that add up to the ", width / 2, " pairs of rotating features");
    if (sections == nullptr || !sections->is_array() || sections->size() != 3) rope.refuse(key, expected);
    Index sum = 0;
    for (const Json& one : *sections) sum += rope.whole(key, one, 0, max_config_size);
    if (sum != width / 2) rope.refuse(key, expected);
    if (type == "mrope") type = "default";
  }

  /// The length before scaling: beside the other constants or outside of them.
  Index original_length(const JsonFields& rope, std::optional<Index> otherwise) const {
    const bool outside = c_.find(length_key) != nullptr, inside = rope.find(length_key) != nullptr;
    const Index length = outside && !inside ? c_.size(length_key) : rope.size(length_key, otherwise);
    if (outside && c_.size(length_key) != length)
      rope.refuse(length_key, text(c_.size(length_key), ", which ", length_key, " says beside it"));
    return length;
  }

  RopeScaling read_yarn(const JsonFields& rope, RopeScaling scaling) const {
    scaling.original_max_position_embeddings = original_length(rope, config_.max_position_embeddings);
    scaling.factor = rope.is_null("factor") ? static_cast<double>(config_.max_position_embeddings) /
                                                  static_cast<double>(scaling.original_max_position_embeddings)
                                            : rope.positive("factor");
    const auto number = [&](const char* key, double if_zero) {
      const double value = rope.number(key, 0);
      if (value < 0) rope.refuse(key, "a number from 0");
      return value == 0 ? if_zero : value;
    };
    scaling.beta_fast = number("beta_fast", 32);
    scaling.beta_slow = number("beta_slow", 1);
    if (scaling.beta_fast < scaling.beta_slow) rope.refuse("beta_fast", text("at least beta_slow, which is ", scaling.beta_slow));
    scaling.truncate = rope.boolean("truncate", true);
    scaling.mscale = number("mscale", 0);
    scaling.mscale_all_dim = number("mscale_all_dim", 0);
    if (rope.find("attention_factor") != nullptr) scaling.attention_factor = rope.positive("attention_factor");
    return scaling;
  }

  RopeScaling read_longrope(const JsonFields& rope, RopeScaling scaling, Index width) const {
    const Index inside = rope.size(length_key, 4096);
    scaling.original_max_position_embeddings = c_.size(length_key, inside);  // outside wins, as in transformers
    const double stretch =
        static_cast<double>(config_.max_position_embeddings) / static_cast<double>(scaling.original_max_position_embeddings);
    if (rope.find("factor") != nullptr && rope.positive("factor") != stretch)
      rope.refuse("factor", text("max_position_embeddings / ", length_key, ", ", stretch, ", or no such key"));
    for (auto [key, list] : {std::pair{"short_factor", &scaling.short_factor}, {"long_factor", &scaling.long_factor}}) {
      const Json* numbers = rope.find(key);
      if (numbers == nullptr || !numbers->is_array() || static_cast<Index>(numbers->size()) != width / 2)
        rope.refuse(key, text("a list of ", width / 2, " numbers, one for each pair of rotating features"));
      for (const Json& one : *numbers) {
        if (!one.is_number() || !std::isfinite(one.get<double>()) || one.get<double>() <= 0) rope.refuse(key, "numbers above 0");
        list->push_back(one.get<double>());
      }
    }
    if (rope.find("attention_factor") != nullptr) scaling.attention_factor = rope.positive("attention_factor");
    return scaling;
  }

  const JsonFields& c_;
  const Family& family_;
  const DecoderConfig& config_;
  std::optional<JsonFields> types_;
};

}}}  // namespace pith::v0::detail
