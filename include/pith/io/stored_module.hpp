#pragma once

#include <string>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// How a folder stores the weight of a projection or of the head.
struct StoredModule {
  std::string name = {};    ///< "model.layers.0.self_attn.q_proj"
  std::string format = {};  ///< "awq", "gptq", "gptq_v2", "pack-quantized", "int-quantized", "float-quantized", "fp8", "nf4", "fp4",
                            ///< "int8"; of a weight that is not quantised, its type: "BF16"
  Index out = 0, in = 0;
  Index bits = 0;          ///< of a code, or of a number
  Index group = 0;         ///< inputs that share a scale; of nf4 and fp4, neighbours in memory; 0: no scales
  Index group_rows = 1;    ///< outputs that share it
  bool zeros = false;      ///< each scale has a zero point of its own
  bool act_order = false;  ///< its inputs are in no order of groups (g_idx)

  bool quantised() const { return group != 0; }
};

}}  // namespace pith::v0
