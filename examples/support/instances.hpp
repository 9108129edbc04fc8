#pragma once

#include <pith/io.hpp>
#include <pith/pith.hpp>

// What most programs of this project use, compiled once in instances.cpp instead of in each: your own programs need nothing of it.
namespace pith {

extern template class Decoder<float>;
extern template class Session<float, float>;
extern template class KvCache<AnyPolicy<float>, AnyMerge<float>, float>;
extern template class KvCache<AnyPolicy<float>, Drop, float>;
extern template Decoder<float> load_decoder<float>(const std::filesystem::path&, const LoadOptions&);
extern template Checkpoint<float> load_checkpoint<float>(const std::filesystem::path&, const LoadOptions&);
extern template std::span<const PolicyEntry<float>> policy_catalogue<float>();

}  // namespace pith
