#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <pith/io/detail/text.hpp>

// Recognises folders of formats that pith does not read, to name them in a refusal.
namespace pith { inline namespace v0 { namespace detail {

/// A file that identifies another format, and the text of the refusal.
struct OtherFormat {
  std::string_view file;  ///< a file name; with a leading dot, an extension
  std::string_view what;
};

inline constexpr OtherFormat other_checkpoints[] = {
    {"adapter_config.json", "is an adapter of PEFT: load its base model, then the adapter with load_adapter()"},
    {"adapters.safetensors", "is an adapter of MLX: fuse it with its base model (mlx_lm.fuse --dequantize)"},
    {"consolidated.safetensors", "has Mistral's own tensor names: use the files of the same model in the layout of transformers"},
    {"consolidated.00.pth", "is a release of Meta's or Mistral's own: use the same model in the layout of transformers"},
    {"pytorch_model.bin", "is a pickle, which can run code: save it again with save_pretrained(folder, safe_serialization=True)"},
    {"pytorch_model.bin.index.json",
     "is of pickles, which can run code: save the model again with save_pretrained(folder, safe_serialization=True)"},
    {".gguf", "is a file of llama.cpp: use the safetensors folder that it was made from"},
    {".npz", "is an older file of MLX: use the safetensors folder that it was made from"},
    {"tf_model.h5", "is of TensorFlow: load it with transformers (from_tf=True) and save it as safetensors"},
    {"flax_model.msgpack", "is of Flax: load it with transformers (from_flax=True) and save it as safetensors"},
    {".onnx", "is a graph of ONNX: use the safetensors folder that it was made from"},
    {"-of-00001.safetensors", "is a whole checkpoint: rename it to model.safetensors"},
    {".safetensors", "has another name: a whole checkpoint has to be named model.safetensors, and shards need their index"},
};

inline constexpr OtherFormat other_adapters[] = {
    {"adapters.safetensors", "is an adapter of MLX, only PEFT's are read: fuse it with its base model (mlx_lm.fuse --dequantize)"},
    {"adapters.npz", "is an adapter of MLX, only PEFT's are read: fuse it with its base model"},
    {"pytorch_lora_weights.safetensors", "is an adapter of diffusers, only PEFT's are read"},
    {"adapter.safetensors", "is an adapter of the Adapters library (AdapterHub), only PEFT's are read"},
    {"pytorch_adapter.bin", "is an adapter of the Adapters library (AdapterHub), only PEFT's are read"},
    {"adapter_model.bin", "is a pickle, which can run code: save it again with safe_serialization=True"},
    {".gguf", "is a file of llama.cpp: use the PEFT folder that it was made from"},
    {"model.safetensors", "is a whole model: load it with load_decoder()"},
    {"model.safetensors.index.json", "is of a whole model: load it with load_decoder()"},
    {"adapter_model.safetensors", "is not enough: fetch the adapter_config.json that belongs to it"},
};

/// The first of these formats found in a folder, as the end of a sentence: "; its <file> …". Empty: none.
template <std::size_t N> std::string shown_format(const std::filesystem::path& folder, const OtherFormat (&formats)[N]) {
  constexpr std::size_t most_files = 10'000;
  std::vector<std::string> names;
  std::error_code error;
  for (auto at = std::filesystem::directory_iterator(folder, error);
       !error && at != std::filesystem::directory_iterator() && names.size() < most_files; at.increment(error))
    names.push_back(at->path().filename().string());
  std::sort(names.begin(), names.end());
  for (const OtherFormat& format : formats)
    for (const std::string& name : names)
      if (format.file.front() == '.' || format.file.front() == '-' ? name.ends_with(format.file) : name == format.file)
        return text("; its ", name, " ", format.what);
  return {};
}

}}}  // namespace pith::v0::detail
