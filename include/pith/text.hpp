#pragma once

// Text in, text out: target pith::text (nlohmann_json, utf8proc).
#include <pith/text/chat_format.hpp>     // conversations as the model families write them
#include <pith/text/chat_message.hpp>    // Message, RenderedChat
#include <pith/text/detokenizer.hpp>     // text from tokens as they come
#include <pith/text/load_tokenizer.hpp>  // load_tokenizer(folder)
#include <pith/text/text_range.hpp>
#include <pith/text/tokenizer.hpp>  // text ↔ ids
