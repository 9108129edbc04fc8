#pragma once

// Image towers: pictures to tiles, tiles to rows of a decoder's prompt.
#include <pith/vision/image.hpp>            // pictures as bytes
#include <pith/vision/image_recipe.hpp>     // how a model wants its pictures
#include <pith/vision/image_reduction.hpp>  // ToMe, PruMerge, VisionZip and DivPrune on pictures
#include <pith/vision/image_rows.hpp>       // the rows of a picture in a prompt
#include <pith/vision/projector.hpp>        // features of a tower to rows of a decoder
#include <pith/vision/resize.hpp>           // scales pictures as Pillow does
#include <pith/vision/tower.hpp>            // tiles to features
#include <pith/vision/tower_config.hpp>     // the sizes and weights of a tower
#include <pith/vision/tower_merge.hpp>      // ToMe inside a tower
#include <pith/vision/tower_taps.hpp>       // what a tower gives besides
#include <pith/vision/vision_model.hpp>     // recipe, tower and projector of a model
#include <pith/vision/vision_prompt.hpp>    // prompts of text and pictures
#include <pith/vision/vlm_spec.hpp>         // how a model puts pictures into prompts
