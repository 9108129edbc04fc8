#pragma once

// From logits to text: sampling and speculative decoding.
#include <pith/decode/any_draft.hpp>            // a reference to any draft
#include <pith/decode/generate.hpp>             // generate(): choose a token, report it, feed it
#include <pith/decode/logit_rules.hpp>          // logit masks and repetition penalty
#include <pith/decode/prompt_lookup.hpp>        // a draft that copies from the text so far
#include <pith/decode/rejection_sampler.hpp>    // the acceptance rule of speculative decoding
#include <pith/decode/sampling.hpp>             // temperature, top-k, top-p, min-p
#include <pith/decode/speculative.hpp>          // speculative decoding: a draft guesses, the target verifies
#include <pith/decode/speculative_options.hpp>  // draft length, sampler, statistics
#include <pith/decode/token_model.hpp>          // TokenModel: the interface decoding needs of a model
