#pragma once

// Text in, text out: tokenizers and chat formats. Target pith::text (nlohmann_json, utf8proc).
#include <pith/text/chat_format.hpp>     // conversations as the model families write them
#include <pith/text/chat_message.hpp>    // a message, and a conversation as text
#include <pith/text/detokenizer.hpp>     // text from ids as they come
#include <pith/text/load_tokenizer.hpp>  // load_tokenizer(folder)
#include <pith/text/text_range.hpp>      // bytes of a text
#include <pith/text/tokenizer.hpp>       // text to ids, ids to text
