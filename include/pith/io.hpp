#pragma once

#include <pith/io/checkpoint.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/file_bytes.hpp>
#include <pith/io/generation_config.hpp>
#include <pith/io/linear_file.hpp>
#include <pith/io/peft_adapter.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/io/peft_writer.hpp>
#include <pith/io/safetensors.hpp>
#include <pith/io/safetensors_writer.hpp>
#include <pith/io/session_file.hpp>
