#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/detail/coded_module.hpp>
#include <pith/io/detail/coded_weight.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/quantisation.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/stored_module.hpp>
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

  CheckpointPlan(const CheckpointFiles& files, DecoderConfig& config, const Quantisation& quantisation)
      : files_(files),
        quantisation_(quantisation),
        family_(family_of(config.model_type)),
        place_(place_in(files)),
        head_(head_in(files, place_)) {
    if (!quantisation) refuse_quantised();
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
      if (!holds_weight(files, head_)) missing(head(), "; tie_word_embeddings is false, so the head must be there");
      weight(head_, config.vocab_size, hidden);
    }
    list_ignored(config);
  }

  const Family& family() const { return family_; }
  std::string embedding() const { return text(place_.prefix, "embed_tokens.weight"); }
  std::string final_norm() const { return text(place_.prefix, "norm.weight"); }
  const std::string& head_module() const { return head_; }
  std::string head() const { return head_ + ".weight"; }
  std::string layer_prefix(Index layer) const { return text(place_.prefix, "layers.", layer, "."); }

  /// A tensor's name in a plain decoder's folder.
  std::string plain_name(std::string_view name) const {
    const std::string_view prefix = place_.prefix;
    return name.starts_with(prefix) ? text("model.", name.substr(prefix.size())) : text("lm_head", name.substr(head_.size()));
  }

  const std::map<std::string, Place, std::less<>>& tensors() const { return tensors_; }
  Place find(const std::string& name) const {
    const auto at = tensors_.find(name);
    return at == tensors_.end() ? Place{} : at->second;
  }
  /// The codes of a module's weight; nullptr: it is a float matrix, `<module>.weight`.
  const CodedWeight* coded(const std::string& module) const {
    const auto at = coded_.find(module);
    return at == coded_.end() ? nullptr : at->second.get();
  }
  /// How each projection and the head are stored, in order of use.
  const std::vector<StoredModule>& modules() const { return modules_; }
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

  /// The module of the head of a decoder at this place, or one that another place would have.
  static std::string head_in(const CheckpointFiles& files, const DecoderPlace& place) {
    if (!holds_weight(files, place.head))
      for (const DecoderPlace& other : decoder_places)
        if (holds_weight(files, other.head)) return other.head;
    return place.head;
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
                              ", expected F64, F32, F16 or BF16");
    if (tensor.shape != shape)
      raise<FormatError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(name), " is ", shape_list(tensor.shape),
                         ", expected ", shape_list(shape), " by the config");
    add(name, place);
  }

  void add(const std::string& name, const Place& place) {
    bytes_ += place.tensor->bytes();
    tensors_.emplace(name, place);
  }

  /// The weight of a module, as a float matrix or as codes.
  void weight(const std::string& module, Index out, Index in) {
    if (std::unique_ptr<const CodedWeight> codes = find_coded(files_, quantisation_, module, out, in, steps_)) {
      for (const Place& place : codes->tensors()) add(place.tensor->name, place);
      modules_.push_back(codes->stored());
      coded_.emplace(module, std::move(codes));
      return;
    }
    const std::string name = module + ".weight";
    want(name, {out, in});
    const DType dtype = find(name).tensor->dtype;
    modules_.push_back({.name = module, .format = std::string(dtype_name(dtype)), .out = out, .in = in, .bits = Index(dtype_bits(dtype))});
  }

  void projection(const std::string& name, Index out, Index in, const std::string& bias) {
    weight(name, out, in);
    if (files_.find(name + ".bias")) {
      if (bias.empty()) unpromised_.push_back(name + ".bias");
      return want(name + ".bias", {out});
    }
    if (!bias.empty()) missing(name + ".bias", text("; ", bias));
  }

  /// Recognises by tensor names a quantised checkpoint whose config does not say so; it also holds float tensors.
  void refuse_quantised() const {
    for (const Safetensors& file : files_.files())
      for (const TensorInfo& tensor : file.tensors())
        if (is_quantised_part(tensor.name))
          raise<UnsupportedError>(
              "pith: ", in_quotes(file.name()), ": tensor ", in_quotes(tensor.name),
              " belongs to a quantised checkpoint, but the config has no quantization_config, which says what it means");
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
    const bool tied = config.tie_word_embeddings && name.starts_with(head_);
    const char* what = tied ? "; tie_word_embeddings is true, so the embedding table is the head"
                       : is_quantised_part(name)
                           ? "; the module's weight is of another kind, or missing: expected a float weight, or codes with their scales"
                       : has(".lora_") || has(".base_layer.")  ? "; it is of an adapter: merge that with PEFT before the model is saved"
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
    if (classifies && !holds_weight(files_, head_))
      raise<UnsupportedError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(name), " is the head of a classifier, and ",
                              in_quotes(head()), " is not there: classifiers and reward models are not supported");
  }

  void list_ignored(const DecoderConfig& config) {
    const std::string norm = text(place_.prefix, "norm."), table = text(place_.prefix, "embed_tokens."), of_head = head_ + ".";
    for (const Safetensors& file : files_.files())
      for (const TensorInfo& tensor : file.tensors()) {
        const std::string_view name = tensor.name;
        if (tensors_.contains(name) || is_rope_table(name)) continue;
        const Index layer = layer_of(name);
        const bool computed = (layer >= 0 && layer < config.num_hidden_layers) || name.starts_with(norm) || name.starts_with(table) ||
                              (name.starts_with(of_head) && name != head());
        if (computed && !(quantisation_ && is_activation_scale(name))) refuse_leftover(file, name, config);
        refuse_classifier(file, name);
        ignored_.emplace_back(name);
      }
    if (!unpromised_.empty())
      ignored_.push_back(text("config.json: that it promises no ", unpromised_.front(), ", because the files hold it",
                              unpromised_.size() > 1 ? text(" and ", unpromised_.size() - 1, " more such biases") : "", ": used"));
    std::sort(ignored_.begin(), ignored_.end());
  }

  const CheckpointFiles& files_;
  const Quantisation& quantisation_;
  const Family& family_;
  const DecoderPlace& place_;
  std::string head_;
  std::map<std::string, Place, std::less<>> tensors_;
  std::map<std::string, std::unique_ptr<const CodedWeight>, std::less<>> coded_;
  std::vector<StoredModule> modules_;
  std::vector<std::string> ignored_, unpromised_;
  std::size_t bytes_ = 0, steps_ = quantisation_steps;
};

}}}  // namespace pith::v0::detail
