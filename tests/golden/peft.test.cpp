// Replays every adapter folder that PEFT wrote: <golden>/lora/ckpt_* over small stacks of layers, prompts and prefixes, and the folders of
// <golden>/model over whole decoders.
//
// What a folder is, its adapter_config.json says, and what to compare with it the files beside it. A folder without one fails, as do a file
// that no test reads, a tensor of a golden file that no test asks for, and a module of an adapter that no layer takes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/attention.hpp>
#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/pith.hpp>

#include "golden/support/adapter_replay.hpp"
#include "golden/support/golden_file.hpp"
#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/products.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_peft {
namespace {

/// What the README of golden/lora allows: times the largest number expected, if that is above 1.
template <class S> constexpr double layer_bound = std::is_same_v<S, float> ? 1e-5 : 1e-6;

/// [rows, last axis] of a tensor of any rank.
template <class S> Matrix<S> matrix_of(const Tensor& tensor) {
  const Index cols = tensor.shape.size() == 1 ? 1 : tensor.width();
  Matrix<S> out(cols == 0 ? 0 : tensor.values.size() / cols, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<S>(tensor.values[i]);
  return out;
}

template <class S> void check_near(const Matrix<S>& ours, const Tensor& theirs) {
  const Matrix<double> expected = matrix_of<double>(theirs);
  REQUIRE(ours.rows() == expected.rows());
  REQUIRE(ours.cols() == expected.cols());
  const double worst = (ours.template cast<double>() - expected).cwiseAbs().maxCoeff();
  CHECK(worst <= layer_bound<S> * std::max(1.0, expected.cwiseAbs().maxCoeff()));
}

// ------------------------------------------------------------------------------------------------------------ layers

/// The base projection of that name in a golden file.
template <class S> AnyLinear<S> base_of(Golden& golden, const std::string& name) {
  const Matrix<S> weight = matrix_of<S>(golden.get(name + ".weight"));
  const Vector<S> bias = golden.has(name + ".bias") ? Vector<S>(matrix_of<S>(golden.get(name + ".bias")).col(0)) : Vector<S>();
  return AnyLinear<S>(Linear<S>(weight, bias));
}

/// A folder's adapters, found by module, and those that were not asked for.
template <class S> class Overlays {
 public:
  explicit Overlays(const PeftFolder& folder) : folder_(folder) {
    for (const std::string& module : folder.modules()) unused_.insert(module);
  }
  Matrix<S> forward(const AnyLinear<S>& base, const std::string& module, const Matrix<S>& x, bool adapted) {
    Matrix<S> y(x.rows(), base.out());
    Workspace ws(base.workspace_bytes(x.rows()) + linear_adapter_workspace_bytes<S>(x.rows()));
    LinearAdapter<S> overlay;
    if (adapted && folder_.contains(module)) {
      overlay = load_linear_adapter(folder_, module, base);
      unused_.erase(module);
    }
    forward_adapted(base, &overlay, x, y, ws);
    return y;
  }
  void done() const { CHECK(unused_ == std::set<std::string>{}); }

 private:
  const PeftFolder& folder_;
  std::set<std::string> unused_;
};

/// x ← x + down(tanh(up(x))) layer by layer, then the head.
template <class S> void check_stack(const PeftFolder& folder, Golden& golden) {
  const Matrix<S> input = matrix_of<S>(golden.get("x"));
  Overlays<S> overlays(folder);
  for (const bool adapted : {false, true}) {
    Matrix<S> x = input;
    for (Index l = 0; l < golden.number("n_layers"); ++l) {
      const std::string layer = "model.layers." + std::to_string(l) + ".";
      Matrix<S> hidden = overlays.forward(base_of<S>(golden, layer + "up"), layer + "up", x, adapted);
      hidden = hidden.array().tanh().matrix().eval();
      x += overlays.forward(base_of<S>(golden, layer + "down"), layer + "down", hidden, adapted);
    }
    check_near(overlays.forward(base_of<S>(golden, "head"), "head", x, adapted), golden.get(adapted ? "y" : "y_base"));
  }
  overlays.done();
  const nlohmann::json effective = golden.json("effective");
  for (const auto& [module, expected] : effective.items()) {
    const PeftModule<S> tensors = folder.load<S>(module);
    CHECK(tensors.down.rows() == expected["r"]);
    CHECK(tensors.gain == Vector<S>::Constant(tensors.down.rows(), static_cast<S>(double(expected["scaling"]))));
  }
}

/// y<k> of lin<k>, one by one.
template <class S> void check_projections(const PeftFolder& folder, Golden& golden) {
  Overlays<S> overlays(folder);
  for (int k = 0; golden.has("x" + std::to_string(k)); ++k) {
    const std::string i = std::to_string(k), name = "lin" + i;
    check_near(overlays.forward(base_of<S>(golden, name), name, matrix_of<S>(golden.get("x" + i)), true), golden.get("y" + i));
  }
  overlays.done();
}

// ------------------------------------------------------------------------------------------------------------ prompts

template <class S> void check_prompt(const PeftFolder& folder, Golden& golden) {
  const Embedding<S> table(matrix_of<S>(golden.get("word_embeddings")));
  const Matrix<S> soft = folder.load_prompt<S>();
  const Tensor ids = golden.get("input_ids"), mask = golden.get("attention_mask"), expected = golden.get("inputs_embeds"),
               mask_out = golden.get("attention_mask_out"), labels_out = golden.get("labels_out");
  REQUIRE(soft.rows() == golden.number("num_virtual_tokens"));
  for (Index b = 0; b < ids.extent(0); ++b) {
    Matrix<S> rows(soft.rows() + ids.extent(1), table.cols());
    prepend<S>(soft, table, ids.id_row({b}), rows);
    for (Index t = 0; t < rows.rows(); ++t) {
      const bool prompt = t < soft.rows();
      const auto at = static_cast<std::size_t>(prompt ? 0 : t - soft.rows()), row = static_cast<std::size_t>(t);
      CHECK(distance(rows.row(t), expected.row({b, t})) == 0);
      CHECK(mask_out.id_row({b})[row] == (prompt ? 1 : mask.id_row({b})[at]));
      CHECK(labels_out.id_row({b})[row] == (prompt ? -100 : ids.id_row({b})[at]));  // a loss sees none of the prompt
    }
  }
}

/// [heads, tokens, head_dim] of one sequence as [tokens, heads*head_dim].
template <class S> Matrix<S> token_rows(const Tensor& tensor, Index sequence) {
  const Index heads = tensor.extent(1), tokens = tensor.extent(2), dim = tensor.extent(3);
  Matrix<S> out(tokens, heads * dim);
  for (Index h = 0; h < heads; ++h)
    for (Index t = 0; t < tokens; ++t)
      for (Index d = 0; d < dim; ++d) out(t, h * dim + d) = static_cast<S>(tensor.row({sequence, h, t})[static_cast<std::size_t>(d)]);
  return out;
}

template <class S> void check_prefix(const PeftFolder& folder, Golden& golden) {
  const AttentionShape shape{golden.number("query_heads"), golden.number("kv_heads"), golden.number("head_dim")};
  const Index tokens = golden.number("tokens"), soft = golden.number("num_virtual_tokens"), layers = golden.number("num_layers");
  KvPrefix prefix;
  if (shape.head_dim % 2 == 0) {
    DecoderConfig config = tiny_config();
    config.num_hidden_layers = layers;
    config.num_attention_heads = shape.num_heads;
    config.num_key_value_heads = shape.num_kv_heads;
    config.head_dim = shape.head_dim;
    const Decoder<S> decoder = random_decoder<S>(config);
    prefix = load_prefix<S>(folder, decoder);
    CHECK(decoder.template start<S>(Dense{}, {.prefix = prefix}).next_position() == soft);
  } else {
    prefix = prefix_tuning<S>(folder.load_prompt<S>(), shape, layers);  // rotary embeddings turn pairs: no decoder has such heads
  }
  CHECK(prefix.next_position() == soft);
  for (Index l = 0; l < layers; ++l) {
    const auto part = [&](const char* name) { return golden.get("layer" + std::to_string(l) + "." + name); };
    const Tensor q = part("q"), k = part("k"), v = part("v"), out = part("attn_out"), mass = part("prefix_mass"), keys = part("prefix_K"),
                 values = part("prefix_V");
    for (Index b = 0; b < golden.number("batch"); ++b) {
      KvCache<S> cache(shape, Dense{}, {.max_chunk = tokens, .max_tokens = tokens, .prefix = prefix, .layer = l});
      const KvView<S> view = cache.view();
      for (Index h = 0; h < shape.num_kv_heads; ++h)
        for (Index t = 0; t < soft; ++t) {
          const KvRun<S>& run = view.runs[static_cast<std::size_t>(2 * h)];
          CHECK(distance(Eigen::Map<const Vector<S>>(run.keys + t * run.stride, shape.head_dim), keys.row({h, t})) == 0);
          CHECK(distance(Eigen::Map<const Vector<S>>(run.values + t * run.stride, shape.head_dim), values.row({h, t})) == 0);
        }
      cache.append(token_rows<S>(k, b), token_rows<S>(v, b));
      Matrix<S> ours(tokens, shape.num_heads * shape.head_dim);
      Workspace ws(attend_workspace_bytes<S>(shape, soft + tokens, 1, tokens));
      const auto seen = [&](const AttentionTile<S>& tile) {
        for (Index i = 0; i < tile.weights.rows(); ++i) {
          const Index query = tile.first_query_index + i / shape.group(), h = tile.kv_head * shape.group() + i % shape.group();
          CHECK(std::abs(1 - double(tile.weights.row(i).sum()) - mass.row({b, h})[static_cast<std::size_t>(query)]) <= layer_bound<S>);
        }
      };
      attend(ConstMatrixRef<S>(token_rows<S>(q, b)), cache.view(), ours, ws, seen);
      for (Index h = 0; h < shape.num_heads; ++h)
        for (Index t = 0; t < tokens; ++t)
          CHECK(distance(ours.row(t).segment(h * shape.head_dim, shape.head_dim), out.row({b, h, t})) <= layer_bound<S>);
    }
  }
  if (!golden.says("prefix_projection") || golden.word("prefix_projection") != "true") return;
  const auto encoder = [&](const std::string& name) { return matrix_of<double>(golden.get("encoder." + name)); };
  const auto through = [&](const Matrix<double>& x, const std::string& layer) {
    return pith_test::with_bias(pith_test::times_transposed(x, encoder(layer + ".weight")), encoder(layer + ".bias").col(0));
  };
  const Matrix<double> hidden = through(encoder("embedding.weight"), "transform.0").array().tanh();
  const Matrix<double> projected = through(hidden, "transform.2");
  CHECK((projected - folder.load_prompt<double>()).cwiseAbs().maxCoeff() <= 1e-6);  // what is saved is the projected prefix
}

template <class S> void check_folder(const PeftFolder& folder, const fs::path& io) {
  Golden golden(io);
  switch (folder.config().type) {
    case PeftType::lora:
      check_stack<S>(folder, golden);
      break;
    case PeftType::adalora:
      check_projections<S>(folder, golden);
      break;
    case PeftType::prompt_tuning:
      check_prompt<S>(folder, golden);
      break;
    case PeftType::prefix_tuning:
      check_prefix<S>(folder, golden);
      break;
    default:
      FAIL("a kind of golden/peft_kinds");
  }
  golden.done();
}

// ------------------------------------------------------------------------------------- a prefix of heads of five features

/// A tensor of a folder or golden file in double, to be read by its indices.
struct Made {
  std::vector<Index> shape;
  std::vector<double> numbers;
  Made(std::vector<Index> extents, std::mt19937_64* rng) : shape(std::move(extents)) {
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    numbers.assign(static_cast<std::size_t>(size), 0);
    if (rng != nullptr)
      for (double& x : numbers) x = double((*rng)() % 65) / 16 - 2;  // exact in float
  }
  double& at(std::initializer_list<Index> indices) {
    Index offset = 0;
    std::size_t axis = 0;
    for (const Index i : indices) offset = offset * shape[axis++] + i;
    return numbers[static_cast<std::size_t>(offset)];
  }
};

/// Writes a prefix-tuning folder as PEFT lays it out, and what attention over it gives by plain loops in double.
void write_odd_prefix(const fs::path& folder) {
  constexpr Index layers = 2, soft = 3, heads = 4, kv_heads = 2, dim = 5, batch = 2, tokens = 4;
  std::mt19937_64 rng(7);
  const auto write = [&](SafetensorsWriter& writer, const std::string& name, const Made& made) {
    writer.add(name, DType::f64, made.shape, std::as_bytes(std::span(made.numbers)));
  };
  Made prompt({soft, layers * 2 * kv_heads * dim}, &rng);  // for a token: layer, key or value, head, feature
  SafetensorsWriter adapter, golden;
  write(adapter, "prompt_embeddings", prompt);
  adapter.write(folder / "adapter_model.safetensors");
  std::ofstream(folder / "adapter_config.json")
      << R"({"peft_type":"PREFIX_TUNING","num_virtual_tokens":3,"token_dim":10,"num_layers":2,"num_attention_heads":2,)"
      << R"("encoder_hidden_size":10,"prefix_projection":false,"num_transformer_submodules":1})";
  for (const auto& [key, number] : {std::pair<const char*, Index>{"num_layers", layers},
                                    {"num_virtual_tokens", soft},
                                    {"query_heads", heads},
                                    {"kv_heads", kv_heads},
                                    {"head_dim", dim},
                                    {"batch", batch},
                                    {"tokens", tokens}})
    golden.metadata(key, std::to_string(number));
  for (Index l = 0; l < layers; ++l) {
    Made q({batch, heads, tokens, dim}, &rng), k({batch, kv_heads, tokens, dim}, &rng), v({batch, kv_heads, tokens, dim}, &rng),
        out({batch, heads, tokens, dim}, nullptr), mass({batch, heads, tokens}, nullptr), keys({kv_heads, soft, dim}, nullptr),
        values({kv_heads, soft, dim}, nullptr);
    for (Index h = 0; h < kv_heads; ++h)
      for (Index t = 0; t < soft; ++t)
        for (Index d = 0; d < dim; ++d) {
          keys.at({h, t, d}) = prompt.at({t, ((2 * l) * kv_heads + h) * dim + d});
          values.at({h, t, d}) = prompt.at({t, ((2 * l + 1) * kv_heads + h) * dim + d});
        }
    for (Index b = 0; b < batch; ++b)
      for (Index h = 0; h < heads; ++h)
        for (Index t = 0; t < tokens; ++t) {
          const Index from = h / (heads / kv_heads);
          double sum = 0, of_prefix = 0;
          for (Index row = 0; row <= soft + t; ++row) {  // the whole prefix, then the tokens so far
            double score = 0;
            for (Index d = 0; d < dim; ++d)
              score += q.at({b, h, t, d}) * (row < soft ? keys.at({from, row, d}) : k.at({b, from, row - soft, d}));
            const double weight = std::exp(score / std::sqrt(double(dim)));
            sum += weight;
            if (row < soft) of_prefix += weight;
            for (Index d = 0; d < dim; ++d)
              out.at({b, h, t, d}) += weight * (row < soft ? values.at({from, row, d}) : v.at({b, from, row - soft, d}));
          }
          for (Index d = 0; d < dim; ++d) out.at({b, h, t, d}) /= sum;
          mass.at({b, h, t}) = of_prefix / sum;
        }
    const std::string layer = "layer" + std::to_string(l) + ".";
    const std::pair<const char*, const Made*> parts[] = {
        {"q", &q}, {"k", &k}, {"v", &v}, {"attn_out", &out}, {"prefix_mass", &mass}, {"prefix_K", &keys}, {"prefix_V", &values}};
    for (const auto& [name, made] : parts) write(golden, layer + name, *made);
  }
  golden.write(folder / "io.safetensors");
}

}  // namespace

TEST_CASE("golden.peft: a prefix of an odd head size, which no decoder with rotary embeddings has", "[golden]") {
  const TempFolder folder;
  write_odd_prefix(folder.path());
  const PeftFolder opened(folder.path());
  check_folder<float>(opened, folder / "io.safetensors");
  check_folder<double>(opened, folder / "io.safetensors");
}

TEST_CASE("golden.peft: every folder that PEFT wrote", "[golden]") {
  int layers = 0, decoders = 0;
  for (const auto& entry : fs::directory_iterator(golden_folder("lora"))) {
    if (!entry.is_directory()) continue;  // golden.lora
    INFO(entry.path().string());
    check_files(entry.path(), {"adapter_config.json", "adapter_model.safetensors", "io.safetensors"});
    const PeftFolder folder(entry.path());
    check_folder<float>(folder, entry.path() / "io.safetensors");
    check_folder<double>(folder, entry.path() / "io.safetensors");
    ++layers;
  }
  for (const auto& entry : fs::directory_iterator(golden_folder("model"))) {
    if (!fs::exists(entry.path() / "adapter_config.json")) continue;  // golden.model
    INFO(entry.path().string());
    check_adapter(entry.path());
    ++decoders;
  }
  CHECK(layers > 0);
  CHECK(decoders > 0);
  std::printf("golden.peft: %d folders over layers, prompts and prefixes, %d over decoders\n", layers, decoders);
}

}  // namespace golden_peft
