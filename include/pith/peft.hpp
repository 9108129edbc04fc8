#pragma once

// Not combine.hpp, nor decompose.hpp, which needs Eigen's decompositions: include them by name.
#include <pith/peft/low_rank.hpp>
#include <pith/peft/model_adapter.hpp>
#include <pith/peft/overlay.hpp>
