#pragma once

#include <cstddef>
#include <cstdint>

namespace pith { inline namespace v0 {

/// The kinds of adapter folder that pith reads. other: IA3, VERA, LOHA, LOKR, OFT, BOFT, HRA, MISS or RANDLORA, by PeftConfig::type_name.
enum class PeftType : std::uint8_t { lora, adalora, prompt_tuning, prefix_tuning, trainable_tokens, ln_tuning, other };

/// Bounds against corrupt files: real configs have a few KiB and name some hundred modules.
inline constexpr std::size_t max_peft_config_bytes = 1 << 20, max_peft_names = 8192, max_peft_modules = 65536;

/// How A and B of LoRA and AdaLoRA are kept on projections and the head. Products are the same bits either way: bfloat16 is widened in
/// registers.
enum class FactorType : std::uint8_t {
  as_stored,  ///< in bfloat16 where the folder has both so, else in the decoder's scalar
  wide,       ///< in the decoder's scalar
  bf16,       ///< in bfloat16, rounded to nearest where the folder has them wider: half of what they cost to read, 8 bits of precision
};

}}  // namespace pith::v0
