#pragma once
// How a vision-language model puts images into prompts.

#include <cstdint>
#include <string>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// Which image tokens see later ones in a prompt.
enum class ImageSight : std::uint8_t {
  causal,  ///< none
  runs,    ///< those of a run of image tokens see each other: Gemma 3
  prompt,  ///< all of a prompt, text as well: PaliGemma
};

/// What stands around the tokens of an image.
enum class ImageMarks : std::uint8_t {
  none,    ///< nothing: LLaVA, PaliGemma
  bounds,  ///< a token before and one behind each tile: Gemma 3
  tiles,   ///< a token for the row and column of each tile: SmolVLM, Idefics 3
};

/// How a vision-language model puts images into prompts, resolved once from its config.json.
struct VlmSpec {
  std::string model_type = "llava";    ///< a name for messages
  Token image_token = -1;              ///< stands for each row of an image; it may lie outside the vocabulary
  std::string image_word = "<image>";  ///< its spelling
  ImageMarks marks = ImageMarks::none;
  ImageSight sight = ImageSight::causal;
  bool drop_first = false;  ///< the first row of the tower is left out: CLIP's class token
  Index anyres_max = 9;     ///< LLaVA-OneVision: a grid of more than about this many tiles is scaled down
};

}}  // namespace pith::v0
