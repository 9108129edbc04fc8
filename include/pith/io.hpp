#pragma once

// Files: safetensors, Hugging Face folders, PEFT adapters, sessions. Target pith::io (nlohmann_json).
#include <pith/io/checkpoint.hpp>          // load_decoder(folder), load_checkpoint(folder)
#include <pith/io/checkpoint_files.hpp>    // the tensors of a folder, mapped
#include <pith/io/config_json.hpp>         // reads config.json
#include <pith/io/dtype.hpp>               // element types
#include <pith/io/generation_config.hpp>   // reads the stop tokens of generation_config.json
#include <pith/io/image_recipe_json.hpp>   // reads preprocessor_config.json
#include <pith/io/limits.hpp>              // limits on file sizes
#include <pith/io/linear_file.hpp>         // loads one linear layer
#include <pith/io/load.hpp>                // options of loading, what it returns, and its functions declared
#include <pith/io/peft_adapter.hpp>        // load_adapter(folder, decoder), load_prefix(folder, decoder)
#include <pith/io/peft_config.hpp>         // reads adapter_config.json
#include <pith/io/peft_folder.hpp>         // reads an adapter folder
#include <pith/io/peft_type.hpp>           // the kinds of adapter folder, how factors are kept
#include <pith/io/peft_writer.hpp>         // writes LoRA folders for PEFT
#include <pith/io/safetensors.hpp>         // reads a safetensors file
#include <pith/io/safetensors_writer.hpp>  // writes a safetensors file
#include <pith/io/session_file.hpp>        // saves and loads sessions
#include <pith/io/stored_module.hpp>       // how a folder stores a projection: floats or codes
#include <pith/io/tensor_info.hpp>         // a tensor's name, type, shape and place in its file
#include <pith/io/vision.hpp>              // load_vision(folder): the tower and projector of a vision-language model
#include <pith/io/weights_layout.hpp>      // packed, int8 or mapped weights
