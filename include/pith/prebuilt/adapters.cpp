#include <filesystem>

#include <pith/io/peft_adapter.hpp>
#include <pith/io/session_file.hpp>
#include <pith/prebuilt.hpp>

namespace pith { inline namespace v0 {

template ModelAdapter<float> load_adapter<float>(const std::filesystem::path&, const Decoder<float>&, AdapterOptions);
template KvPrefix load_prefix<float>(const std::filesystem::path&, const Decoder<float>&);
template void save_session<float, float>(const Session<float>&, const std::filesystem::path&);
template void load_session<float, float>(Session<float>&, const std::filesystem::path&);

}}  // namespace pith::v0
