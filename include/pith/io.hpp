#pragma once

// Files: safetensors, Hugging Face folders, PEFT adapters, sessions. Target pith::io (nlohmann_json).
#include <pith/io/checkpoint.hpp>          // load_decoder(folder), inspect(folder)
#include <pith/io/checkpoint_files.hpp>    // the tensors of a folder, mapped
#include <pith/io/config_json.hpp>         // config.json
#include <pith/io/dtype.hpp>               // element types
#include <pith/io/generation_config.hpp>   // generation_config.json: the tokens that end a text
#include <pith/io/limits.hpp>              // what a file may ask for
#include <pith/io/linear_file.hpp>         // a linear layer out of a file
#include <pith/io/peft_adapter.hpp>        // load_adapter(folder, decoder), load_prompt(), load_prefix()
#include <pith/io/peft_config.hpp>         // adapter_config.json
#include <pith/io/peft_folder.hpp>         // the tensors of an adapter folder
#include <pith/io/peft_type.hpp>           // the kinds of adapter folder
#include <pith/io/peft_writer.hpp>         // LoRA folders, for PEFT to read
#include <pith/io/safetensors.hpp>         // reads a file of tensors
#include <pith/io/safetensors_writer.hpp>  // writes one
#include <pith/io/session_file.hpp>        // conversations kept in a file
#include <pith/io/tensor_info.hpp>         // what a header says of a tensor
#include <pith/io/weights_layout.hpp>      // packed, int8 or mapped
