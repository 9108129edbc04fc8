#pragma once

#include <pith/merge/merge_rows.hpp>
#include <pith/merge/merge_schedule.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/strategies.hpp>
#include <pith/merge/token_map.hpp>
#include <pith/merge/token_merging.hpp>
