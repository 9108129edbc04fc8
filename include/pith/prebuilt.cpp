#include <filesystem>
#include <string>

#include <pith/io.hpp>
#include <pith/prebuilt.hpp>
#if __has_include(<utf8proc.h>)
#include <pith/text.hpp>
#endif

namespace pith { inline namespace v0 {

namespace detail {
template <int width, int alignment, class Many, class Few, bool bf16>
const char PrebuiltFor<width, alignment, Many, Few, bf16>::the_same_instructions = 0;
template struct PrebuiltFor<Simd<float>::width, EIGEN_MAX_ALIGN_BYTES, ManyLanes, FewLanes, has_bf16_pairs>;
}  // namespace detail

template class Decoder<float>;
template class Session<float, float>;
template class KvCache<float>;
template class VisionTower<float>;
template std::span<const PolicyEntry<float>> policy_catalogue<float>();

template Checkpoint<float> load_checkpoint<float>(const std::filesystem::path&, const LoadOptions&);
template Decoder<float> load_decoder<float>(const std::filesystem::path&, const LoadOptions&);
template Vision<float> load_vision<float>(const std::filesystem::path&, const VisionLoadOptions&);
template Linear<float> load_linear<float>(const std::filesystem::path&, const std::string&);
template ModelAdapter<float> load_adapter<float>(const std::filesystem::path&, const Decoder<float>&, AdapterOptions);
template KvPrefix load_prefix<float>(const std::filesystem::path&, const Decoder<float>&);
template void save_session<float, float>(const Session<float>&, const std::filesystem::path&);
template void load_session<float, float>(Session<float>&, const std::filesystem::path&);
#if __has_include(<utf8proc.h>)
template Tokenizer load_tokenizer<>(const std::filesystem::path&);
#endif

}}  // namespace pith::v0
