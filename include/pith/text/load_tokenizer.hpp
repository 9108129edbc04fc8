#pragma once

#include <filesystem>

#include <pith/text/detail/tokenizer_folder.hpp>
#include <pith/text/load.hpp>
#include <pith/text/tokenizer.hpp>

namespace pith { inline namespace v0 {

/// Loads the tokenizer of a Hugging Face folder: tokenizer.json and, if present, tokenizer_config.json, special_tokens_map.json,
/// generation_config.json, config.json, chat_template.jinja and chat_template.json.
///
/// Byte-level BPE (GPT-2, Qwen, Llama 3, GPT-4o, Mistral Nemo, SmolLM, Phi-4, OLMo, Granite …) and BPE in sentencepiece's style (Llama 2,
/// Mistral, Gemma, Phi-3, TinyLlama). Unsupported features are refused by name.
///
/// Heap     twice the tables; the file is not held as a JSON tree
/// Throws   FormatError naming file, place, found and expected; UnsupportedError naming the unsupported feature
template <class> Tokenizer load_tokenizer(const std::filesystem::path& folder) { return Tokenizer(detail::read_tokenizer_folder(folder)); }

}}  // namespace pith::v0
