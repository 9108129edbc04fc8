#include <filesystem>

#if __has_include(<utf8proc.h>)
#include <pith/text/load_tokenizer.hpp>

namespace pith { inline namespace v0 {

template Tokenizer load_tokenizer<>(const std::filesystem::path&);

}}  // namespace pith::v0
#endif
