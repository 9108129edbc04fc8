#pragma once

#include <filesystem>

#include <pith/text/tokenizer.hpp>

// load_tokenizer(), declared without what it takes to read the files: enough for a program that links pith::prebuilt.
namespace pith { inline namespace v0 {

template <class = void> Tokenizer load_tokenizer(const std::filesystem::path& folder);

}}  // namespace pith::v0
