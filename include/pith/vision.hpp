#pragma once

// Vision: an image is cut into tiles, and a tower and a projector turn the tiles into rows of a decoder's prompt.
#include <pith/vision/image.hpp>            // images as bytes
#include <pith/vision/image_recipe.hpp>     // preprocessing: resize, tile, normalise
#include <pith/vision/image_reduction.hpp>  // ToMe, PruMerge, VisionZip and DivPrune on images
#include <pith/vision/image_rows.hpp>       // the rows of an image in a prompt
#include <pith/vision/projector.hpp>        // features of a tower to rows of a decoder
#include <pith/vision/resize.hpp>           // scales images as Pillow does
#include <pith/vision/tower.hpp>            // tiles to features
#include <pith/vision/tower_config.hpp>     // the sizes and weights of a tower
#include <pith/vision/tower_merge.hpp>      // ToMe inside a tower
#include <pith/vision/tower_taps.hpp>       // a tower's attention and keys, for reductions
#include <pith/vision/vision_model.hpp>     // recipe, tower and projector of a model
#include <pith/vision/vision_prompt.hpp>    // prompts of text and images
#include <pith/vision/vlm_spec.hpp>         // how a model puts images into prompts
