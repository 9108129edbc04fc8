#pragma once

// A Llama-like decoder and its conversations.
#include <pith/model/config.hpp>           // the numbers of a decoder
#include <pith/model/decoder.hpp>          // weights and what follows from them, shared by sessions
#include <pith/model/session.hpp>          // one conversation: a cache for each layer, under any policy
#include <pith/model/session_options.hpp>  // what a session and a prompt are told
#include <pith/model/splice.hpp>           // text with images as one prompt
#include <pith/model/weights.hpp>          // its weights
