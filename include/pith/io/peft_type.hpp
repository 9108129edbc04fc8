#pragma once

#include <cstdint>

namespace pith { inline namespace v0 {

/// The kinds of adapter folder that pith reads.
enum class PeftType : std::uint8_t { lora, adalora, prompt_tuning, prefix_tuning };

}}  // namespace pith::v0
