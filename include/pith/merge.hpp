#pragma once

#include <pith/merge/any_merge.hpp>
#include <pith/merge/cam.hpp>
#include <pith/merge/catalogue.hpp>
#include <pith/merge/clustering.hpp>
#include <pith/merge/divprune.hpp>
#include <pith/merge/gates.hpp>
#include <pith/merge/image_tokens.hpp>
#include <pith/merge/merge_rows.hpp>
#include <pith/merge/merge_schedule.hpp>
#include <pith/merge/prumerge.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/strategies.hpp>
#include <pith/merge/token_map.hpp>
#include <pith/merge/token_merging.hpp>
#include <pith/merge/top_rows.hpp>
#include <pith/merge/visionzip.hpp>
