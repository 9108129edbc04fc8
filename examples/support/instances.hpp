#pragma once

#include <pith/io.hpp>
#include <pith/pith.hpp>

// Templates used by most programs of this project, compiled once in instances.cpp; your own programs do not need it.
namespace pith {

extern template class Decoder<float>;
extern template class Session<float, float>;
extern template class KvCache<float>;
extern template Decoder<float> load_decoder<float>(const std::filesystem::path&, const LoadOptions&);
extern template Checkpoint<float> load_checkpoint<float>(const std::filesystem::path&, const LoadOptions&);
extern template std::span<const PolicyEntry<float>> policy_catalogue<float>();

}  // namespace pith
