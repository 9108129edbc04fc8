#pragma once

#include <pith/model/config.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/session.hpp>
#include <pith/model/splice.hpp>
#include <pith/model/weights.hpp>
