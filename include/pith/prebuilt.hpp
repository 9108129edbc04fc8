#pragma once

#include <filesystem>
#include <span>
#include <string>

#include <pith/io/detail/json_events.hpp>
#include <pith/io/detail/prebuilt_for.hpp>
#include <pith/io/load.hpp>
#include <pith/pith.hpp>
#if __has_include(<utf8proc.h>)
#include <pith/text/chat_format.hpp>
#include <pith/text/detokenizer.hpp>
#include <pith/text/load.hpp>
#endif

// In place of <pith/pith.hpp>, <pith/io.hpp> and <pith/text.hpp>, in a program that links the target pith::prebuilt or compiles
// pith/prebuilt.cpp as one of its sources: float decoders, their sessions, and what loads them are compiled once, not again for each
// source that uses them. All other headers of pith may stand beside it.

namespace pith { inline namespace v0 {

namespace detail {
[[gnu::used]] inline const char* const prebuilt_for_this = &PrebuiltForThis::the_same_instructions;

extern template struct DecoderModel<float>;
extern template class AttendTile<float>;
extern template void attend_observed<float>(const ConstMatrixRef<float>&, const KvView<float>&, MatrixRef<float>, Workspace&,
                                            TileObserver<float>, const AttendOptions<float>&);
extern template void read_events(JsonBytes, JsonBytes, JsonBuilder&);
extern template void read_events(const char*, const char*, HeaderReader&);
#if __has_include(<utf8proc.h>)
class TokenizerSax;
extern template void read_events(const char*, const char*, TokenizerSax&);
#endif
}  // namespace detail

extern template class Decoder<float>;
extern template class Session<float, float>;
extern template class KvCache<float>;
extern template class VisionTower<float>;
extern template std::span<const PolicyEntry<float>> policy_catalogue<float>();

extern template Checkpoint<float> load_checkpoint<float>(const std::filesystem::path&, const LoadOptions&);
extern template Decoder<float> load_decoder<float>(const std::filesystem::path&, const LoadOptions&);
extern template Vision<float> load_vision<float>(const std::filesystem::path&, const VisionLoadOptions&);
extern template Linear<float> load_linear<float>(const std::filesystem::path&, const std::string&);
extern template ModelAdapter<float> load_adapter<float>(const std::filesystem::path&, const Decoder<float>&, AdapterOptions);
extern template KvPrefix load_prefix<float>(const std::filesystem::path&, const Decoder<float>&);
extern template void save_session<float, float>(const Session<float>&, const std::filesystem::path&);
extern template void load_session<float, float>(Session<float>&, const std::filesystem::path&);
#if __has_include(<utf8proc.h>)
extern template Tokenizer load_tokenizer<>(const std::filesystem::path&);
#endif

}}  // namespace pith::v0
