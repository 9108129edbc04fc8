#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/file_bytes.hpp>
#include <pith/io/detail/safetensors_header.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>

namespace pith { inline namespace v0 {

/// A safetensors file: named tensors over bytes that are mapped or in memory. Copies share the bytes.
///
/// Opening checks every rule of the format and reads the header only. An open Safetensors is therefore sound: no offset leads outside the
/// file, no size overflows, no two tensors overlap.
class Safetensors {
 public:
  /// Throws   FormatError naming file, tensor, found and expected
  static Safetensors map(const std::filesystem::path& path) { return Safetensors(detail::FileBytes::map(path)); }
  static Safetensors read(const std::filesystem::path& path) { return Safetensors(detail::FileBytes::read(path)); }
  static Safetensors parse(std::vector<std::byte> bytes, std::string name = "memory") {
    return Safetensors(detail::FileBytes::own(std::move(bytes), std::move(name)));
  }
  static Safetensors parse(std::span<const std::byte> bytes, std::string name = "memory") {
    return parse(std::vector<std::byte>(bytes.begin(), bytes.end()), std::move(name));
  }

  explicit Safetensors(detail::FileBytes file)
      : file_(std::move(file)),
        header_(std::make_shared<const detail::SafetensorsHeader>(detail::read_header(file_.bytes(), file_.name()))) {}

  const std::string& name() const { return file_.name(); }  ///< the file's name, for messages
  std::size_t size() const { return file_.size(); }         ///< bytes of the whole file
  bool mapped() const { return file_.mapped(); }
  std::span<const TensorInfo> tensors() const { return header_->tensors; }  ///< in the order of their data
  const std::map<std::string, std::string>& metadata() const { return header_->metadata; }
  /// Keeps all tensor views of this file valid while it is held.
  const std::shared_ptr<const void>& keep_alive() const { return file_.keep_alive(); }

  /// Returns the tensor with this name, or nullptr. O(log tensors).
  const TensorInfo* find(std::string_view tensor) const {
    const auto& tensors = header_->tensors;
    const auto at = std::lower_bound(header_->by_name.begin(), header_->by_name.end(), tensor,
                                     [&](std::uint32_t i, std::string_view name) { return tensors[i].name < name; });
    return at != header_->by_name.end() && tensors[*at].name == tensor ? &tensors[*at] : nullptr;
  }

  /// Returns the tensor with this name.
  ///
  /// Throws   FormatError naming the most similar name
  const TensorInfo& at(std::string_view tensor) const {
    const TensorInfo* info = find(tensor);
    if (info == nullptr) raise_missing(tensor);
    return *info;
  }

  /// The tensor's memory; `tensor` must be one of this file's.
  std::span<const std::byte> bytes(const TensorInfo& tensor) const {
    if (tensor.begin > tensor.end || tensor.end > file_.size() - header_->data_begin) [[unlikely]]
      raise<FormatError>("pith: ", detail::in_quotes(name()), ": tensor ", detail::in_quotes(tensor.name), " belongs to another file");
    return file_.bytes().subspan(header_->data_begin + tensor.begin, tensor.bytes());
  }
  std::span<const std::byte> bytes(std::string_view tensor) const { return bytes(at(tensor)); }
  /// Call after reading a tensor: frees its pages (FileBytes::release()).
  void release(const TensorInfo& tensor) const { file_.release(bytes(tensor)); }

  /// Whether the tensor's data is aligned to its element size; most writers align, the format does not require it.
  template <class T> bool aligned(const TensorInfo& tensor) const {
    return reinterpret_cast<std::uintptr_t>(bytes(tensor).data()) % alignof(T) == 0;
  }

  /// A view of the tensor, without a copy. Valid while this, a copy, or keep_alive() exists.
  ///
  /// Throws   FormatError if the tensor is missing, misaligned (load_matrix() copies), or of another rank or type
  template <class T> ConstMatrixRef<T> matrix(std::string_view tensor) const {
    const TensorInfo& info = ranked(tensor, 2);
    return {in_place<T>(info), info.shape[0], info.shape[1]};
  }
  template <class T> ConstVectorRef<T> vector(std::string_view tensor) const {
    const TensorInfo& info = ranked(tensor, 1);
    return {in_place<T>(info), info.shape[0]};
  }

  /// A copy as S. Floating S takes F64, F32, F16 and BF16 (F64 is rounded to float); integral S takes any integer type whose values fit.
  ///
  /// Throws   FormatError if the tensor is missing, has another rank, or a value does not fit; UnsupportedError for another type
  template <class S> Matrix<S> load_matrix(std::string_view tensor) const {
    const TensorInfo& info = ranked(tensor, 2);
    Matrix<S> out(info.shape[0], info.shape[1]);
    copy_values(info, out.data());
    return out;
  }
  template <class S> Vector<S> load_vector(std::string_view tensor) const {
    ranked(tensor, 1);
    return load_values<S>(tensor);
  }
  /// Like load_vector(), for a tensor of any rank: its values in row-major order.
  template <class S> Vector<S> load_values(std::string_view tensor) const {
    const TensorInfo& info = at(tensor);
    Vector<S> out(info.elements());
    copy_values(info, out.data());
    return out;
  }

  /// Like load_values(), into memory for tensor.elements() values.
  template <class S> void copy_values(const TensorInfo& tensor, S* out) const {
    detail::check_conversion<S>(name(), tensor);
    const Index bad = detail::convert_values(tensor.dtype, bytes(tensor).data(), tensor.elements(), out);
    if (bad >= 0) [[unlikely]]
      raise<FormatError>("pith: ", detail::in_quotes(name()), ": tensor ", detail::in_quotes(tensor.name), ": value ", bad,
                         " does not fit the integer type it was asked for as");
  }

 private:
  const TensorInfo& ranked(std::string_view tensor, std::size_t rank) const {
    const TensorInfo& info = at(tensor);
    if (info.shape.size() != rank) [[unlikely]]
      raise<FormatError>("pith: ", detail::in_quotes(name()), ": tensor ", detail::in_quotes(tensor), " is ",
                         detail::shape_list(info.shape), ", expected ", rank == 1 ? "a vector" : "a matrix",
                         "; load_values() reads any rank");
    return info;
  }

  template <class T> const T* in_place(const TensorInfo& tensor) const {
    if (tensor.dtype != detail::dtype_of<T>()) [[unlikely]]
      raise<FormatError>("pith: ", detail::in_quotes(name()), ": tensor ", detail::in_quotes(tensor.name), " is ", dtype_name(tensor.dtype),
                         ", asked for as ", dtype_name(detail::dtype_of<T>()), "; load_matrix() and load_vector() convert");
    if (!aligned<T>(tensor)) [[unlikely]]
      raise<FormatError>("pith: ", detail::in_quotes(name()), ": tensor ", detail::in_quotes(tensor.name), " lies at byte ",
                         header_->data_begin + tensor.begin, " of the file, expected a multiple of ", alignof(T),
                         "; load_matrix() and load_vector() copy it");
    return reinterpret_cast<const T*>(bytes(tensor).data());
  }

  [[noreturn]] void raise_missing(std::string_view tensor) const {
    const TensorInfo* nearest = nullptr;
    std::size_t best = 0;
    for (const TensorInfo& other : header_->tensors) {  // similarity: length of common start and end, enough to catch a wrong layer, prefix
                                                        // or suffix
      const std::size_t shorter = (std::min)(tensor.size(), other.name.size());
      std::size_t front = 0, back = 0;
      while (front < shorter && tensor[front] == other.name[front]) ++front;
      while (back < shorter - front && tensor[tensor.size() - 1 - back] == other.name[other.name.size() - 1 - back]) ++back;
      if (nearest == nullptr || front + back > best) nearest = &other, best = front + back;
    }
    raise<FormatError>("pith: ", detail::in_quotes(name()), ": no tensor ", detail::in_quotes(tensor), " among its ",
                       header_->tensors.size(),
                       nearest == nullptr ? std::string() : detail::text("; the nearest is ", detail::in_quotes(nearest->name)));
  }

  detail::FileBytes file_;
  std::shared_ptr<const detail::SafetensorsHeader> header_;
};

}}  // namespace pith::v0
