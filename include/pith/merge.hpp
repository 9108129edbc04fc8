#pragma once

#include <pith/merge/merge_rows.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/strategies.hpp>
