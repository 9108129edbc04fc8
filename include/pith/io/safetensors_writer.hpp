#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/atomic_file.hpp>
#include <pith/io/detail/header_limits.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/tensor_info.hpp>

namespace pith { inline namespace v0 {

/// Collects tensors and writes them as one safetensors file, completely or not at all.
///
/// The header is padded to 8 bytes, and tensors are ordered by element size (largest first), then by name: every tensor is aligned, and
/// equal tensors give equal bytes.
///
/// Throws   FormatError for a name given twice, text that is not UTF-8, data whose size does not match its shape, more than Safetensors
///          reads (tensor_info.hpp), and errors of the system; the writer and an old file are then unchanged
/// Law      Safetensors reads every file that it writes
class SafetensorsWriter {
 public:
  /// Adds metadata text; a repeated key replaces the earlier text.
  void metadata(const std::string& key, std::string value) {
    detail::check_utf8("metadata key", key);
    detail::check_utf8("metadata", value);
    for (const std::string* one : {&key, static_cast<const std::string*>(&value)}) {
      std::string written;
      detail::append_json_text(written, *one);
      if (written.size() > max_header_text_bytes)
        raise<FormatError>("pith::SafetensorsWriter: metadata ", detail::in_quotes(key), " has a text of ", written.size(),
                           " bytes, expected at most ", max_header_text_bytes);
    }
    const auto old = metadata_.find(key);
    const std::size_t coming = detail::HeaderMemory::of_metadata(key, value),
                      leaving = old == metadata_.end() ? 0 : detail::HeaderMemory::of_metadata(key, old->second);
    if (coming > leaving) hold(coming - leaving, detail::text("metadata ", detail::in_quotes(key)));
    metadata_[key] = std::move(value);
    memory_.remove(leaving);
    memory_.add(coming);
  }

  /// Copies a matrix, vector or raw data.
  template <detail::EigenDense M> void add(std::string name, const M& values) {
    using T = typename detail::expression_t<M>::Scalar;
    const ConstMatrixRef<T> rows = values;
    std::vector<std::byte> data(static_cast<std::size_t>(rows.size()) * sizeof(T));
    const std::size_t row_bytes = static_cast<std::size_t>(rows.cols()) * sizeof(T);
    for (Index i = 0; i < rows.rows() && row_bytes > 0; ++i)
      std::memcpy(data.data() + static_cast<std::size_t>(i) * row_bytes, &rows.coeffRef(i, 0), row_bytes);
    constexpr bool is_vector = bool(detail::expression_t<M>::IsVectorAtCompileTime);
    insert({std::move(name),
            detail::dtype_of<T>(),
            is_vector ? std::vector<Index>{rows.size()} : std::vector<Index>{rows.rows(), rows.cols()},
            std::move(data),
            {}});
  }
  void add(std::string name, DType dtype, std::vector<Index> shape, std::span<const std::byte> data) {
    insert({std::move(name), dtype, std::move(shape), std::vector<std::byte>(data.begin(), data.end()), {}});
  }

  /// Adds a tensor without a copy: the data must stay in place until the file is written. For tensors too large to hold twice.
  void add_view(std::string name, DType dtype, std::vector<Index> shape, std::span<const std::byte> data) {
    insert({std::move(name), dtype, std::move(shape), {}, data});
  }

  /// Writes a temporary file and renames it over `path`.
  void write(const std::filesystem::path& path) const {
    const std::vector<const Entry*> order = ordered();
    const std::vector<std::byte> head = header(order);
    detail::AtomicFile file(path);
    file.write(head);
    for (const Entry* entry : order) file.write(entry->bytes());
    file.commit();
  }

  /// The file as bytes in memory.
  std::vector<std::byte> bytes() const {
    const std::vector<const Entry*> order = ordered();
    std::vector<std::byte> out = header(order);
    for (const Entry* entry : order) out.insert(out.end(), entry->bytes().begin(), entry->bytes().end());
    return out;
  }

 private:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<Index> shape;
    std::vector<std::byte> owned;
    std::span<const std::byte> view;
    std::span<const std::byte> bytes() const { return view.data() == nullptr ? std::span<const std::byte>(owned) : view; }
  };

  void insert(Entry entry) {
    detail::check_utf8("tensor name", entry.name);
    const auto refuse = [&](const std::string& what) {
      raise<FormatError>("pith::SafetensorsWriter: tensor ", detail::in_quotes(entry.name), what);
    };
    if (entry.name == "__metadata__") refuse(" has the name the format keeps for metadata()");
    if (entry.name.size() > max_tensor_name_bytes)
      refuse(detail::text(" has a name of ", entry.name.size(), " bytes, expected at most ", max_tensor_name_bytes));
    if (entry.shape.size() > max_tensor_rank)
      refuse(detail::text(" has ", entry.shape.size(), " dimensions, expected at most ", max_tensor_rank));
    if (entries_.contains(entry.name)) refuse(" is given twice");
    if (entries_.size() == max_header_entries) refuse(detail::text(" is one more than the ", max_header_entries, " that a file may hold"));
    const std::optional<std::size_t> bits = detail::tensor_bits(entry.dtype, entry.shape);
    if (!bits) refuse(detail::text(": shape ", detail::shape_list(entry.shape), " is impossible"));
    if (*bits % 8 != 0 || *bits / 8 != entry.bytes().size())
      refuse(detail::text(": ", entry.bytes().size(), " bytes of data, expected ", *bits / 8, " for ", dtype_name(entry.dtype), " ",
                          detail::shape_list(entry.shape)));
    const std::size_t coming = detail::HeaderMemory::of_tensor(entry.name, entry.shape.size());
    hold(coming, detail::text("tensor ", detail::in_quotes(entry.name)));
    std::string name = entry.name;
    entries_.emplace(std::move(name), std::move(entry));
    memory_.add(coming);
  }

  void hold(std::size_t more, const std::string& what) const {
    if (!memory_.holds(more))
      raise<FormatError>("pith::SafetensorsWriter: ", what, " makes the header take more than ", max_header_memory,
                         " bytes of memory, the most that a reader takes: write shorter names or several files");
  }

  std::vector<const Entry*> ordered() const {
    std::vector<const Entry*> order;
    order.reserve(entries_.size());
    for (const auto& [name, entry] : entries_) order.push_back(&entry);
    std::stable_sort(order.begin(), order.end(),
                     [](const Entry* a, const Entry* b) { return dtype_bits(a->dtype) > dtype_bits(b->dtype); });
    return order;
  }

  std::vector<std::byte> header(const std::vector<const Entry*>& order) const {
    std::string text = "{";
    const auto key = [&](const std::string& name) {
      if (text.back() != '{') text += ',';
      detail::append_json_text(text, name);
      text += ':';
    };
    if (!metadata_.empty()) {
      key("__metadata__");
      text += '{';
      for (const auto& [name, value] : metadata_) {
        key(name);
        detail::append_json_text(text, value);
      }
      text += '}';
    }
    std::size_t begin = 0;
    for (const Entry* entry : order) {
      const std::size_t end = begin + entry->bytes().size();
      key(entry->name);
      text += detail::text("{\"dtype\":\"", dtype_name(entry->dtype), "\",\"shape\":", detail::shape_list(entry->shape),
                           ",\"data_offsets\":[", begin, ",", end, "]}");
      begin = end;
    }
    text += '}';
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > max_header_bytes)
      raise<FormatError>("pith::SafetensorsWriter: the header is ", text.size(), " bytes long, the format allows ", max_header_bytes);
    const std::uint64_t length = text.size();
    std::vector<std::byte> out(sizeof length + text.size());
    std::memcpy(out.data(), &length, sizeof length);
    std::memcpy(out.data() + sizeof length, text.data(), text.size());
    return out;
  }

  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
  detail::HeaderMemory memory_;  ///< of all entries and metadata, as a reader counts it
};

}}  // namespace pith::v0
