#pragma once

#include <pith/decode/generate.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/prompt_lookup.hpp>
#include <pith/decode/rejection_sampler.hpp>
#include <pith/decode/sampling.hpp>
#include <pith/decode/speculative.hpp>
#include <pith/decode/speculative_options.hpp>
#include <pith/decode/token_model.hpp>
