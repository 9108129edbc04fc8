#include <filesystem>

#if __has_include(<utf8proc.h>)
#include <pith/prebuilt.hpp>
#include <pith/text/detail/tokenizer_json.hpp>
#include <pith/text/load_tokenizer.hpp>

namespace pith { inline namespace v0 {

template void detail::read_events(const char*, const char*, detail::TokenizerSax&);
template Tokenizer load_tokenizer<>(const std::filesystem::path&);

}}  // namespace pith::v0
#endif
