#pragma once

namespace pith { inline namespace v0 {

/// What layers of narrow weights do with activations.
enum class Compute {
  exact,  ///< multiply them as they are; weights of four bits always take int15
  bf16,   ///< bfloat16 weights round them to bfloat16 first (Bf16Linear): prompts are read faster where such dot products are fast
  int15,  ///< 8-bit weights round them to integers of 15 bits in blocks of 128 (Int8Linear): prompts are read faster
};

}}  // namespace pith::v0
