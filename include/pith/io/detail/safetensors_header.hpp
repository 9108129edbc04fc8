#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/header_limits.hpp>
#include <pith/io/detail/json_parser.hpp>
#include <pith/io/detail/json_text.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The header of a safetensors file; all rules of the format have been checked.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              ///< in the order of their data
  std::vector<std::uint32_t> by_name;           ///< indices into tensors, by name
  std::map<std::string, std::string> metadata;  ///< free text about the file
  std::size_t data_begin = 0;                   ///< offset of the data in the file
};

/// Builds a header from JSON events. It refuses anything unexpected at once, so nesting stays within the format's three levels, and only
/// tensors and metadata are stored.
class HeaderReader {
 public:
  HeaderReader(std::string_view file, std::size_t data_begin, SafetensorsHeader& header)
      : file_(file), data_begin_(data_begin), header_(header) {}

  bool null() { unexpected("null"); }
  bool boolean(bool) { unexpected("true or false"); }
  bool number_integer(std::int64_t) { unexpected("a negative number"); }
  bool number_float(double, const std::string& digits) { unexpected("the number " + digits.substr(0, 40)); }
  bool binary(nlohmann::json::binary_t&) { unexpected("binary data"); }

  bool number_unsigned(std::uint64_t value) {
    if (place_ != Place::shape && place_ != Place::offsets) unexpected("a number");
    if (value > static_cast<std::uint64_t>((std::numeric_limits<Index>::max)())) refuse(text("the number ", value, " is too large"));
    if (place_ == Place::shape) {
      if (tensor_.shape.size() == max_tensor_rank) refuse(text("more than ", max_tensor_rank, " dimensions"));
      tensor_.shape.push_back(static_cast<Index>(value));
    } else {
      if (offsets_ == 2) refuse("data_offsets has more than two numbers");
      (offsets_++ == 0 ? tensor_.begin : tensor_.end) = static_cast<std::size_t>(value);
    }
    return true;
  }

  bool string(std::string& value) {
    if (place_ == Place::metadata) {
      hold(HeaderMemory::of_metadata(key_, value));
      if (!header_.metadata.emplace(key_, value).second) refuse(text("__metadata__ has ", in_quotes(key_), " twice"));
    } else if (place_ == Place::tensor && key_ == "dtype") {
      const auto known = std::find_if(dtypes.begin(), dtypes.end(), [&](const DTypeInfo& d) { return d.name == value; });
      if (known == dtypes.end()) refuse(text("dtype ", in_quotes(value), " is not one of the format's"));
      tensor_.dtype = static_cast<DType>(known - dtypes.begin());
    } else {
      unexpected("text");
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (place_ == Place::before) {
      place_ = Place::root;
    } else if (place_ == Place::root && key_ == "__metadata__") {
      if (std::exchange(has_metadata_, true)) refuse("__metadata__ is given twice");
      place_ = Place::metadata;
    } else if (place_ == Place::root) {
      if (header_.tensors.size() == max_header_entries) refuse(text("more than ", max_header_entries, " tensors"));
      if (key_.size() > max_tensor_name_bytes)
        refuse(text("the tensor name ", in_quotes(key_), " has ", key_.size(), " bytes, expected at most ", max_tensor_name_bytes));
      place_ = Place::tensor;
      tensor_ = {};
      tensor_.name = key_;
      seen_ = offsets_ = 0;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& name) {
    key_ = std::move(name);
    if (place_ != Place::tensor) return true;
    const unsigned bit = key_ == "dtype" ? 1 : key_ == "shape" ? 2 : key_ == "data_offsets" ? 4 : 0;
    if (bit == 0) refuse(text("key ", in_quotes(key_), " is none of dtype, shape, data_offsets"));
    if ((seen_ & bit) != 0) refuse(text(key_, " is given twice"));
    seen_ |= bit;
    return true;
  }

  bool end_object() {
    if (place_ == Place::tensor) {
      if (seen_ != 7) refuse(text((seen_ & 1) == 0 ? "dtype" : (seen_ & 2) == 0 ? "shape" : "data_offsets", " is missing"));
      check_size();
      hold(HeaderMemory::of_tensor(tensor_.name, tensor_.shape.size()));
      header_.tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == Place::root ? Place::after : Place::root;
    return true;
  }

  bool start_array(std::size_t) {
    if (place_ != Place::tensor || key_ == "dtype") unexpected("a list");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() {
    if (place_ == Place::offsets && offsets_ != 2) refuse("data_offsets has fewer than two numbers");
    place_ = Place::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    raise<FormatError>("pith: ", in_quotes(file_), ": the header is not valid JSON at byte ", position + 8,
                       " of the file: ", json_reason(error.what()), remedy);
  }

  static constexpr std::string_view remedy = "; the file is damaged or no safetensors file: fetch or write it again";

 private:
  enum class Place { before, root, metadata, tensor, shape, offsets, after };

  void hold(std::size_t bytes) {
    if (!memory_.holds(bytes)) refuse(text("the header takes more than ", max_header_memory, " bytes of memory"));
    memory_.add(bytes);
  }

  /// Compares the size of dtype and shape with data_offsets.
  void check_size() const {
    const std::optional<std::size_t> bits = tensor_bits(tensor_.dtype, tensor_.shape);
    if (!bits) refuse(text("shape ", shape_list(tensor_.shape), " of ", dtype_name(tensor_.dtype), " is too large"));
    if (*bits % 8 != 0) refuse(text("shape ", shape_list(tensor_.shape), " of ", dtype_name(tensor_.dtype), " does not fill whole bytes"));
    if (tensor_.begin > tensor_.end) refuse(text("data_offsets ", tensor_.begin, " to ", tensor_.end, " run backwards"));
    if (tensor_.bytes() != *bits / 8)
      refuse(text("data_offsets ", tensor_.begin, " to ", tensor_.end, " hold ", tensor_.bytes(), " bytes, expected ", *bits / 8, " for ",
                  dtype_name(tensor_.dtype), " ", shape_list(tensor_.shape)));
  }

  [[noreturn]] void refuse(const std::string& what) const {
    const bool inside = place_ == Place::tensor || place_ == Place::shape || place_ == Place::offsets;
    raise<FormatError>("pith: ", in_quotes(file_), ": ", inside ? text("tensor ", in_quotes(tensor_.name), ": ") : std::string(), what,
                       inside ? text(" (data starts at byte ", data_begin_, ")") : std::string(), remedy);
  }

  [[noreturn]] void unexpected(std::string_view found) const {
    switch (place_) {
      case Place::before:
      case Place::after:
        refuse(text("the header is ", found, ", expected an object"));
      case Place::root:
        refuse(text("header entry ", in_quotes(key_), " is ", found, ", expected an object"));
      case Place::metadata:
        refuse(text("__metadata__ entry ", in_quotes(key_), " is ", found, ", expected text"));
      case Place::tensor:
        refuse(text(key_, " is ", found, ", expected ", key_ == "dtype" ? "text" : "a list of numbers"));
      case Place::shape:
        break;
      case Place::offsets:
        break;
    }
    refuse(text(key_, " holds ", found, ", expected whole numbers from 0"));
  }

  std::string_view file_;
  std::size_t data_begin_;
  SafetensorsHeader& header_;
  Place place_ = Place::before;
  std::string key_;
  TensorInfo tensor_;
  unsigned seen_ = 0, offsets_ = 0;
  HeaderMemory memory_;
  bool has_metadata_ = false;
};

/// Checks that names are unique and that data neither overlaps, has holes, nor ends before the end of the file.
inline void check_layout(std::string_view file, std::size_t data_bytes, SafetensorsHeader& header) {
  auto& tensors = header.tensors;
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end != b.end ? a.end < b.end : a.name < b.name;
  });
  header.by_name.resize(tensors.size());
  std::iota(header.by_name.begin(), header.by_name.end(), std::uint32_t{0});
  std::sort(header.by_name.begin(), header.by_name.end(),
            [&](std::uint32_t a, std::uint32_t b) { return tensors[a].name < tensors[b].name; });
  const auto refuse = [&](const TensorInfo& tensor, const std::string& what) {
    raise<FormatError>("pith: ", in_quotes(file), ": tensor ", in_quotes(tensor.name), what, HeaderReader::remedy);
  };
  for (std::size_t i = 1; i < tensors.size(); ++i)
    if (tensors[header.by_name[i - 1]].name == tensors[header.by_name[i]].name) refuse(tensors[header.by_name[i]], " is given twice");
  std::size_t filled = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.end > data_bytes)
      refuse(tensor, text(" ends at byte ", tensor.end, " of the data, expected at most ", data_bytes, ", where the file ends"));
    if (tensor.begin != filled)
      refuse(tensor, text(tensor.begin < filled ? " overlaps the one before it: it" : " leaves a hole: it", " begins at byte ",
                          tensor.begin, " of the data, expected ", filled));
    filled = tensor.end;
  }
  if (filled != data_bytes)
    raise<FormatError>("pith: ", in_quotes(file), ": tensors cover ", filled, " bytes of data, expected all ", data_bytes,
                       HeaderReader::remedy);
}

/// Reads the header of a file. Offsets are checked against its size, so every tensor can be read afterwards.
inline SafetensorsHeader read_header(std::span<const std::byte> bytes, std::string_view file) {
  const auto refuse = [&](const std::string& what) { raise<FormatError>("pith: ", in_quotes(file), ": ", what, HeaderReader::remedy); };
  std::uint64_t length = 0;
  refuse_lfs_pointer({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file);
  if (bytes.size() < sizeof length) refuse(text("the file has ", bytes.size(), " bytes, expected at least 8"));
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > max_header_bytes) refuse(text("the header is ", length, " bytes long, expected at most ", max_header_bytes));
  if (length > bytes.size() - sizeof length)
    refuse(text("the header is ", length, " bytes long, expected at most ", bytes.size() - sizeof length, ", where the file ends"));
  const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + sizeof length, static_cast<std::size_t>(length));
  if (json.empty() || json.front() != '{') refuse("the header does not start with '{' at byte 8");
  const JsonExtent extent = measure_json(
      json, file, {.bytes = max_header_bytes, .values = max_header_bytes, .longest = max_header_text_bytes, .words = false}, sizeof length);
  SafetensorsHeader header;
  header.tensors.reserve((std::min)(extent.objects, max_header_entries));
  header.data_begin = sizeof length + json.size();
  HeaderReader reader(file, header.data_begin, header);
  read_events(json.data(), json.data() + json.size(), reader);
  check_layout(file, bytes.size() - header.data_begin, header);
  return header;
}

}}}  // namespace pith::v0::detail
