#include "fuzz/seeds.hpp"

#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <pith/io.hpp>

#include "fuzz/tiny_sessions.hpp"
#include "io/quantised_folder.hpp"
#include "io/tiny_adapter.hpp"
#include "io/tiny_checkpoint.hpp"

namespace pith_fuzz {
namespace {

namespace fs = std::filesystem;

/// Numbers the seeds of one program.
class Seeds {
 public:
  Seeds(const fs::path& folder, const std::string& program) : folder_(folder / program) { fs::create_directories(folder_); }
  void add(std::string_view text) { write_file(folder_ / ("seed-" + std::to_string(++count_)), text); }

 private:
  fs::path folder_;
  int count_ = 0;
};

void add_safetensors(Seeds seeds) {
  const pith_test::TempFolder folder;
  const auto file = [&](const pith::SafetensorsWriter& writer) {
    writer.write(folder / "seed");
    seeds.add(folder.read("seed"));
  };
  const std::vector<std::byte> zeros(48);
  pith::SafetensorsWriter writer;
  file(writer);
  writer.metadata("format", "pt");
  writer.add("a", pith::DType::f32, {2, 3}, std::span(zeros).first(24));
  writer.add("b", pith::DType::bf16, {3}, std::span(zeros).first(6));
  writer.add("c", pith::DType::i64, {2, 1, 2}, std::span(zeros).first(32));
  writer.add("d", pith::DType::boolean, {}, std::span(zeros).first(1));
  writer.add("e", pith::DType::f16, {0, 4}, std::span(zeros).first(0));
  file(writer);
}

void add_configs(Seeds seeds) {
  for (
      const std::string_view text :
      {R"({"model_type":"llama","vocab_size":32000,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,)"
       R"("num_key_value_heads":2,"head_dim":16,"max_position_embeddings":2048,"rms_norm_eps":1e-05,"rope_theta":10000.0,"rope_scaling":)"
       R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192},)"
       R"("attention_bias":true,"mlp_bias":false,"hidden_act":"silu","tie_word_embeddings":true,"eos_token_id":[1,2],"bos_token_id":1,)"
       R"("architectures":["LlamaForCausalLM"],"torch_dtype":"float16","is_causal":true,"auto_map":{},"use_cache":true})"
       "\n=== generation_config.json\n"
       R"({"eos_token_id":[1,9],"bos_token_id":1,"do_sample":true,"temperature":0.6})",
       R"({"model_type":"mistral","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":1,"sliding_window":128,"eos_token_id":2,)"
       R"("rope_scaling":{"type":"dynamic","factor":2.0},"intermediate_size":96,"num_hidden_layers":3,"vocab_size":9})",
       R"({"model_type":"qwen2","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":4,"use_sliding_window":true,)"
       R"("sliding_window":32,"max_window_layers":1,"num_hidden_layers":2,"layer_types":["full_attention","sliding_attention"],)"
       R"("rope_parameters":{"rope_type":"linear","rope_theta":1000000.0,"factor":4.0},"quantization_config":null})"
       "\n=== generation_config.json\n"
       R"({"eos_token_id":151645,"pad_token_id":null})",
       R"({"model_type":"qwen3","num_hidden_layers":2,"max_window_layers":1,"use_sliding_window":true,"rope_scaling":{"rope_type":"yarn",)"
       R"("factor":4.0,"original_max_position_embeddings":64,"beta_fast":32,"beta_slow":1,"truncate":false,"attention_factor":1.1}})",
       R"({"model_type":"smollm3","num_hidden_layers":3,"no_rope_layers":[1,0,1],"no_rope_layer_interval":2,"layer_types":)"
       R"(["full_attention","sliding_attention","full_attention"],"sliding_window":8,"use_sliding_window":true})",
       R"({"model_type":"phi3","hidden_size":32,"num_attention_heads":4,"num_hidden_layers":1,"partial_rotary_factor":0.5,)"
       R"("original_max_position_embeddings":16,"rope_scaling":{"type":"longrope","short_factor":[1,1.5],"long_factor":[2,4]}})",
       R"({"model_type":"granite","num_hidden_layers":1,"attention_multiplier":0.1,"embedding_multiplier":12,"residual_multiplier":0.2,)"
       R"("logits_scaling":8,"num_local_experts":0})",
       R"({"model_type":"mistral3","eos_token_id":2,"text_config":{"model_type":"ministral3","num_hidden_layers":1,"rope_parameters":)"
       R"({"rope_type":"yarn","type":"yarn","factor":4,"llama_4_scaling_beta":0.1,"original_max_position_embeddings":16,"mscale":1,)"
       R"("mscale_all_dim":1}},"vision_config":{}})",
       R"({"model_type":"olmo2","num_hidden_layers":1})",
       R"({"model_type":"olmo3","num_hidden_layers":2,"rope_parameters":{"full_attention":{"rope_type":"linear","factor":2,"rope_theta":5},)"
       R"("sliding_attention":{"rope_theta":5}}})",
       R"({"model_type":"exaone4","num_hidden_layers":2,"sliding_window_pattern":"LG","layer_types":["sliding_attention","full_attention"]})",
       R"({"model_type":"gemma","num_hidden_layers":1,"hidden_act":"gelu","hidden_activation":null})",
       R"({"model_type":"gemma2","num_hidden_layers":2,"query_pre_attn_scalar":144,"attn_logit_softcapping":50,"final_logit_softcapping":null})",
       R"({"model_type":"gemma3","text_config":{"num_hidden_layers":3,"sliding_window_pattern":2,"rope_local_base_freq":10,"rope_scaling":)"
       R"({"rope_type":"linear","factor":8}},"tie_word_embeddings":true,"architectures":["Gemma3ForConditionalGeneration"]})",
       R"({"model_type":"glm","num_hidden_layers":1,"attention_bias":false})",
       R"({"model_type":"glm4","num_hidden_layers":1,"rope_parameters":{"partial_rotary_factor":0.25,"rope_theta":10000}})",
       R"({"model_type":"cohere2","num_hidden_layers":4,"logit_scale":0.25,"position_embedding_type":"rope_gptj","rotary_pct":1.0})",
       R"({"model_type":"qwen2_5_vl","num_hidden_layers":1,"rope_scaling":{"type":"mrope","mrope_section":[16,24,24]}})",
       R"({"model_type":"llava","text_config":{"num_hidden_layers":1}})",
       R"({"model_type":"llama","num_hidden_layers":1,"quantization_config":{"quant_method":"awq","bits":4,"group_size":-1,"zero_point":true,)"
       R"("version":"gemm","modules_to_not_convert":["mlp.down_proj"]}})",
       R"({"model_type":"llama","num_hidden_layers":1,"quantization_config":{"quant_method":"gptq","bits":8,"group_size":32,"desc_act":true,)"
       R"("checkpoint_format":"gptq_v2","pack_dtype":"int32","dynamic":{"+:.*\\.mlp\\.":{"bits":4,"group_size":64},"-:k_proj":{}}}})",
       R"({"model_type":"llama","num_hidden_layers":1,"compression_config":{"format":"pack-quantized","quantization_status":"compressed",)"
       R"("sparsity_config":{},"ignore":["lm_head","re:.*v_proj"],"config_groups":{"group_0":{"targets":["Linear","re:.*(q|k)_proj"],"weights":)"
       R"({"num_bits":4,"type":"int","strategy":"group","group_size":32,"symmetric":false}},"group_1":{"format":"float-quantized","targets":[],)"
       R"("weights":{"num_bits":8,"type":"float","strategy":"block","block_structure":[128,64]}}}}})",
       R"({"model_type":"mistral3","text_config":{"num_hidden_layers":1},"quantization_config":{"quant_method":"fp8","fmt":"e4m3",)"
       R"("activation_scheme":"static","weight_block_size":null,"ignored_layers":["lm_head"]}})",
       R"({"model_type":"qwen2","num_hidden_layers":1,"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,)"
       R"("bnb_4bit_quant_type":"nf4","llm_int8_skip_modules":null}})",
       R"({"model_type":"llava","image_token_index":77,"vision_feature_layer":[-2,1],"vision_feature_select_strategy":"full",)"
       R"("projector_hidden_act":"gelu","multimodal_projector_bias":false,"vision_config":{"model_type":"clip_vision_model","hidden_size":8,)"
       R"("intermediate_size":12,"num_hidden_layers":2,"num_attention_heads":2,"image_size":12,"patch_size":3,"layer_norm_eps":1e-5}})"
       "\n=== preprocessor_config.json\n"
       R"({"image_processor_type":"CLIPImageProcessor","size":{"shortest_edge":12},"crop_size":{"height":12,"width":12},"resample":3,)"
       R"("do_center_crop":true,"image_mean":[0.5,0.4,0.3],"image_std":[0.2,0.3,0.4],"rescale_factor":0.004,"do_pad":false})",
       R"({"model_type":"llava_onevision","vision_aspect_ratio":"anyres_max_4","vision_config":{"image_size":12,"patch_size":4}})"
       "\n=== preprocessor_config.json\n"
       R"({"image_processor_type":"LlavaOnevisionImageProcessorFast","size":{"height":12,"width":12},"image_grid_pinpoints":[[12,12],[12,24]]})",
       R"({"model_type":"smolvlm","scale_factor":2,"image_token_id":9,"vision_config":{"image_size":16,"patch_size":4,"hidden_act":"gelu"}})"
       "\n=== preprocessor_config.json\n"
       R"({"image_processor_type":"SmolVLMImageProcessor","size":{"longest_edge":32},"max_image_size":{"longest_edge":16},"resample":1})",
       R"({"model_type":"gemma3","mm_tokens_per_image":4,"text_config":{"num_hidden_layers":1},"vision_config":{"image_size":16,"patch_size":4}})"
       "\n=== preprocessor_config.json\n"
       R"({"image_processor":{"image_processor_type":"Gemma3ImageProcessor","size":{"height":16,"width":16},"do_pan_and_scan":true,)"
       R"("pan_and_scan_min_crop_size":2,"pan_and_scan_max_num_crops":3,"pan_and_scan_min_ratio_to_activate":1.1}})",
       R"({"model_type":"paligemma","vision_config":{"num_hidden_layers":1,"image_size":16,"patch_size":4,"num_channels":3}})"
       "\n=== preprocessor_config.json\n"
       R"({"image_processor_type":"SiglipImageProcessor","size":16,"do_rescale":false,"do_normalize":false,"resample":2})"})
    seeds.add(text);
}

void add_indices(Seeds seeds) {
  const pith_test::TempFolder folder;
  const pith_test::TinyCheckpoint checkpoint;
  std::string index = R"({"metadata":{"total_size":3000},"weight_map":{)";
  for (const auto& [name, values] : checkpoint.tensors)
    index +=
        (index.back() == '{' ? "\"" : ",\"") + name + "\":\"model-0000" + (name < "model.layers.1" ? "1" : "2") + "-of-00002.safetensors\"";
  seeds.add(index + "}}");
  seeds.add("=== config.json\n" + checkpoint.config);
  checkpoint.write(folder);
  seeds.add("=== model.safetensors\n" + folder.read("model.safetensors"));
  seeds.add("=== generation_config.json\n{\"eos_token_id\":[1,4]}");
  const auto coded = [&](const char* config, const auto& make) {
    pith_test::QuantisedFolder quantised(nlohmann::json::parse(config),
                                         {.hidden = 8, .inner = 8, .heads = 1, .kv_heads = 1, .head_dim = 8, .vocab = 5});
    quantised.modules([&](const std::string& name, int out, int in) { make(quantised, name, out, in); });
    const pith_test::TempFolder at;
    quantised.write(at);
    seeds.add("=== config.json\n" + at.read("config.json") + "\n=== model.safetensors\n" + at.read("model.safetensors"));
  };
  using Folder = pith_test::QuantisedFolder;
  coded(R"({"quant_method":"awq","group_size":-1})",
        [](Folder& f, const std::string& name, int out, int in) { f.awq(name, f.random(out, in, 4, 0)); });
  coded(R"({"quant_method":"gptq","bits":4,"group_size":4})",
        [](Folder& f, const std::string& name, int out, int in) { f.gptq(name, f.random(out, in, 4, 4), 1, true); });
  coded(R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"g":{"targets":["Linear"],"weights":)"
        R"({"num_bits":4,"strategy":"group","group_size":8}}},"ignore":["re:lm_head"]})",
        [](Folder& f, const std::string& name, int out, int in) { f.packed(name, f.random(out, in, 4, 8), true); });
  coded(R"({"quant_method":"compressed-tensors","format":"int-quantized","config_groups":{"g":{"targets":["Linear"],"weights":)"
        R"({"num_bits":8,"strategy":"channel"}}}})",
        [](Folder& f, const std::string& name, int out, int in) { f.bytes(name, f.random(out, in, 8, 0, 128), false); });
  coded(R"({"quant_method":"fp8","weight_block_size":[5,3]})", [](Folder& f, const std::string& name, int out, int in) {
    const std::vector<float> scales = f.float8(name, out, in, 5, 3);
    f.tensors[name + ".weight_scale_inv"] = pith_test::RawTensor::of(pith::DType::f32, {(out + 4) / 5, (in + 2) / 3}, scales);
  });
  coded(R"({"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4"})",
        [](Folder& f, const std::string& name, int out, int in) { f.table4(name, out, in, "nf4", 24, pith::DType::u8, true); });
}

void add_adapters(Seeds seeds) {
  const pith_test::TempFolder folder;
  const auto add = [&](const pith_test::TinyAdapter& adapter) {
    adapter.write(folder);
    seeds.add(folder.read("adapter_config.json") + "\n=== adapter_model.safetensors\n" + folder.read("adapter_model.safetensors"));
  };
  const std::string q = "model.layers.0.self_attn.q_proj";
  pith_test::TinyAdapter plain;
  add(plain);
  pith_test::TinyAdapter dora;
  dora.config["use_dora"] = true;
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    dora.put(dora.name(layer + "self_attn.q_proj", "lora_magnitude_vector"), 8);
    dora.put(dora.name(layer + "mlp.up_proj", "lora_magnitude_vector"), 6);
  }
  add(dora);
  pith_test::TinyAdapter patterns;
  patterns.config["target_modules"] = ".*\\.(q|up)_proj";
  patterns.config["rank_pattern"] = {{"^model\\.layers\\.[0-9]+\\.mlp.*", 2}};
  patterns.config["alpha_pattern"] = {{"q_proj", 3}};
  patterns.config["modules_to_save"] = {"norm"};
  patterns.put("base_model.model.model.norm.weight", 8);
  add(patterns);
  pith_test::TinyAdapter prompt;
  prompt.tensors.clear();
  prompt.config = {{"peft_type", "PROMPT_TUNING"}, {"num_virtual_tokens", 3}, {"token_dim", 8}, {"num_layers", 2}};
  prompt.put("prompt_embeddings", 3, 8);
  add(prompt);
  pith_test::TinyAdapter prefix;
  prefix.tensors.clear();
  prefix.config = {{"peft_type", "PREFIX_TUNING"},
                   {"num_virtual_tokens", 2},
                   {"token_dim", 4},
                   {"num_layers", 2},
                   {"num_attention_heads", 1},
                   {"encoder_hidden_size", 4},
                   {"prefix_projection", false},
                   {"num_transformer_submodules", 1}};
  prefix.put("prompt_embeddings", 2, 16);
  add(prefix);

  // The kinds beyond LoRA, each over one projection of 8 outputs and 8 inputs.
  struct Part {
    std::string ending;  ///< of the projection, or the whole name of what all share
    std::vector<pith::Index> shape;
  };
  const auto kind = [&](const char* config, const std::vector<Part>& parts) {
    pith_test::TinyAdapter adapter;
    adapter.tensors.clear();
    adapter.config = nlohmann::ordered_json::parse(config);
    if (!adapter.config.contains("target_modules")) adapter.config["target_modules"] = {"layers.0.self_attn.q_proj"};
    for (const Part& part : parts) {
      const std::string name = part.ending.starts_with("base_model.") ? part.ending : pith_test::TinyAdapter::name(q, part.ending);
      pith::Index size = 1;
      for (const pith::Index extent : part.shape) size *= extent;
      adapter.put(name, part.shape[0], size / part.shape[0]);
      adapter.shapes[name] = part.shape;
    }
    add(adapter);
  };
  kind(R"({"peft_type":"IA3","feedforward_modules":[]})", {{"ia3_l", {8, 1}}});
  kind(R"({"peft_type":"VERA","r":3})",
       {{"vera_lambda_b", {8}}, {"vera_lambda_d", {3}}, {"base_model.vera_A", {3, 8}}, {"base_model.vera_B", {8, 3}}});
  kind(R"({"peft_type":"VERA","r":3,"save_projection":false,"projection_prng_key":7})", {{"vera_lambda_b", {8}}, {"vera_lambda_d", {3}}});
  kind(R"({"peft_type":"LOHA","r":2,"alpha":3})",
       {{"hada_w1_a", {8, 2}}, {"hada_w1_b", {2, 8}}, {"hada_w2_a", {8, 2}}, {"hada_w2_b", {2, 8}}});
  kind(R"({"peft_type":"LOKR","r":1,"alpha":1,"rank_pattern":{}})", {{"lokr_w1", {2, 4}}, {"lokr_w2_a", {4, 1}}, {"lokr_w2_b", {1, 2}}});
  kind(R"({"peft_type":"OFT","peft_version":"0.18.0","r":0,"oft_block_size":4,"num_cayley_neumann_terms":5})", {{"oft_R.weight", {2, 6}}});
  kind(R"({"peft_type":"OFT","r":0,"oft_block_size":4,"block_share":true,"use_cayley_neumann":false})", {{"oft_R.weight", {1, 6}}});
  kind(R"({"peft_type":"BOFT","boft_block_size":2,"boft_n_butterfly_factor":2})", {{"boft_R", {2, 4, 2, 2}}, {"boft_s", {8, 1}}});
  kind(R"({"peft_type":"HRA","r":2,"apply_GS":true})", {{"hra_u", {8, 2}}});
  kind(R"({"peft_type":"MISS","r":4,"mini_r":2,"init_weights":"mini"})", {{"miss_block", {4, 2}}});
  kind(R"({"peft_type":"MISS","r":4,"init_weights":"bat"})", {{"miss_block", {2, 4, 4}}});
  kind(R"({"peft_type":"RANDLORA","r":4,"randlora_alpha":2})", {{"randlora_lambda", {4, 2}},
                                                                {"randlora_gamma", {2, 8}},
                                                                {"base_model.randlora_A", {4, 1, 8}},
                                                                {"base_model.randlora_B", {8, 2, 4}}});
  kind(R"({"peft_type":"LN_TUNING","target_modules":["norm"],"modules_to_save":null})", {{"base_model.model.model.norm.weight", {8}}});
  kind(R"({"peft_type":"TRAINABLE_TOKENS","token_indices":[3,1],"target_modules":["embed_tokens"]})",
       {{"base_model.model.model.embed_tokens.trainable_tokens_delta", {2, 8}}});
}

void add_session_files(Seeds seeds) {
  const pith_test::TempFolder folder;
  for (const std::size_t kind : {0u, 2u, 4u, 9u, 12u, 20u}) {
    auto session = start_tiny(kind);
    session.prefill(tiny_prompt());
    session.decode(pith::Token{1});
    pith::save_session(session, folder / "seed");
    seeds.add(std::string(1, static_cast<char>(kind)) + folder.read("seed"));
  }
}

void add_expressions(Seeds seeds) {
  for (const std::string_view text :
       {"model\\.layers\\.[0-9]+\\.self_attn\\.(q|k|v)_proj\nmodel.layers.11.self_attn.q_proj", "(a|b*c)+[^d-f]?x\nabcx",
        "^.*(?=up)up_(proj){1,2}$\nmlp.up_proj", "(?!x)\\w+\\b\\.\\d*?\\Z\nlayer.12", "a(b(c|d)*)+\nabcdbd"})
    seeds.add(text);
}

/// Programs of bytes: any are good to begin with.
// Small tokenizers of each style, with a text and ids.
void add_tokenizers(Seeds seeds) {
  const std::string added =
      R"("added_tokens":[{"id":6,"content":"<s>","single_word":false,"lstrip":false,"rstrip":true,"normalized":false,"special":true},)"
      R"({"id":7,"content":"ab c","single_word":true,"lstrip":true,"rstrip":false,"normalized":true,"special":false}],)";
  const std::string vocab = R"("vocab":{"a":0,"b":1,"c":2,"ab":3,"abc":4,"bc":5},"merges":)";
  const std::string rest =
      "\n=== tokenizer_config.json\n"
      R"({"bos_token":"<s>","eos_token":{"content":"b"},"add_bos_token":true,)"
      R"("added_tokens_decoder":{"8":{"content":"<t>","special":true}},"chat_template":"{{ bos_token }}"})"
      "\n=== generation_config.json\n"
      R"({"eos_token_id":[1,2]})"
      "\n=== text\nabc <s> ab c\nabcabc it's 12345\n=== ids\n" +
      std::string("\0\1\0\3\0\6\0\4", 8);
  const auto add = [&](std::string_view middle, std::string_view merges) {
    seeds.add(R"({"version":"1.0",)" + added + std::string(middle) + R"("model":{"type":"BPE",)" + vocab + std::string(merges) + "}}" +
              rest);
  };
  add(R"("normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":)"
      R"("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},)"
      R"("behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},)"
      R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],)"
      R"("special_tokens":{"<s>":{"id":"<s>","ids":[6]}}},"decoder":{"type":"ByteLevel"},)",
      R"(["a b","ab c","b c"])");
  add(R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":true}]},)"
      R"("decoder":{"type":"ByteLevel"},)",
      R"([["a","b"],["ab","c"]],"ignore_merges":true)");
  add(R"("normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"a"},{"type":"Replace","pattern":{"String":" "},"content":"b"}]},)"
      R"("decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"b"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},)"
      R"({"type":"Strip","content":" ","start":1,"stop":0}]},)",
      R"(["b c","a bc"],"unk_token":"a","fuse_unk":true,"byte_fallback":true)");
  add(R"("pre_tokenizer":{"type":"Metaspace","replacement":"c","prepend_scheme":"first","split":true},)"
      R"("decoder":{"type":"Metaspace","replacement":"c","prepend_scheme":"always"},)",
      R"([],"unk_token":"b")");
}

void add_random(Seeds seeds, std::size_t count, std::size_t longest) {
  std::mt19937_64 rng(count);
  for (std::size_t i = 0; i < count; ++i) {
    std::string text(longest / 4 + rng() % longest, '\0');
    for (char& c : text) c = static_cast<char>(rng() % (i % 2 == 0 ? 256 : 64));
    seeds.add(text);
  }
}

}  // namespace

void write_seeds(const fs::path& folder) {
  add_safetensors({folder, "safetensors"});
  add_configs({folder, "config"});
  add_tokenizers({folder, "tokenizer"});
  add_indices({folder, "index"});
  add_adapters({folder, "adapter"});
  add_session_files({folder, "session_file"});
  add_expressions({folder, "expression"});
  add_random({folder, "policy"}, 24, 48);
  add_random({folder, "cache"}, 24, 160);
  add_random({folder, "session"}, 24, 120);
}

}  // namespace pith_fuzz
