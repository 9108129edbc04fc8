#pragma once

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/random.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
