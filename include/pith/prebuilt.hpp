#pragma once

#include <span>

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
}  // namespace detail

extern template class Decoder<float>;
extern template class Session<float, float>;
extern template class KvCache<float>;
extern template class VisionTower<float>;
extern template std::span<const PolicyEntry<float>> policy_catalogue<float>();

}}  // namespace pith::v0
