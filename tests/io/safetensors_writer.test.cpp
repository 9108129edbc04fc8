#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <pith/io/safetensors.hpp>
#include <pith/io/safetensors_writer.hpp>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith::detail::AtomicFile;
using pith_test::contains;
using pith_test::TempFolder;

template <class T> void round_trip(SafetensorsWriter& writer, const std::string& name) {
  Matrix<T> values(3, 5);
  for (Index i = 0; i < values.size(); ++i) values.data()[i] = static_cast<T>(static_cast<float>(i + 1));
  writer.add(name, values);
  const Safetensors file = Safetensors::parse(writer.bytes());
  const TensorInfo& tensor = file.at(name);
  CHECK((tensor.shape == std::vector<Index>{3, 5}));
  CHECK(dtype_name(tensor.dtype) == dtype_name(detail::dtype_of<T>()));
  CHECK(std::memcmp(file.bytes(tensor).data(), values.data(), 15 * sizeof(T)) == 0);
}

TEST_CASE("writer: what goes in comes out, in every type", "[io]") {
  SafetensorsWriter writer;
  writer.metadata("format", "pt");
  writer.metadata("täg", "“quoted”\n\"text\"\\");
  round_trip<float>(writer, "float");
  round_trip<double>(writer, "double");
  round_trip<half>(writer, "half");
  round_trip<bfloat16>(writer, "bfloat16");
  round_trip<std::int8_t>(writer, "i8");
  round_trip<std::uint8_t>(writer, "u8");
  round_trip<std::int16_t>(writer, "i16");
  round_trip<std::uint16_t>(writer, "u16");
  round_trip<std::int32_t>(writer, "i32");
  round_trip<std::uint32_t>(writer, "u32");
  round_trip<std::int64_t>(writer, "i64");
  round_trip<std::uint64_t>(writer, "u64");
  const std::vector<std::byte> data(24, std::byte{7});
  for (int type = 0; type <= static_cast<int>(DType::u64); ++type) {
    const DType dtype = static_cast<DType>(type);
    writer.add("raw." + std::string(dtype_name(dtype)), dtype, {1, Index(24 * 8 / dtype_bits(dtype)), 1}, data);
  }
  writer.add("empty", DType::f32, {0, 7}, {});
  writer.add("scalar", DType::u8, {}, std::span(data).first(1));
  writer.add("vector", Vector<float>::Ones(4).eval());
  const Matrix<float> wide = Matrix<float>::Random(4, 9);
  writer.add("block", wide.middleCols(2, 3));

  const Safetensors file = Safetensors::parse(writer.bytes());
  CHECK(file.metadata().at("täg") == "“quoted”\n\"text\"\\");
  CHECK((file.load_matrix<float>("block") == wide.middleCols(2, 3)));
  CHECK(file.at("vector").shape == std::vector<Index>{4});
  CHECK(file.at("scalar").elements() == 1);
  CHECK(file.at("empty").shape == std::vector<Index>{0, 7});
  for (const TensorInfo& tensor : file.tensors())
    if (tensor.name.starts_with("raw.")) CHECK(std::memcmp(file.bytes(tensor).data(), data.data(), data.size()) == 0);
}

TEST_CASE("writer: ordered by element size, then name, and aligned", "[io]") {
  SafetensorsWriter writer;
  for (const char* name : {"c", "a", "b"}) {
    writer.add(std::string(name) + "8", Vector<std::uint8_t>::Ones(3).eval());
    writer.add(std::string(name) + "64", Vector<double>::Ones(1).eval());
    writer.add(std::string(name) + "32", Vector<float>::Ones(1).eval());
  }
  const std::vector<std::byte> bytes = writer.bytes();
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  CHECK(length % 8 == 0);
  std::string order;
  const Safetensors file = Safetensors::parse(bytes);
  for (const TensorInfo& tensor : file.tensors()) {
    order += tensor.name + " ";
    CHECK((8 + length + tensor.begin) % (dtype_bits(tensor.dtype) / 8) == 0);
  }
  CHECK(order == "a64 b64 c64 a32 b32 c32 a8 b8 c8 ");
  CHECK(SafetensorsWriter().bytes().size() % 8 == 0);
  CHECK(Safetensors::parse(SafetensorsWriter().bytes()).tensors().empty());
}

TEST_CASE("writer: refusals leave it as it was", "[io]") {
  SafetensorsWriter writer;
  const std::vector<std::byte> four(4);
  writer.add("a", DType::f32, {1}, four);
  const std::vector<std::byte> before = writer.bytes();
  CHECK_THROWS_WITH(writer.add("a", DType::f32, {1}, four), contains("'a' is given twice"));
  CHECK_THROWS_AS(writer.add("a", DType::f32, {1}, four), FormatError);
  CHECK_THROWS_WITH(writer.add("__metadata__", DType::f32, {1}, four), contains("keeps for metadata"));
  CHECK_THROWS_WITH(writer.add("b", DType::f32, {2}, four), contains("4 bytes of data, expected 8 for F32 [2]"));
  CHECK_THROWS_WITH(writer.add("b", DType::f32, {-1}, four), contains("impossible"));
  CHECK_THROWS_WITH(writer.add("b", DType::f32, {Index{1} << 62, 8}, four), contains("impossible"));
  CHECK_THROWS_AS(writer.add("b", DType::f4, {7}, four), FormatError);
  for (const char* bad : {"\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe0\x80\x80", "\x80", "\xf0\x8f\xbf\xbf"}) {
    CHECK_THROWS_WITH(writer.add(bad, DType::f32, {1}, four), contains("not UTF-8"));
    CHECK_THROWS_AS(writer.metadata("key", bad), FormatError);
    CHECK_THROWS_AS(writer.metadata(bad, "value"), FormatError);
  }
  CHECK(writer.bytes() == before);
  for (const char* good : {"é", "€", "𝄞", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"}) CHECK_NOTHROW(writer.add(good, DType::f32, {1}, four));
}

TEST_CASE("writer: what no reader takes is refused", "[io]") {
  const TempFolder folder;
  SafetensorsWriter writer;
  CHECK_THROWS_WITH(writer.add("b", DType::f32, {Index{1} << 58, 0}, {}), contains("impossible"));  // 2^63 bits before the 0
  CHECK_NOTHROW(writer.add("b", DType::f32, {Index{1} << 56, 0}, {}));
  writer.write(folder / "x.safetensors");
  CHECK(Safetensors::map(folder / "x.safetensors").tensors().size() == 1);
}

TEST_CASE("writer: headers that are too long are refused, and an old file stays", "[io][.large]") {
  const TempFolder folder;
  const auto path = folder / "x.safetensors";
  const auto reads = [&](const SafetensorsWriter& writer) {
    writer.write(path);
    return Safetensors::map(path);
  };
  SafetensorsWriter writer;
  const std::string text((std::size_t{4} << 20) - 2, 'm');  // 4 MB between quotes; ten fit into 42 MB
  for (int i = 0; i < 10; ++i) writer.metadata("key " + std::to_string(i), text);
  CHECK_THROWS_WITH(writer.metadata("key 10", text), contains("metadata 'key 10' makes the header take more than 44040192 bytes"));
  CHECK_THROWS_AS(writer.metadata("key 10", text), FormatError);
  CHECK_NOTHROW(writer.metadata("key 0", text));  // in place of another
  CHECK(reads(writer).metadata().size() == 10);
  std::size_t held = 0;
  CHECK_THROWS_WITH(
      [&] {
        for (;; ++held) writer.add(std::string(4000, 'n') + std::to_string(held), DType::u8, {0}, {});
      }(),
      contains("tensor 'nnn") && contains("makes the header take more than"));
  CHECK(held > 500);  // of 2 MB
  CHECK(held < 525);
  CHECK(reads(writer).tensors().size() == held);

  SafetensorsWriter large;  // names of 17 MB, but JSON writes 6 bytes for each of their letters
  for (int i = 0; i < 4100; ++i) large.add(std::string(4090, '\1') + std::to_string(i), DType::u8, {0}, {});
  const std::string before = folder.read("x.safetensors");
  CHECK_THROWS_WITH(large.write(path), contains("bytes long, the format allows 100000000"));
  CHECK_THROWS_AS(large.bytes(), FormatError);
  CHECK(folder.read("x.safetensors") == before);
  CHECK(folder.files() == 1);
}

TEST_CASE("writer: the file appears whole or not at all", "[io]") {
  const TempFolder folder;
  SafetensorsWriter writer;
  const std::vector<float> large(1000, 2.0f);
  writer.add_view("x", DType::f32, {10, 100}, std::as_bytes(std::span(large)));
  writer.write(folder / "x.safetensors");
  CHECK(folder.files() == 1);
  CHECK((Safetensors::read(folder / "x.safetensors").load_matrix<float>("x") == Matrix<float>::Constant(10, 100, 2.0f)));

  const Safetensors old = Safetensors::map(folder / "x.safetensors");  // a reader of the old file keeps it
  SafetensorsWriter other;
  other.add("y", Vector<float>::Ones(2).eval());
  other.write(folder / "x.safetensors");
  CHECK(folder.files() == 1);
  CHECK((old.load_matrix<float>("x")(9, 99) == 2.0f));
  CHECK(Safetensors::map(folder / "x.safetensors").find("y") != nullptr);

  CHECK_THROWS_WITH(writer.write(folder / "no/such/folder/x.safetensors"), contains("cannot create") && contains("No such file"));
  CHECK_THROWS_AS(writer.write(folder / "no/such/folder/x.safetensors"), FormatError);
  std::filesystem::create_directories(folder / "taken/inside");
  CHECK_THROWS_WITH(writer.write(folder / "taken"), contains("cannot replace"));
  CHECK(folder.files() == 2);  // the failed write left nothing behind

  const std::string before = folder.read("x.safetensors");
  {
    AtomicFile abandoned(folder / "x.safetensors");
    abandoned.write(std::as_bytes(std::span("half of it")));
    CHECK(folder.read("x.safetensors") == before);
  }
  CHECK(folder.files() == 2);
  CHECK(folder.read("x.safetensors") == before);
  AtomicFile twice(folder / "z");
  twice.commit();
  CHECK_THROWS_AS(twice.commit(), StateError);
  CHECK_THROWS_AS(twice.write({}), StateError);
}

}  // namespace
