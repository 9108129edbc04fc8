#pragma once

#include <pith/decode/generate.hpp>
#include <pith/decode/sampling.hpp>
#include <pith/decode/token_model.hpp>
