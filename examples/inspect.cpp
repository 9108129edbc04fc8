// Shows what a folder's decoder computes layer by layer, its types, memory and ignored parts, or why it is refused; for a PEFT folder, its
// changes and their cost.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/io.hpp>

#include "support/command_line.hpp"

using namespace pith;
namespace fs = std::filesystem;

namespace {

std::string shape_of(const TensorInfo& tensor) {
  std::string out = "[";
  for (const Index extent : tensor.shape) out += (out.size() > 1 ? ", " : "") + std::to_string(extent);
  return out + "]";
}

void print_bytes(const char* what, std::size_t bytes) {
  std::printf("%-26s %14zu bytes   %8.2f MiB\n", what, bytes, static_cast<double>(bytes) / (1 << 20));
}

void list(const Safetensors& file) {
  std::printf("%s: %zu tensors, %zu bytes\n", file.name().c_str(), file.tensors().size(), file.size());
  for (const auto& [key, value] : file.metadata()) std::printf("  metadata %s = %s\n", key.c_str(), value.c_str());
  for (const TensorInfo& tensor : file.tensors())
    std::printf("  %-56s %-5s %-18s %12zu bytes\n", tensor.name.c_str(), std::string(dtype_name(tensor.dtype)).c_str(),
                shape_of(tensor).c_str(), tensor.bytes());
}

void print_rope(std::size_t index, const RopeOptions& rope) {
  const char* types[] = {"none", "linear", "dynamic", "llama3", "yarn", "longrope", "identity"};
  const RopeScaling& scaling = rope.scaling;
  std::printf("rope %-21zu theta %g, %td of %td features, %s, scaling %s", index, rope.theta, rope.rotary_width(), rope.head_dim,
              rope.interleaved ? "neighbours in pairs" : "halves in pairs", types[static_cast<int>(scaling.type)]);
  if (scaling.type != RopeType::none && scaling.type != RopeType::longrope) std::printf(", factor %g", scaling.factor);
  if (scaling.original_max_position_embeddings > 0) std::printf(", from %td positions", scaling.original_max_position_embeddings);
  if (scaling.type == RopeType::llama3) std::printf(", frequency factors %g to %g", scaling.low_freq_factor, scaling.high_freq_factor);
  if (scaling.type == RopeType::yarn) std::printf(", beta %g to %g", scaling.beta_fast, scaling.beta_slow);
  const double factor = Rope<double>(rope).attention_factor();
  if (factor != 1) std::printf(", rotated features times %g", factor);
  std::printf("\n");
}

/// The layers of one description: "0-4, 6".
std::string layers_like(const DecoderConfig& c, const LayerSpec& layer) {
  std::string out;
  for (Index first = 0, last = 0; first < c.num_hidden_layers; first = last + 1) {
    for (last = first; last < c.num_hidden_layers && c.layer(last) == layer;) ++last;
    if (last > first) out += (out.empty() ? "" : ", ") + std::to_string(first) + (last - first == 1 ? "" : "-" + std::to_string(last - 1));
  }
  return out;
}

void print_layer(const DecoderConfig& c, const LayerSpec& layer) {
  std::printf("layers %s\n", layers_like(c, layer).c_str());
  const auto number = [](double x) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", x);
    return std::string(digits);
  };
  std::string norms;
  for (const auto& [has, name] : {std::pair{layer.pre_attention, "before attention"},
                                  {layer.post_attention, "after attention"},
                                  {layer.pre_mlp, "before mlp"},
                                  {layer.post_mlp, "after mlp"},
                                  {layer.qk_norm == QkNorm::head, "q and k by head"},
                                  {layer.qk_norm == QkNorm::projection, "q and k over all heads"}})
    if (has) norms += (norms.empty() ? "" : ", ") + std::string(name);
  std::printf("  norms                    %s%s\n", norms.c_str(), layer.parallel ? "; attention and mlp in parallel" : "");
  std::printf("  attention                %s, %s, scores times %s",
              layer.window == 0 ? "all tokens" : ("the last " + std::to_string(layer.window) + " tokens").c_str(),
              layer.rope < 0 ? "no rope" : ("rope " + std::to_string(layer.rope)).c_str(),
              layer.attention_scale == 0 ? "1/sqrt(head_dim)" : number(layer.attention_scale).c_str());
  if (layer.attention_softcap > 0) std::printf(", capped at %g", layer.attention_softcap);
  if (layer.query_scale.on())
    std::printf(", queries times 1 + %g ln(1 + position / %td)", layer.query_scale.beta, layer.query_scale.length);
  std::printf("\n");
  if (layer.residual_scale != 1) std::printf("  added                    times %g\n", layer.residual_scale);
}

void print_config(const DecoderConfig& c) {
  const char* activations[] = {"silu", "gelu, tanh form", "gelu"};
  std::printf("family                     %s\n", c.model_type.c_str());
  std::printf("vocabulary                 %td%s\n", c.vocab_size, c.tie_word_embeddings ? ", tied to the head" : "");
  std::printf("layers                     %td of hidden %td, intermediate %td\n", c.num_hidden_layers, c.hidden_size, c.intermediate_size);
  std::printf("heads                      %td over %td kv heads of %td\n", c.num_attention_heads, c.num_key_value_heads, c.head_dim);
  std::printf("trained positions          %td\n", c.max_position_embeddings);
  std::printf("norms                      %s, eps %g%s\n", c.norm == NormKind::rms ? "RMSNorm" : "LayerNorm", c.norm_eps,
              c.norm_plus_one ? ", stored as w - 1" : "");
  std::printf("activation                 %s\n", activations[static_cast<int>(c.activation)]);
  if (c.embedding_scale != 1) std::printf("embeddings                 times %g\n", c.embedding_scale);
  if (c.input_scale != 1) std::printf("input of layer 0           times %g\n", c.input_scale);
  if (c.logits_scale != 1) std::printf("logits                     times %g\n", c.logits_scale);
  if (c.logits_softcap > 0) std::printf("logits                     capped at %g\n", c.logits_softcap);
  for (std::size_t i = 0; i < c.ropes.size(); ++i) print_rope(i, c.rope(static_cast<Index>(i)));
  for (Index l = 0; l < c.num_hidden_layers; ++l) {
    bool shown = false;
    for (Index earlier = 0; earlier < l && !shown; ++earlier) shown = c.layer(earlier) == c.layer(l);
    if (!shown) print_layer(c, c.layer(l));
  }
  std::printf("ends a text                ");
  if (c.eos_token_id.empty()) std::printf("no token");
  for (const Token eos : c.eos_token_id) std::printf("%d ", eos);
  std::printf("\n");
}

/// How the projections are stored: those of one kind on a line, with how many there are, or their names if they are few.
void print_modules(const std::vector<StoredModule>& modules) {
  std::map<std::string, std::vector<std::string>> by_kind;
  bool quantised = false;
  for (const StoredModule& module : modules) {
    quantised = quantised || module.quantised();
    std::string kind = module.format;
    if (module.quantised()) {
      kind += ", " + std::to_string(module.bits) + " bits, a scale for " + std::to_string(module.group) + " inputs";
      if (module.group_rows > 1) kind += " of " + std::to_string(module.group_rows) + " outputs";
      if (module.zeros) kind += ", zeros";
      if (module.act_order) kind += ", act-order (g_idx)";
    }
    by_kind[kind].push_back(module.name);
  }
  if (!quantised) return;
  for (const auto& [kind, names] : by_kind) {
    std::printf("modules                    %zu in %s", names.size(), kind.c_str());
    if (names.size() <= 4)
      for (const std::string& name : names) std::printf("%s%s", &name == &names.front() ? ": " : ", ", name.c_str());
    std::printf("\n");
  }
}

struct Totals {
  std::map<std::string, std::size_t> tensors_by_type;
  std::size_t parameters = 0, on_disk = 0, packed = 0;
};

/// Panels hold 32 outputs each; types narrower than float keep their width. Codes are in memory as they would be packed.
Totals add_up(const CheckpointFiles& files, const Checkpoint<float>& loaded) {
  Totals totals;
  const auto coded = [&](std::string_view tensor) {
    return std::any_of(loaded.modules.begin(), loaded.modules.end(), [&](const StoredModule& module) {
      return module.quantised() && tensor.starts_with(module.name + ".") && !tensor.ends_with(".bias");
    });
  };
  for (const Safetensors& file : files.files()) {
    totals.on_disk += file.size();
    for (const TensorInfo& tensor : file.tensors()) {
      const std::string_view name = tensor.name;
      const bool rope_table = name.find(".rotary_emb.") != name.npos;  // saved by older writers; the config determines it
      if (rope_table || std::binary_search(loaded.ignored.begin(), loaded.ignored.end(), tensor.name)) continue;
      ++totals.tensors_by_type[std::string(dtype_name(tensor.dtype))];
      if (coded(name)) continue;
      const auto size = static_cast<std::size_t>(tensor.elements());
      totals.parameters += size;
      const std::size_t width =
          tensor.shape.size() == 2 ? std::min<std::size_t>(dtype_bits(tensor.dtype) / 8, sizeof(float)) : sizeof(float);
      const bool table = name.ends_with(".embed_tokens.weight"),
                 panels = tensor.shape.size() == 2 && (!table || loaded.config.tie_word_embeddings);
      if (!panels || table) totals.packed += size * width;
      if (panels) totals.packed += static_cast<std::size_t>((tensor.shape[0] + 31) / 32 * 32 * tensor.shape[1]) * width;
    }
  }
  // Of the layers as they were loaded, what is not mapped.
  std::size_t held = 0, mapped = 0;
  const auto hold = [&](const AnyLinear<float>& linear) {
    held += linear.bytes() - static_cast<std::size_t>(linear.bias().size()) * sizeof(float);
  };
  for (const LayerWeights<float>& layer : loaded.weights.layers)
    for (const AnyLinear<float>* projection :
         {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj, &layer.down_proj})
      hold(*projection);
  if (!loaded.config.tie_word_embeddings) hold(loaded.weights.lm_head);
  bool quantised = false;
  for (const StoredModule& module : loaded.modules) {
    const auto size = static_cast<std::size_t>(module.out * module.in);
    quantised = quantised || module.quantised();
    if (module.quantised())
      totals.parameters += size;
    else
      mapped += size * static_cast<std::size_t>(module.bits) / 8;
  }
  if (quantised) totals.packed += held - mapped;
  return totals;
}

void inspect_checkpoint(const fs::path& folder, const std::string& config) {
  const Checkpoint<float> loaded = load_checkpoint(folder, {.weights = WeightsLayout::mapped, .config = config});
  const CheckpointFiles files(folder);
  const DecoderConfig& c = loaded.config;
  std::printf("%s (%s)\n", folder.string().c_str(), config.c_str());
  print_config(c);
  print_modules(loaded.modules);
  const Totals totals = add_up(files, loaded);
  std::printf("parameters                 %zu in %zu file(s):", totals.parameters, files.files().size());
  for (const auto& [type, count] : totals.tensors_by_type) std::printf(" %zu tensors %s", count, type.c_str());
  std::printf("\n");
  print_bytes("on disk", totals.on_disk);
  print_bytes("in memory, packed", totals.packed);
  if (std::none_of(loaded.modules.begin(), loaded.modules.end(), [](const StoredModule& module) { return module.quantised(); }))
    print_bytes("in memory, mapped", totals.on_disk);  // codes are packed in any case
  const std::size_t row = static_cast<std::size_t>(2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim);
  print_bytes("kv cache a token, float", row * sizeof(float));
  print_bytes("kv cache a token, 16 bit", row * 2);
  std::printf("fingerprint                %016llx\n", static_cast<unsigned long long>(loaded.weights.fingerprint));
  for (const std::string& name : loaded.ignored) std::printf("ignored                    %s\n", name.c_str());
}

void inspect_adapter(const fs::path& path) {
  const PeftFolder folder(path);
  const PeftConfig& c = folder.config();
  const char* types[] = {"LoRA", "AdaLoRA", "prompt tuning", "prefix tuning"};
  std::printf("%s\n%-26s %s%s%s\n", path.string().c_str(), "adapter",
              c.dora     ? "DoRA over "
              : c.rslora ? "rsLoRA, "
                         : "",
              types[static_cast<int>(c.type)], c.base_model.empty() ? "" : (", trained on " + c.base_model).c_str());
  std::size_t numbers = 0, flops = 0;
  if (folder.prompt_tuned()) {
    const Matrix<float> rows = folder.load_prompt();
    std::printf("%-26s %td rows of %td before every text\n", "prompt", rows.rows(), rows.cols());
    numbers = static_cast<std::size_t>(rows.size());
  }
  for (const std::string& name : folder.modules()) {
    const PeftModule<float> m = folder.load(name);
    std::printf("  %-44s", name.c_str());
    if (m.up.rows() > 0)
      std::printf(" [%td, %td] rank %-3td scale %-8.4g", m.up.rows(), m.down.cols(), m.down.rows(),
                  m.gain.size() > 0 ? double(m.gain[0]) : 0.0);
    if (m.weight.size() > 0) std::printf(" replaced by [%td, %td]", m.weight.rows(), m.weight.cols());
    if (m.base_weight.size() > 0) std::printf(" [%td, %td] of the base, saved along", m.base_weight.rows(), m.base_weight.cols());
    std::printf("%s%s%s\n", m.magnitude.size() > 0 ? " magnitude" : "", m.up_bias.size() > 0 ? " bias of B" : "",
                m.bias.size() > 0 ? " bias replaced" : "");
    numbers += static_cast<std::size_t>(m.down.size() + m.up.size() + m.up_bias.size() + m.magnitude.size() + m.weight.size() +
                                        m.bias.size() + m.base_weight.size());
    flops += static_cast<std::size_t>(2 * (m.down.size() + m.up.size()));
  }
  std::printf("%-26s %zu in %zu modules\n", "parameters", numbers, folder.modules().size());
  print_bytes("on disk", folder.file().size());
  print_bytes("in memory", numbers * sizeof(float));
  std::printf("%-26s %zu flops, beside the model's own\n", "low rank, a token", flops);
  for (const std::string& name : c.ignored) std::printf("ignored                    %s\n", name.c_str());
}

constexpr const char* usage = R"(inspect [FOLDER | FILE.safetensors] [CONFIG]

CONFIG: another configuration inside FOLDER, instead of config.json.)";

int inspect(example::CommandLine& line) {
  const fs::path what = line.next(PITH_MODELS_DIR "/tiny-prose");
  const std::string config = line.next("config.json");
  line.done();
  try {
    if (!fs::is_directory(what)) {
      list(Safetensors::map(what));
    } else if (fs::exists(what / "adapter_config.json")) {
      inspect_adapter(what);
    } else {
      inspect_checkpoint(what, config);
    }
    return 0;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& refusal) {
    std::fflush(stdout);
    std::fprintf(stderr, "refused: %s\n", refusal.what());
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, inspect); }
