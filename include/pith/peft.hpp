#pragma once

// Adapters: LoRA and its relatives, in inference and training.
// combine.hpp (sums and concatenations of adapters) and decompose.hpp (the SVD of a weight) need more of Eigen: include them by name.
#include <pith/peft/adalora.hpp>                // AdaLoRA: triplets that can be pruned
#include <pith/peft/block_turn.hpp>             // block-diagonal changes of an input: OFT, BOFT, IA³
#include <pith/peft/dora.hpp>                   // DoRA: magnitude and direction
#include <pith/peft/dylora.hpp>                 // DyLoRA: one adapter for every rank
#include <pith/peft/embedding_change.hpp>       // low-rank changes and replaced rows of a table of embeddings
#include <pith/peft/fused_lora.hpp>             // LoRA on a fused query-key-value projection
#include <pith/peft/gradients.hpp>              // gradients of an adapter
#include <pith/peft/houlsby_adapter.hpp>        // bottleneck adapters: Houlsby, Pfeiffer, parallel
#include <pith/peft/increlora.hpp>              // IncreLoRA: ranks that grow
#include <pith/peft/incremental_allocator.hpp>  // IncreLoRA: which module grows
#include <pith/peft/kronecker_change.hpp>       // LoKr: a delta that is a Kronecker product
#include <pith/peft/linear_adapter.hpp>         // what an adapter changes in one projection of a model
#include <pith/peft/lora.hpp>                   // LoRA around a linear layer: h = W₀x + scale · B A x
#include <pith/peft/lora_embedding.hpp>         // LoRA on a table of embeddings
#include <pith/peft/lora_init.hpp>              // how A and B begin
#include <pith/peft/low_rank.hpp>               // y += ((x Aᵀ) ∘ gain) Bᵀ: what all of them compute
#include <pith/peft/model_adapter.hpp>          // what an adapter changes in a whole model
#include <pith/peft/multi_lora.hpp>             // many adapters in one batch
#include <pith/peft/prefix_tuning.hpp>          // prefix tuning: the network that is trained
#include <pith/peft/projection_change.hpp>      // a change of a projection beyond low-rank terms
#include <pith/peft/prompt_tuning.hpp>          // learned rows before the text
#include <pith/peft/rank_allocator.hpp>         // AdaLoRA: which triplets are pruned
#include <pith/peft/replaced_rows.hpp>          // rows of a head that are replaced
#include <pith/peft/train.hpp>                  // backward passes and AdamW
#include <pith/peft/vera_change.hpp>            // VeRA: low-rank deltas that share their matrices
