#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <pith/io.hpp>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::TempFolder;

namespace {

/// A LLaVA or a Gemma 3 folder of random weights, without a decoder: a tower of 2 layers of 8 features, tiles of 12 pixels in 4 x 4
/// patches.
struct VisionFolder {
  std::map<std::string, std::vector<Index>> tensors;  ///< by published names
  std::string config, recipe;
  bool llava;

  explicit VisionFolder(bool of_llava) : llava(of_llava) {
    const std::string tower = "vision_tower.vision_model.";
    tensors[tower + "embeddings.patch_embedding.weight"] = {8, 3, 3, 3};
    tensors[tower + "embeddings.position_embedding.weight"] = {llava ? 17 : 16, 8};
    if (llava)
      tensors[tower + "embeddings.class_embedding"] = tensors[tower + "pre_layrnorm.weight"] = tensors[tower + "pre_layrnorm.bias"] = {8};
    else
      tensors[tower + "embeddings.patch_embedding.bias"] = {8};
    for (const char* norm : {"post_layernorm", "encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2",
                             "encoder.layers.1.layer_norm1", "encoder.layers.1.layer_norm2"})
      tensors[tower + norm + ".weight"] = tensors[tower + norm + ".bias"] = {8};
    for (const std::string layer : {"0", "1"})
      for (const auto& [name, shape] : std::map<std::string, std::vector<Index>>{{"self_attn.q_proj", {8, 8}},
                                                                                 {"self_attn.k_proj", {8, 8}},
                                                                                 {"self_attn.v_proj", {8, 8}},
                                                                                 {"self_attn.out_proj", {8, 8}},
                                                                                 {"mlp.fc1", {12, 8}},
                                                                                 {"mlp.fc2", {8, 12}}}) {
        tensors[tower + "encoder.layers." + layer + "." + name + ".weight"] = shape;
        tensors[tower + "encoder.layers." + layer + "." + name + ".bias"] = {shape[0]};
      }
    const std::string projector = "multi_modal_projector.";
    if (llava) {
      tensors[projector + "linear_1.weight"] = {10, 8};
      tensors[projector + "linear_2.weight"] = {10, 10};
      tensors[projector + "linear_1.bias"] = tensors[projector + "linear_2.bias"] = {10};
    } else {
      tensors[projector + "mm_soft_emb_norm.weight"] = {8};
      tensors[projector + "mm_input_projection_weight"] = {8, 10};
    }
    const std::string sizes =
        R"("hidden_size":8,"intermediate_size":12,"num_hidden_layers":2,"num_attention_heads":2,"image_size":12,"patch_size":3})";
    const std::string text = R"("text_config":{"hidden_size":10,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4}})";
    config = llava ? R"({"model_type":"llava","image_token_index":77,"vision_config":{)" + sizes + "," + text
                   : R"({"model_type":"gemma3","mm_tokens_per_image":4,"vision_config":{)" + sizes + "," + text;
    recipe = llava ? R"({"image_processor_type":"CLIPImageProcessor","size":{"shortest_edge":12},"crop_size":{"height":12,"width":12}})"
                   : R"({"image_processor_type":"Gemma3ImageProcessorFast","size":{"height":12,"width":12}})";
  }

  using Rename = std::function<std::string(std::string)>;
  void write(const TempFolder& folder, const Rename& rename = {}) const {
    SafetensorsWriter writer;
    std::uint64_t seed = 1;
    for (const auto& [name, shape] : tensors) {
      Index size = 1;
      for (const Index extent : shape) size *= extent;
      const Matrix<float> values = .5f * pith_test::random_matrix<float>(size, 1, seed++);
      writer.add(rename ? rename(name) : name, DType::f32, shape, std::as_bytes(std::span(values.data(), static_cast<std::size_t>(size))));
    }
    writer.write(folder / "model.safetensors");
    folder.write("config.json", config);
    folder.write("preprocessor_config.json", recipe);
  }
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

Image grey_picture() { return {std::vector<std::uint8_t>(3 * 20 * 14, 90), 20, 14}; }

void refused(const VisionFolder& made, const std::string& message) {
  const TempFolder folder;
  made.write(folder);
  CHECK_THROWS_WITH(load_vision(folder.path()), contains(message));
}

}  // namespace

TEST_CASE("vision folders: one tower under the names of every version of transformers", "[io]") {
  for (const bool llava : {true, false}) {
    const VisionFolder made(llava);
    const TempFolder published;
    made.write(published);
    const Matrix<float> expected = load_vision(published.path()).rows(grey_picture()).rows;
    CHECK(expected.rows() == (llava ? 16 : 4));
    const VisionFolder::Rename spellings[] = {
        [](std::string name) { return "model." + name; },
        [](std::string name) { return name.starts_with("vision_tower.") ? "model.vision_tower." + name.substr(26) : "model." + name; },
        [](std::string name) { return name.starts_with("vision_tower.") ? "model." + name.substr(13) : name; }};
    for (const auto& rename : spellings) {
      const TempFolder folder;
      made.write(folder, rename);
      CHECK(load_vision(folder.path()).rows(grey_picture()).rows == expected);
    }
    CHECK(load_vision(published.path(), {.weights = WeightsLayout::mapped}).rows(grey_picture()).rows == expected);
    CHECK((load_vision(published.path(), {.weights = WeightsLayout::int8}).rows(grey_picture()).rows - expected).norm() <
          .1f * expected.norm());
    CHECK((load_vision<double>(published.path()).rows(grey_picture()).rows.cast<float>() - expected).cwiseAbs().maxCoeff() < 1e-4f);
    CHECK_THROWS_AS(load_vision<double>(published.path(), {.weights = WeightsLayout::int8}), UnsupportedError);
  }
}

TEST_CASE("vision folders: what the config says, and what it leaves out", "[io]") {
  VisionFolder made(true);
  const auto loaded = [&](const std::string& config) {
    VisionFolder other = made;
    other.config = config;
    const TempFolder folder;
    other.write(folder);
    return load_vision(folder.path());
  };
  const Vision<float> plain = loaded(made.config);
  CHECK((plain.spec.image_token == 77 && plain.spec.drop_first && plain.tower.config().features == std::vector<Index>{1}));
  CHECK((plain.tower.config().activation == VisionActivation::quick_gelu && plain.tower.config().layer_norm_eps == 1e-5));
  const auto with = [&](const std::string& keys) { return replaced(made.config, "\"image_token_index\":77", keys); };
  const Vision<float> other =
      loaded(with(R"("image_token_id":5,"vision_feature_layer":-1,"vision_feature_select_strategy":"full","image_token_index":6)"));
  CHECK((other.spec.image_token == 5 && !other.spec.drop_first && other.tower.config().features == std::vector<Index>{2}));
  CHECK(other.rows(grey_picture()).rows.rows() == 17);
  CHECK(loaded(with(R"("image_token_id":null)")).spec.image_token == 32000);
  // tensors that are not read are listed, but for those that every folder may have
  made.tensors["vision_tower.vision_model.encoder.layers.7.mlp.fc1.weight"] = {1};
  made.tensors["vision_tower.vision_model.embeddings.position_ids"] = {17};
  made.tensors["vision_tower.vision_model.head.attention.in_proj_bias"] = {3};
  CHECK(loaded(made.config).ignored == std::vector<std::string>{"vision_tower.vision_model.encoder.layers.7.mlp.fc1.weight"});
  // transformers 5 keeps the processor's keys in processor_config.json
  const TempFolder five;
  made.write(five);
  std::filesystem::remove(five / "preprocessor_config.json");
  CHECK_THROWS_WITH(load_vision(five.path()), contains("holds neither preprocessor_config.json nor processor_config.json"));
  five.write("processor_config.json", R"({"image_processor":)" + made.recipe + "}");
  CHECK(load_vision(five.path()).recipe.shortest_edge == 12);
}

TEST_CASE("vision folders: refused by name, before anything is computed", "[io]") {
  const VisionFolder llava(true), gemma(false);
  const auto with = [](VisionFolder made, const std::string& from, const std::string& to) {
    made.config = replaced(made.config, from, to);
    return made;
  };
  refused(with(llava, "\"llava\"", "\"mllama\""), "the pictures of model_type 'mllama' are not supported: those of llava, llava_onevision");
  refused(with(llava, "{\"model_type\"", R"({"mm_vision_tower":"openai/clip","model_type")"), "such as those of llava-hf");
  refused(with(llava, "\"vision_config\":{", R"("vision_config":{"model_type":"pixtral",)"),
          "vision_config.model_type 'pixtral' is not supported");
  refused(with(llava, "\"vision_config\":{", R"("vision_config":{"hidden_act":"relu",)"),
          "vision_config.hidden_act 'relu' is not supported");
  refused(with(llava, "\"vision_config\":{", R"("vision_config":{"num_channels":4,)"), "'vision_config.num_channels' is '4', expected 3");
  refused(with(llava, "\"num_attention_heads\":2", "\"num_attention_heads\":3"), "expected a divisor of hidden_size, 8");
  refused(with(llava, "\"image_size\":12", "\"image_size\":99999999"), "vision_config.image_size");
  refused(with(llava, "\"patch_size\":3", "\"patch_size\":13"), "'vision_config.patch_size' is '13', expected a whole number from 1 to 12");
  refused(with(llava, "\"image_token_index\":77", R"("vision_feature_layer":[-2,5])"), "hidden states from -3 to 2");
  refused(with(llava, "\"image_token_index\":77", R"("vision_feature_select_strategy":"cls")"), "\"default\" or \"full\"");
  refused(with(llava, "\"image_token_index\":77", R"("projector_hidden_act":"silu")"), "projector_hidden_act 'silu' is not supported");
  refused(with(llava, "\"image_token_index\":77", R"("vision_feature_layer":[-2,-1])"),
          "tensor 'multi_modal_projector.linear_1.weight' is [10, 8], expected [10, 16] by the config");
  refused(with(llava, "\"hidden_size\":10", "\"hidden_size\":12"), "'multi_modal_projector.linear_1.bias' is [10], expected [12]");
  refused(with(gemma, "\"mm_tokens_per_image\":4", "\"mm_tokens_per_image\":5"), "the square of a divisor of the 4 patches");
  refused(with(gemma, "\"mm_tokens_per_image\":4", "\"mm_tokens_per_image\":9"), "the square of a divisor of the 4 patches");
  const auto changed = [](VisionFolder made, auto&& change) {
    change(made);
    return made;
  };
  const std::string tower = "vision_tower.vision_model.";
  refused(changed(llava, [&](VisionFolder& f) { f.tensors.erase(tower + "encoder.layers.1.mlp.fc2.weight"); }),
          "tensor 'vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight' is missing under every name");
  refused(changed(llava,
                  [&](VisionFolder& f) {
                    f.tensors[tower + "embeddings.patch_embedding.weight"] = {8, 3, 3, 4};
                  }),
          "is [8, 3, 3, 4], expected [8, 3, 3, 3]");
  refused(changed(llava,
                  [&](VisionFolder& f) {
                    f.tensors[tower + "embeddings.position_embedding.weight"] = {16, 8};
                  }),
          "expected [17, 8]");
  refused(changed(llava, [&](VisionFolder& f) { f.tensors["model." + tower + "pre_layrnorm.bias"] = {8}; }),
          "are the same part of the model");
  refused(changed(llava, [&](VisionFolder& f) { f.tensors[tower + "encoder.layers.1.self_attn.q_norm.weight"] = {4}; }),
          "has no place in this tower or projector, but lies in a module that they compute with");
  refused(changed(llava, [&](VisionFolder& f) { f.tensors["multi_modal_projector.layer_norm.weight"] = {10}; }),
          "has no place in this tower");
  const auto recipe = [](VisionFolder made, const std::string& text) {
    made.recipe = text;
    return made;
  };
  refused(recipe(llava, R"({"image_processor_type":"PixtralImageProcessor"})"),
          "image_processor_type 'PixtralImageProcessor' is not supported");
  refused(recipe(llava, R"({"image_processor_type":"CLIPImageProcessor","resample":0})"), "is 0 (nearest), which is not supported");
  refused(recipe(llava, R"({"image_processor_type":"CLIPImageProcessor"})"), "tiles of 224 x 224 pixels, the tower looks at 12 x 12");
  refused(recipe(llava, R"({"image_processor_type":"SiglipImageProcessor","size":{"height":12,"width":13}})"), "tiles of 12 x 13");
  refused(recipe(llava, R"({"image_processor_type":"CLIPImageProcessor","image_std":[1,0,1]})"),
          "'image_std' is a list of 3, expected three numbers above 0");
  refused(recipe(llava, R"({"image_processor_type":"CLIPImageProcessor","image_mean":[1,0]})"), "expected three numbers");
  refused(recipe(llava, R"({"image_processor_type":"CLIPImageProcessor","size":"big"})"), "size");
  refused(recipe(llava, R"({"image_processor_type":"CLIPImageProcessor","size":{"shortest_edge":-1}})"), "size.shortest_edge");
  refused(recipe(gemma, R"({"image_processor_type":"Gemma3ImageProcessor","do_resize":false})"), "do_resize");
  refused(recipe(llava, R"({"image_processor_type":"LlavaOnevisionImageProcessor","image_grid_pinpoints":[[384]]})"),
          "a list of [height, width]");
  refused(recipe(llava, "[]"), "expected a JSON object at the top");
  // older files write sizes as numbers
  VisionFolder old = recipe(llava, R"({"image_processor_type":"CLIPImageProcessor","size":12,"crop_size":12})");
  const TempFolder folder;
  old.write(folder);
  CHECK(load_vision(folder.path()).recipe.crop == ImageSize{12, 12});
  // numbers that are none
  Safetensors::map(folder / "model.safetensors");
  SafetensorsWriter writer;
  for (const auto& [name, shape] : llava.tensors) {
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    const Vector<float> values = Vector<float>::Constant(size, std::numeric_limits<float>::quiet_NaN());
    writer.add(name, DType::f32, shape, std::as_bytes(std::span(values.data(), static_cast<std::size_t>(size))));
  }
  writer.write(folder / "model.safetensors");
  CHECK_THROWS_WITH(load_vision(folder.path()), contains("is NaN or infinite"));
  CHECK_NOTHROW(load_vision(folder.path(), {.check_finite = false}));
}
