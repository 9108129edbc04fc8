#pragma once

// Token merging: rows of a cache, and tokens of images.
#include <pith/merge/any_merge.hpp>       // a rule chosen at run time
#include <pith/merge/averaged.hpp>        // LOOK-M: the mean
#include <pith/merge/cam.hpp>             // CaM: values spread over the rows that stay
#include <pith/merge/catalogue.hpp>       // every rule by name
#include <pith/merge/clustering.hpp>      // density peaks: clusters of tokens
#include <pith/merge/divprune.hpp>        // DivPrune: the most diverse tokens
#include <pith/merge/gates.hpp>           // which merges are refused: by threshold, share or a moving threshold (D2O)
#include <pith/merge/image_tokens.hpp>    // the image among the tokens of a prompt
#include <pith/merge/mass_weighted.hpp>   // ToMe's mean: by how many tokens a row stands for
#include <pith/merge/merge_rows.hpp>      // evicted rows into the rows nearest to them
#include <pith/merge/merge_rule.hpp>      // what a cache does with the rows it evicts
#include <pith/merge/merge_schedule.hpp>  // ToMe: how many tokens each layer merges
#include <pith/merge/normalized.hpp>      // by similarity, as a mean
#include <pith/merge/pivotal.hpp>         // LOOK-M: half way to the mean
#include <pith/merge/prumerge.hpp>        // LLaVA-PruMerge: by the class token's attention
#include <pith/merge/similarity.hpp>      // the similarity matrix: normalised rows, the nearest of each
#include <pith/merge/token_map.hpp>       // which tokens became which, for merging and unmerging
#include <pith/merge/tome.hpp>            // ToMe: bipartite matching
#include <pith/merge/top_rows.hpp>        // the best rows by any score
#include <pith/merge/values_only.hpp>     // values, by similarity and norm
#include <pith/merge/visionzip.hpp>       // VisionZip: dominant and contextual tokens
#include <pith/merge/weighted.hpp>        // LOOK-M: by similarity
