#pragma once

#include <cstddef>
#include <cstdint>

namespace pith { inline namespace v0 {

/// The kinds of adapter folder that pith reads. other: IA3, VERA, LOHA, LOKR, OFT, BOFT, HRA, MISS or RANDLORA, by PeftConfig::type_name.
enum class PeftType : std::uint8_t { lora, adalora, prompt_tuning, prefix_tuning, trainable_tokens, ln_tuning, other };

/// Bounds against corrupt files: real configs have a few KiB and name some hundred modules.
inline constexpr std::size_t max_peft_config_bytes = 1 << 20, max_peft_names = 8192, max_peft_modules = 65536;

}}  // namespace pith::v0
