#pragma once

#include <pith/merge/any_merge.hpp>
#include <pith/merge/catalogue.hpp>
#include <pith/merge/gates.hpp>
#include <pith/merge/merge_rows.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/strategies.hpp>
