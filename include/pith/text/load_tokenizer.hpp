#pragma once

#include <filesystem>

#include <pith/text/detail/tokenizer_folder.hpp>
#include <pith/text/tokenizer.hpp>

namespace pith { inline namespace v0 {

/// Loads the tokenizer of a Hugging Face folder: tokenizer.json, and what tokenizer_config.json, special_tokens_map.json,
/// generation_config.json and config.json say besides, where they are.
///
/// Byte-level BPE (GPT-2, Qwen, Llama 3, GPT-4o, Mistral Nemo, SmolLM, Phi-4, OLMo, Granite …) and BPE in sentencepiece's style (Llama 2,
/// Mistral, Gemma, Phi-3, TinyLlama). What a file asks for beyond that is refused by name.
///
/// Heap     twice the tables; no tree of the file
/// Throws   FormatError naming file, place, found and expected; UnsupportedError naming what pith does not do
inline Tokenizer load_tokenizer(const std::filesystem::path& folder) { return Tokenizer(detail::read_tokenizer_folder(folder)); }

}}  // namespace pith::v0
