#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>
#include <pith/model/config.hpp>
#include <pith/model/weights.hpp>
#include <pith/peft/model_adapter.hpp>

// Matches the tensors of a folder with a config.
namespace pith { inline namespace v0 { namespace detail {

/// Tables of rotary angles saved by older writers; the config determines them.
inline bool is_rope_table(std::string_view tensor) {
  return tensor.ends_with(".rotary_emb.inv_freq") || tensor.ends_with(".rotary_emb.cos_cached") ||
         tensor.ends_with(".rotary_emb.sin_cached");
}

/// Finds and checks the tensors that a config asks for, before any is read. Sets vocab_size if the config omits it.
class CheckpointPlan {
 public:
  using Place = CheckpointFiles::Place;

  CheckpointPlan(const CheckpointFiles& files, DecoderConfig& config)
      : files_(files), family_(family_of(config.model_type)), place_(place_in(files)), head_(head_in(files, place_)) {
    refuse_quantised();
    if (!files.find(embedding())) refuse_other_names();
    if (config.vocab_size == 0)  // a missing or misshapen table is refused below
      if (const Place table = files.find(embedding());
          table && table.tensor->shape.size() == 2 && table.tensor->shape[0] <= max_config_size)
        config.vocab_size = table.tensor->shape[0];
    const Index hidden = config.hidden_size;
    const AdapterTarget shapes{.hidden = hidden,
                               .intermediate = config.intermediate_size,
                               .q = config.num_attention_heads * config.head_dim,
                               .kv = config.num_key_value_heads * config.head_dim};
    want(embedding(), {config.vocab_size, hidden});
    for (Index l = 0; l < config.num_hidden_layers; ++l) {
      const std::string prefix = layer_prefix(l);
      for (std::size_t n = 0; n < num_norms; ++n)
        if (const Index width = norm_width(config, config.layer(l), NormPlace(n)); width > 0)
          want(prefix + family_.norms[n] + ".weight", {width});
      for_each_module(family_, [&](const LayerModule& module) {
        Index out = 0;
        for (std::size_t p = 0; p < module.count; ++p) out += shapes.out(module[p]);
        projection(prefix + module.name, out, shapes.in(module.first), promised_bias(config, module.first));
      });
    }
    want(final_norm(), {hidden});
    if (!config.tie_word_embeddings) {
      if (!files.find(head())) missing(head(), "; tie_word_embeddings is false, so the head must be there");
      want(head(), {config.vocab_size, hidden});
    }
    list_ignored(config);
  }

  const Family& family() const { return family_; }
  std::string embedding() const { return text(place_.prefix, "embed_tokens.weight"); }
  std::string final_norm() const { return text(place_.prefix, "norm.weight"); }
  const std::string& head() const { return head_; }
  std::string layer_prefix(Index layer) const { return text(place_.prefix, "layers.", layer, "."); }

  /// A tensor's name in a plain decoder's folder.
  std::string plain_name(std::string_view name) const {
    const std::string_view prefix = place_.prefix;
    return name.starts_with(prefix) ? text("model.", name.substr(prefix.size())) : "lm_head.weight";
  }

  const std::map<std::string, Place, std::less<>>& tensors() const { return tensors_; }
  Place find(const std::string& name) const {
    const auto at = tensors_.find(name);
    return at == tensors_.end() ? Place{} : at->second;
  }
  /// Tensors without a place, by name, and biases in the files that the config does not declare.
  const std::vector<std::string>& ignored() const { return ignored_; }
  std::size_t bytes() const { return bytes_; }

 private:
  static const Family& family_of(const std::string& model_type) {
    const Family* family = find_family(model_type);
    if (family == nullptr)
      raise<UnsupportedError>("pith: model_type ", in_quotes(model_type), " is not supported: ", family_list(), " are");
    return *family;
  }
  /// Where these files keep their decoder: the first place with a table, or a plain decoder's.
  static const DecoderPlace& place_in(const CheckpointFiles& files) {
    const auto* at = std::find_if(std::begin(decoder_places), std::end(decoder_places),
                                  [&](const DecoderPlace& place) { return files.find(text(place.prefix, "embed_tokens.weight")); });
    return at == std::end(decoder_places) ? *std::prev(at) : *at;
  }

  /// The head of a decoder at this place, or one that another place would have.
  static std::string head_in(const CheckpointFiles& files, const DecoderPlace& place) {
    const std::string own = text(place.head, ".weight");
    if (!files.find(own))
      for (const DecoderPlace& other : decoder_places)
        if (const std::string name = text(other.head, ".weight"); files.find(name)) return name;
    return own;
  }

  /// Why the biases of a projection are required; empty: they are optional.
  std::string promised_bias(const DecoderConfig& config, Projection p) const {
    if (p >= Projection::gate) return config.mlp_bias ? "mlp_bias is true" : "";
    if (p != Projection::o && family_.attention_bias == Biases::qkv_always)
      return text("every ", family_.model_type, " model has q, k and v biases");
    return config.attention_bias && (p != Projection::o || family_.attention_bias == Biases::qkvo) ? "attention_bias is true" : "";
  }

  [[noreturn]] void missing(const std::string& name, std::string_view why) const {
    raise<FormatError>("pith: ", in_quotes(files_.folder().string()), ": tensor ", in_quotes(name), " is missing", why);
  }

  void want(const std::string& name, std::vector<Index> shape) {
    const Place place = files_.find(name);
    if (!place) missing(name, "; the config asks for it");
    const TensorInfo& tensor = *place.tensor;
    if (!is_floating(tensor.dtype))
      raise<UnsupportedError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(name), " is ", dtype_name(tensor.dtype),
                              ": quantised weights are not supported; F64, F32, F16 and BF16 are");
    if (tensor.shape != shape)
      raise<FormatError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(name), " is ", shape_list(tensor.shape),
                         ", expected ", shape_list(shape), " by the config");
    bytes_ += tensor.bytes();
    tensors_.emplace(name, place);
  }

  void projection(const std::string& name, Index out, Index in, const std::string& bias) {
    want(name + ".weight", {out, in});
    if (files_.find(name + ".bias")) {
      if (bias.empty()) unpromised_.push_back(name + ".bias");
      return want(name + ".bias", {out});
    }
    if (!bias.empty()) missing(name + ".bias", text("; ", bias));
  }

  /// Recognises quantised checkpoints (GPTQ, AWQ, bitsandbytes, compressed-tensors) by tensor names; they also hold float tensors.
  void refuse_quantised() const {
    constexpr std::string_view marks[] = {".qweight",       ".qzeros",        ".scales",          ".g_idx",
                                          ".SCB",           ".absmax",        ".quant_map",       ".weight_scale",
                                          ".weight_packed", ".weight_format", ".weight_scale_inv"};
    for (const Safetensors& file : files_.files())
      for (const TensorInfo& tensor : file.tensors()) {
        const std::string_view name = tensor.name;
        const bool quantised = name.find(".quant_state.") != std::string_view::npos ||
                               std::any_of(std::begin(marks), std::end(marks), [&](std::string_view mark) { return name.ends_with(mark); });
        if (quantised)
          raise<UnsupportedError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(name),
                                  " belongs to a quantised checkpoint, which is not supported; use the F32, F16 or BF16 one");
      }
  }

  /// Refuses tensor names of another program, or of a wrapper saved with the model.
  void refuse_other_names() const {
    constexpr struct {
      std::string_view table, what;
    } others[] = {
        {"embed_tokens.weight", "those of a bare model without a head (LlamaModel and its like): save the …ForCausalLM that it belongs to"},
        {"tok_embeddings.weight", "those of Meta's and Mistral's own releases: use the same model in the layout of transformers"},
        {"token_embd.weight", "those of llama.cpp: use the folder that its file was made from"},
        {"transformer.wte.weight", "those of GPT-2 and its like: use the same model in the layout of transformers"},
        {"base_model.model.model.embed_tokens.weight", "those within a PEFT wrapper: merge_and_unload() before the model is saved"},
        {"_orig_mod.model.embed_tokens.weight", "those of a compiled module: save the module that was compiled"},
        {"module.model.embed_tokens.weight", "those within DataParallel: save its module"},
    };
    for (const auto& other : others)
      if (const Place place = files_.find(other.table))
        raise<UnsupportedError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(other.table), ", expected ",
                                in_quotes(embedding()), ": the names are ", other.what);
  }

  /// The layer of <prefix>layers.<layer>.…, or -1.
  Index layer_of(std::string_view name) const {
    const std::string layers = text(place_.prefix, "layers.");
    if (!name.starts_with(layers)) return -1;
    Index layer = 0;
    std::size_t at = layers.size();
    for (; at < name.size() && name[at] >= '0' && name[at] <= '9' && layer < max_config_layers; ++at) layer = 10 * layer + (name[at] - '0');
    return at > layers.size() && at < name.size() && name[at] == '.' ? layer : -1;
  }

  /// Refuses a tensor that would change the numbers of a computed module.
  [[noreturn]] void refuse_leftover(const Safetensors& file, std::string_view name, const DecoderConfig& config) const {
    const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
    const char* what = has(".lora_") || has(".base_layer.")    ? "; it is of an adapter: merge that with PEFT before the model is saved"
                       : has("experts.") || has("mlp.gate.")   ? "; it is of a mixture of experts, which is not supported"
                       : has("q_norm.") || has("k_norm.")      ? "; its family has no norms of queries and keys"
                       : has("layernorm") || has("layer_norm") ? "; its family has no such norm"
                                                               : "";
    raise<UnsupportedError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(name), " has no place in a ", config.model_type,
                            " decoder, but lies in a module that it computes with", what);
  }

  /// Refuses a classifier's head without an lm_head: a tied config may hide it. Beside an lm_head, it is only ignored.
  void refuse_classifier(const Safetensors& file, std::string_view name) const {
    const bool classifies = name.starts_with("score.") || name.starts_with("classifier.") || name.starts_with("qa_outputs.");
    if (classifies && !files_.find(head()))
      raise<UnsupportedError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(name), " is the head of a classifier, and ",
                              in_quotes(head()), " is not there: classifiers and reward models are not supported");
  }

  void list_ignored(const DecoderConfig& config) {
    const std::string norm = text(place_.prefix, "norm."), table = text(place_.prefix, "embed_tokens."),
                      of_head = head_.substr(0, head_.size() - 6);
    for (const Safetensors& file : files_.files())
      for (const TensorInfo& tensor : file.tensors()) {
        const std::string_view name = tensor.name;
        if (tensors_.contains(name) || is_rope_table(name)) continue;
        const Index layer = layer_of(name);
        const bool computed = (layer >= 0 && layer < config.num_hidden_layers) || name.starts_with(norm) || name.starts_with(table) ||
                              (name.starts_with(of_head) && name != head());
        if (computed) refuse_leftover(file, name, config);
        refuse_classifier(file, name);
        ignored_.emplace_back(name);
      }
    if (!unpromised_.empty())
      ignored_.push_back(text("config.json: that it promises no ", unpromised_.front(), ", because the files hold it",
                              unpromised_.size() > 1 ? text(" and ", unpromised_.size() - 1, " more such biases") : "", ": used"));
    std::sort(ignored_.begin(), ignored_.end());
  }

  const CheckpointFiles& files_;
  const Family& family_;
  const DecoderPlace& place_;
  std::string head_;
  std::map<std::string, Place, std::less<>> tensors_;
  std::vector<std::string> ignored_, unpromised_;
  std::size_t bytes_ = 0;
};

/// Adds everything that a config says of the numbers that a decoder computes.
inline void hash_config(Fingerprint& f, const DecoderConfig& c) {
  const auto whole = [&](auto... numbers) { (f.number(static_cast<Index>(numbers)), ...); };
  const auto real = [&](auto... numbers) { (f.number(static_cast<double>(numbers)), ...); };
  f.string(c.model_type);
  whole(c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
        c.max_position_embeddings, c.norm, c.norm_plus_one, c.activation, c.tie_word_embeddings);
  real(c.norm_eps, c.embedding_scale, c.input_scale, c.logits_scale, c.logits_softcap);
  for (Index l = 0; l < c.num_hidden_layers; ++l) {
    const LayerSpec layer = c.layer(l);
    whole(layer.window, layer.rope, layer.qk_norm, layer.pre_attention, layer.pre_mlp, layer.post_attention, layer.post_mlp, layer.parallel,
          layer.query_scale.length);
    real(layer.attention_scale, layer.attention_softcap, layer.residual_scale, layer.query_scale.beta);
  }
  const Index ropes = (std::max)(Index(1), static_cast<Index>(c.ropes.size()));
  whole(ropes);
  for (Index i = 0; i < ropes; ++i) {
    const RopeOptions rope = c.rope(i);
    const RopeScaling& s = rope.scaling;
    whole(rope.rotary_width(), rope.interleaved, s.type, s.original_max_position_embeddings, s.truncate, s.short_factor.size(),
          s.long_factor.size());
    real(rope.theta, s.factor, s.low_freq_factor, s.high_freq_factor, s.beta_fast, s.beta_slow, s.mscale, s.mscale_all_dim,
         s.attention_factor);
    for (const std::vector<double>* list : {&s.short_factor, &s.long_factor})
      for (const double x : *list) real(x);
  }
}

/// Hash of everything that determines the meaning of a cached row; sharding, tensor order, the place in a larger model and config spelling
/// do not matter.
/// `rounded`: the format the weights were rounded to; empty: none.
inline std::uint64_t fingerprint(const DecoderConfig& c, const CheckpointPlan& plan, std::string_view rounded = {}) {
  Fingerprint f;
  if (!rounded.empty()) f.string(rounded);
  hash_config(f, c);
  constexpr std::size_t ends = 4096;
  for (const auto& [name, place] : plan.tensors()) {
    f.string(plan.plain_name(name));
    f.string(dtype_name(place.tensor->dtype));
    for (const Index extent : place.tensor->shape) f.number(extent);
    const std::span<const std::byte> data = place.bytes();
    f.bytes(data.first((std::min)(ends, data.size())));
    f.bytes(data.last((std::min)(ends, data.size())));
  }
  return f.value();
}

}}}  // namespace pith::v0::detail
