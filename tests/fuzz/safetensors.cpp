// A safetensors file: it is refused, or every tensor can be read as every type and written again as it was.
#include <algorithm>
#include <cstring>
#include <vector>

#include <pith/io/safetensors.hpp>
#include <pith/io/safetensors_writer.hpp>

#include "fuzz/fuzz.hpp"

namespace pith_fuzz {
namespace {

template <class S> void read_as(const pith::Safetensors& file, const pith::TensorInfo& tensor) {
  attempt([&] { demand(file.load_values<S>(tensor.name).size() == tensor.elements(), "load_values() gives every element"); });
  attempt([&] { demand(file.load_matrix<S>(tensor.name).size() == tensor.elements(), "load_matrix() gives every element"); });
  attempt([&] { demand(file.load_vector<S>(tensor.name).size() == tensor.elements(), "load_vector() gives every element"); });
}
template <class T> void read_in_place(const pith::Safetensors& file, const pith::TensorInfo& tensor) {
  volatile T sink{};
  attempt([&] {
    const auto m = file.matrix<T>(tensor.name);
    if (m.size() > 0) sink = m(m.rows() - 1, m.cols() - 1);
  });
  attempt([&] {
    const auto v = file.vector<T>(tensor.name);
    if (v.size() > 0) sink = v[v.size() - 1];
  });
}

bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

}  // namespace

void run_safetensors(Bytes bytes) {
  attempt([&] {
    const auto file = pith::Safetensors::parse(std::as_bytes(bytes), "input");
    std::size_t covered = 0;
    pith::SafetensorsWriter writer;
    for (const auto& [key, value] : file.metadata()) writer.metadata(key, value);
    for (const pith::TensorInfo& tensor : file.tensors()) {
      covered += tensor.bytes();
      demand(file.find(tensor.name) == &tensor, "every tensor is found by its name");
      read_as<float>(file, tensor);
      read_as<double>(file, tensor);
      read_as<std::int8_t>(file, tensor);
      read_as<std::int64_t>(file, tensor);
      read_in_place<float>(file, tensor);
      read_in_place<double>(file, tensor);
      read_in_place<std::int32_t>(file, tensor);
      writer.add(tensor.name, tensor.dtype, tensor.shape, file.bytes(tensor));
    }
    demand(covered <= bytes.size(), "tensors lie in the file");
    attempt([&] { file.at("no such tensor"); });

    // Written, the file reads as it did.
    writer.write(scratch() / "again.safetensors");
    const auto again = pith::Safetensors::read(scratch() / "again.safetensors");
    demand(again.metadata() == file.metadata(), "metadata survives writing");
    demand(again.tensors().size() == file.tensors().size(), "tensors survive writing");
    for (const pith::TensorInfo& tensor : file.tensors()) {
      const pith::TensorInfo& other = again.at(tensor.name);
      demand(other.dtype == tensor.dtype && other.shape == tensor.shape, "types and shapes survive writing");
      demand(same_bytes(again.bytes(other), file.bytes(tensor)), "numbers survive writing");
    }
  });
}

}  // namespace pith_fuzz
