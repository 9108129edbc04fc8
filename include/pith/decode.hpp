#pragma once

// From logits to text: sampling and speculative decoding.
#include <pith/decode/generate.hpp>             // lets a model go on with a text
#include <pith/decode/logit_rules.hpp>          // masks and repetition penalties
#include <pith/decode/prompt_lookup.hpp>        // drafts taken from the text itself
#include <pith/decode/rejection_sampler.hpp>    // which guesses are kept, without changing the distribution
#include <pith/decode/sampling.hpp>             // temperature, top-k, top-p, min-p
#include <pith/decode/speculative.hpp>          // speculative decoding: a draft guesses, the target verifies
#include <pith/decode/speculative_options.hpp>  // how long drafts are
#include <pith/decode/token_model.hpp>          // what a model is here: logits for tokens
