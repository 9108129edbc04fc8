#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>

// The tensors that make up one quantised module.
namespace pith { inline namespace v0 { namespace detail {

/// ceil(a / b)
constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

/// The tensors of a module by the ends of their names; each has the type and shape that its format gives it.
class ModuleTensors {
 public:
  using Place = CheckpointFiles::Place;

  ModuleTensors(const CheckpointFiles& files, std::string module, Index out, Index in)
      : files_(files), module_(std::move(module)), out_(out), in_(in) {}

  const std::string& module() const { return module_; }
  Index out() const { return out_; }
  Index in() const { return in_; }
  Place find(std::string_view end) const { return files_.find(module_ + std::string(end)); }
  bool has(std::string_view end) const { return bool(find(end)); }
  const std::vector<Place>& taken() const { return taken_; }

  /// Takes a tensor that has to be there.
  ///
  /// Throws   FormatError if it is missing or of another shape, UnsupportedError if it is of another type
  Place take(std::string_view end, std::initializer_list<DType> types, const std::vector<Index>& shape) {
    return take(end, types, std::initializer_list<std::vector<Index>>{shape});
  }
  /// A tensor of one of several shapes.
  Place take(std::string_view end, std::initializer_list<DType> types, std::initializer_list<std::vector<Index>> shapes) {
    const Place place = any_shape(end, types);
    if (std::find(shapes.begin(), shapes.end(), place.tensor->shape) == shapes.end()) refuse_shape(place, *shapes.begin());
    return place;
  }
  /// A tensor whose shape the caller checks.
  Place any_shape(std::string_view end, std::initializer_list<DType> types) {
    const Place place = find(end);
    if (!place)
      raise<FormatError>("pith: ", in_quotes(files_.folder().string()), ": tensor ", in_quotes(module_ + std::string(end)),
                         " is missing, which belongs to the codes of the same module");
    if (std::find(types.begin(), types.end(), place.tensor->dtype) == types.end()) {
      std::string expected;
      for (const DType type : types) expected += text(expected.empty() ? "" : " or ", dtype_name(type));
      raise<UnsupportedError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(place.tensor->name), " is ",
                              dtype_name(place.tensor->dtype), ", expected ", expected);
    }
    taken_.push_back(place);
    return place;
  }

  [[noreturn]] static void refuse_shape(const Place& place, const std::vector<Index>& expected) {
    raise<FormatError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(place.tensor->name), " is ",
                       shape_list(place.tensor->shape), ", expected ", shape_list(expected), " by the config");
  }
  [[noreturn]] static void refuse(const Place& place, std::string_view what) {
    raise<FormatError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(place.tensor->name), " ", what);
  }

 private:
  const CheckpointFiles& files_;
  std::string module_;
  Index out_, in_;
  std::vector<Place> taken_;
};

/// A 32-bit word of a tensor, whose bits are codes.
inline std::uint32_t word_at(const std::byte* words, Index i) {
  return load_unaligned<std::uint32_t>(words + static_cast<std::size_t>(i) * sizeof(std::uint32_t));
}

/// Values [first, first + n) of a tensor of scales.
inline void copy_scales(const CheckpointFiles::Place& place, Index first, Index n, float* to) {
  const DType type = place.tensor->dtype;
  const std::byte* from = place.bytes().data() + static_cast<std::size_t>(first) * (dtype_bits(type) / 8);
  if (type == DType::f8_e8m0) {  // a power of two; 0xff is NaN
    for (Index i = 0; i < n; ++i) {
      const auto code = std::to_integer<std::uint32_t>(from[i]);
      to[i] = bits_as<float>(code == 0 ? std::uint32_t{0x400000} : code == 0xff ? std::uint32_t{0x7fc00000} : code << 23);
    }
  } else {
    convert_values(type, from, n, to);
  }
}

}}}  // namespace pith::v0::detail
