#include "instances.hpp"

namespace pith {

template class Decoder<float>;
template class Session<float, float>;
template class KvCache<float>;
template Decoder<float> load_decoder<float>(const std::filesystem::path&, const LoadOptions&);
template Checkpoint<float> load_checkpoint<float>(const std::filesystem::path&, const LoadOptions&);
template std::span<const PolicyEntry<float>> policy_catalogue<float>();

}  // namespace pith
