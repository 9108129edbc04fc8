#pragma once

// Not combine.hpp, nor decompose.hpp, which needs Eigen's decompositions: include them by name.
#include <pith/peft/adalora.hpp>
#include <pith/peft/bottleneck.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/dylora.hpp>
#include <pith/peft/fused_lora.hpp>
#include <pith/peft/gradients.hpp>
#include <pith/peft/increlora.hpp>
#include <pith/peft/incremental_allocator.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/lora_embedding.hpp>
#include <pith/peft/lora_init.hpp>
#include <pith/peft/low_rank.hpp>
#include <pith/peft/model_adapter.hpp>
#include <pith/peft/multi_lora.hpp>
#include <pith/peft/overlay.hpp>
#include <pith/peft/prompt.hpp>
#include <pith/peft/rank_allocator.hpp>
#include <pith/peft/train.hpp>
