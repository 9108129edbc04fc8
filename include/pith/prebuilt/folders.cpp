#include <filesystem>
#include <string>

#include <pith/io/checkpoint.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/safetensors_header.hpp>
#include <pith/io/linear_file.hpp>
#include <pith/io/vision.hpp>
#include <pith/prebuilt.hpp>

namespace pith { inline namespace v0 {

template void detail::read_events(detail::JsonBytes, detail::JsonBytes, detail::JsonBuilder&);
template void detail::read_events(const char*, const char*, detail::HeaderReader&);
template Checkpoint<float> load_checkpoint<float>(const std::filesystem::path&, const LoadOptions&);
template Decoder<float> load_decoder<float>(const std::filesystem::path&, const LoadOptions&);
template Vision<float> load_vision<float>(const std::filesystem::path&, const VisionLoadOptions&);
template Linear<float> load_linear<float>(const std::filesystem::path&, const std::string&);

}}  // namespace pith::v0
