#pragma once

// Text in, text out: tokenizers and chat formats. Target pith::text (nlohmann_json, utf8proc).
#include <pith/text/chat_format.hpp>     // ChatFormat: conversations in the format of a model family
#include <pith/text/chat_message.hpp>    // Message, and a conversation as text
#include <pith/text/detokenizer.hpp>     // turns tokens into text as they are generated
#include <pith/text/load.hpp>            // load_tokenizer(folder), declared
#include <pith/text/load_tokenizer.hpp>  // load_tokenizer(folder)
#include <pith/text/text_range.hpp>      // a range of bytes of a text
#include <pith/text/tokenizer.hpp>       // Tokenizer: text to ids, ids to text
