#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <string>
#include <string_view>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

// What a rope is: its width, its pairing of features, and how its frequencies are scaled for long texts.
namespace pith { inline namespace v0 {

/// How a model scales its frequencies for texts beyond its trained length.
enum class RopeType {
  none,
  linear,    ///< all frequencies divided by the factor
  dynamic,   ///< NTK: a larger theta once the length exceeds max_position_embeddings
  llama3,    ///< frequencies of long wavelengths divided by the factor, short ones kept, a blend between
  yarn,      ///< as llama3, but the blend goes by the number of turns within the trained length; sines and cosines are scaled as well
  longrope,  ///< every frequency divided by a number of its own: short_factor up to the trained length, long_factor beyond
  identity,  ///< no rotation: a layer without rope
};

/// Members are named as in rope_scaling of config.json; each type reads its own.
struct RopeScaling {
  RopeType type = RopeType::none;
  double factor = 1;                           ///< linear, dynamic, llama3, yarn
  double low_freq_factor = 1;                  ///< llama3
  double high_freq_factor = 4;                 ///< llama3
  Index original_max_position_embeddings = 0;  ///< llama3, yarn, longrope: the length before scaling
  double beta_fast = 32;                       ///< yarn: frequencies that turn at least this often in the trained length are kept
  double beta_slow = 1;                        ///< yarn: those that turn at most this often are divided by the factor
  bool truncate = true;                        ///< yarn: the blend begins and ends at whole pairs
  double mscale = 0, mscale_all_dim = 0;       ///< yarn: give the attention factor together; 0: not given
  double attention_factor = 0;                 ///< yarn, longrope: multiplies sines and cosines; 0: what the type derives
  std::vector<double> short_factor = {};       ///< longrope: [rotary width/2] divisors up to the length before scaling
  std::vector<double> long_factor = {};        ///< longrope: [rotary width/2] divisors for longer texts

  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

/// A rope of a model. Members that config.json has are named as there.
struct RopeOptions {
  Index head_dim = 0;
  double theta = 10000;
  RopeScaling scaling = {};
  Index max_position_embeddings = 2048;  ///< dynamic: longest text without scaling; longrope: the length after scaling
  Index rotary_dim = 0;                  ///< features of a head that rotate, the first ones; even; 0: all of them
  bool interleaved = false;              ///< feature 2i turns with 2i + 1, not feature i with i + rotary width/2

  Index rotary_width() const { return scaling.type == RopeType::identity ? 0 : rotary_dim > 0 ? rotary_dim : head_dim; }
  /// A longrope with the table of texts of this length alone, for sessions that keep to it; any other rope as it is.
  RopeOptions at_length(Position length) const;
  /// Whether the angle of a position depends on the length of the text: a rotated key cannot be moved to another position.
  bool by_length() const {
    return scaling.type == RopeType::dynamic || (scaling.type == RopeType::longrope && scaling.short_factor != scaling.long_factor);
  }

  friend bool operator==(const RopeOptions&, const RopeOptions&) = default;
};

inline RopeOptions RopeOptions::at_length(Position length) const {
  RopeOptions fixed = *this;
  if (scaling.type != RopeType::longrope) return fixed;
  if (length > scaling.original_max_position_embeddings)
    fixed.scaling.short_factor = scaling.long_factor;
  else
    fixed.scaling.long_factor = scaling.short_factor;
  return fixed;
}

namespace detail {

inline constexpr Index max_rope_head_dim = 1024;

/// Refuses options that make no table; `where` names the caller, "Rope".
inline void check_rope(std::string_view where, const RopeOptions& options) {
  const auto refuse = [&](const std::string& what) { raise<ShapeError>("pith::", where, ": ", what); };
  const auto positive = [&](const char* name, double x) {
    if (!std::isfinite(x) || x <= 0) refuse(text(name, " is ", x, ", expected a finite number > 0"));
  };
  const auto amount = [&](const char* name, double x) {
    if (!std::isfinite(x) || x < 0) refuse(text(name, " is ", x, ", expected a finite number >= 0"));
  };
  const RopeScaling& s = options.scaling;
  const Index d = options.head_dim, width = options.rotary_width();
  if (d < 1 || d > max_rope_head_dim) refuse(text("head_dim is ", d, ", expected 1 to ", max_rope_head_dim));
  if (s.type == RopeType::identity) return;
  if (options.rotary_dim == 0 && d % 2 != 0) refuse(text("head_dim is ", d, ", expected an even number: features turn in pairs"));
  if (options.rotary_dim < 0 || width < 2 || width % 2 != 0 || width > d)
    refuse(text("rotary_dim is ", options.rotary_dim < 0 ? options.rotary_dim : width, ", expected an even number from 2 to head_dim, ", d,
                ": features turn in pairs"));
  positive("theta", options.theta);
  if (options.max_position_embeddings < 1)
    refuse(text("max_position_embeddings is ", options.max_position_embeddings, ", expected at least 1"));
  if (s.type == RopeType::none) return;
  if (s.type != RopeType::longrope) positive("the scaling factor", s.factor);
  if (s.type == RopeType::dynamic) {
    if (width == 2) refuse("dynamic scaling raises to width/(width - 2) and needs 4 or more rotating features");
    if (s.factor < 1) refuse(text("the factor of dynamic scaling is ", s.factor, ", expected at least 1"));
  }
  if (s.type == RopeType::linear || s.type == RopeType::dynamic) return;
  if (s.original_max_position_embeddings < 1)
    refuse(text("original_max_position_embeddings is ", s.original_max_position_embeddings, ", expected the length before scaling"));
  if (s.type == RopeType::llama3) {
    positive("low_freq_factor", s.low_freq_factor);
    positive("high_freq_factor", s.high_freq_factor);
    if (s.low_freq_factor >= s.high_freq_factor)
      refuse(text("low_freq_factor is ", s.low_freq_factor, ", expected less than high_freq_factor, which is ", s.high_freq_factor));
    return;
  }
  amount("attention_factor", s.attention_factor);
  if (s.type == RopeType::yarn) {
    positive("beta_fast", s.beta_fast);
    positive("beta_slow", s.beta_slow);
    if (s.beta_fast < s.beta_slow) refuse(text("beta_fast is ", s.beta_fast, ", expected at least beta_slow, which is ", s.beta_slow));
    if (options.theta == 1) refuse("theta is 1, under which yarn has no wavelengths to blend");
    amount("mscale", s.mscale);
    amount("mscale_all_dim", s.mscale_all_dim);
    return;
  }
  const auto divisors = [&](const char* name, const std::vector<double>& list) {
    if (static_cast<Index>(list.size()) != width / 2)
      refuse(text(name, " has ", list.size(), " numbers, expected one for each pair of rotating features, ", width / 2));
    for (const double x : list) positive(name, x);
  };
  divisors("short_factor", s.short_factor);
  divisors("long_factor", s.long_factor);
  if (s.attention_factor == 0 && s.original_max_position_embeddings == 1 && options.max_position_embeddings > 1)
    refuse("original_max_position_embeddings is 1, which gives no attention_factor: ln 1 is 0");
}

/// The number that multiplies a rope's sines and cosines.
inline double rope_attention_factor(const RopeOptions& options) {
  const RopeScaling& s = options.scaling;
  if (s.type != RopeType::yarn && s.type != RopeType::longrope) return 1;
  if (s.attention_factor > 0) return s.attention_factor;
  if (s.type == RopeType::longrope) {
    const double original = static_cast<double>(s.original_max_position_embeddings);
    const double stretch = static_cast<double>(options.max_position_embeddings) / original;
    return stretch <= 1 ? 1 : std::sqrt(1 + std::log(stretch) / std::log(original));
  }
  const auto growth = [&](double m) { return s.factor <= 1 ? 1 : 0.1 * m * std::log(s.factor) + 1; };
  return s.mscale > 0 && s.mscale_all_dim > 0 ? growth(s.mscale) / growth(s.mscale_all_dim) : growth(1);
}

/// inv[i] = radians per position of pair i, scaled; `theta`: the rope's, or dynamic scaling's; `beyond`: longrope's table of long texts.
template <class S> void rope_frequencies(const RopeOptions& options, double theta, bool beyond, S* inv) {
  const RopeScaling& s = options.scaling;
  const Index width = options.rotary_width();
  const S factor = static_cast<S>(s.factor);
  double low = 0, high = 0;  ///< yarn: the pairs between which frequencies are blended
  if (s.type == RopeType::yarn) {
    const auto pair_of = [&](double turns) {
      const double length = static_cast<double>(s.original_max_position_embeddings);
      return static_cast<double>(width) * std::log(length / (2 * std::numbers::pi * turns)) / (2 * std::log(theta));
    };
    low = pair_of(s.beta_fast), high = pair_of(s.beta_slow);
    if (s.truncate) low = std::floor(low), high = std::ceil(high);
    low = (std::max)(low, 0.);
    high = (std::min)(high, static_cast<double>(width - 1));
    if (low == high) high += 0.001;
  }
  for (Index i = 0; i < width / 2; ++i) {
    const S power = std::pow(static_cast<S>(theta), static_cast<S>(2 * i) / static_cast<S>(width));
    inv[i] = S(1) / power;
    if (s.type == RopeType::linear) inv[i] /= factor;
    if (s.type == RopeType::longrope) inv[i] = S(1) / (static_cast<S>((beyond ? s.long_factor : s.short_factor)[std::size_t(i)]) * power);
    if (s.type == RopeType::yarn) {
      const S ramp = static_cast<S>(std::clamp((static_cast<double>(i) - low) / (high - low), 0., 1.));
      inv[i] = inv[i] / factor * ramp + inv[i] * (S(1) - ramp);
    }
    if (s.type != RopeType::llama3) continue;
    const S wavelength = S(2 * std::numbers::pi) / inv[i], length = static_cast<S>(s.original_max_position_embeddings);
    const S slow = static_cast<S>(s.low_freq_factor), fast = static_cast<S>(s.high_freq_factor);
    if (wavelength < length / fast) continue;
    const S kept = wavelength > length / slow ? S(0) : (length / wavelength - slow) / (fast - slow);
    inv[i] = (S(1) - kept) * inv[i] / factor + kept * inv[i];
  }
}

}  // namespace detail

}}  // namespace pith::v0
