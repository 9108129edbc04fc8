#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <pith/io/safetensors.hpp>
#include <pith/io/safetensors_writer.hpp>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::contains;

std::vector<std::byte> raw(std::uint64_t length, std::string_view header, std::string_view data = {}) {
  std::vector<std::byte> out(8 + header.size() + data.size());
  std::memcpy(out.data(), &length, 8);
  std::memcpy(out.data() + 8, header.data(), header.size());
  if (!data.empty()) std::memcpy(out.data() + 8 + header.size(), data.data(), data.size());
  return out;
}
std::vector<std::byte> file(std::string_view header, std::size_t data = 0) { return raw(header.size(), header, std::string(data, '\1')); }
Safetensors parsed(std::string_view header, std::size_t data = 0) { return Safetensors::parse(file(header, data), "x.safetensors"); }

constexpr const char* two = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                            R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]}})";

struct Broken {
  const char* header;
  std::size_t data;
  const char* message;
};

TEST_CASE("safetensors: a sound file", "[io]") {
  const Safetensors f = parsed(two, 30);
  REQUIRE(f.tensors().size() == 2);
  CHECK(f.metadata().at("format") == "pt");
  const TensorInfo& a = f.at("a");
  CHECK(a.dtype == DType::f32);
  CHECK(a.shape == std::vector<Index>{2, 3});
  CHECK(a.elements() == 6);
  CHECK(f.bytes(a).size() == 24);
  CHECK(f.find("c") == nullptr);
  CHECK_THROWS_WITH(f.at("aa"), contains("no tensor 'aa'") && contains("nearest is 'a'"));

  CHECK(parsed("{}").tensors().empty());
  CHECK(parsed("{}      ").tensors().empty());
  CHECK(parsed(R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", 8).at("s").elements() == 1);
  const Safetensors empties =
      parsed(R"({"z":{"dtype":"F32","shape":[0,4],"data_offsets":[4,4]},)"
             R"("y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}})",
             4);
  CHECK((empties.load_matrix<float>("z").cols() == 4));
  CHECK(empties.tensors()[0].name == "x");
  CHECK(parsed(R"({"n":{"dtype":"F4","shape":[6],"data_offsets":[0,3]}})", 3).at("n").bytes() == 3);
  const Safetensors unordered =
      parsed(R"({"late":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"early":{"shape":[2],"data_offsets":[0,2],"dtype":"U8"}})", 3);
  CHECK(unordered.tensors()[0].name == "early");
}

TEST_CASE("safetensors: every rule of the header, broken in turn", "[io]") {
  const Broken cases[] = {
      {R"([])", 0, "does not start with '{'"},
      {R"( {})", 0, "does not start with '{'"},
      {R"({} x)", 0, "not valid JSON"},
      {R"({}{})", 0, "not valid JSON"},
      {R"({"a":)", 0, "not valid JSON"},
      {"{\"a\xff\":{}}", 0, "not valid JSON"},
      {"{\"\xed\xa0\x80\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "not valid JSON"},
      {R"({"a":[]})", 0, "'a' is a list, expected an object"},
      {R"({"a":null})", 0, "'a' is null"},
      {R"({"a":1})", 0, "a number"},
      {R"({"a":{}})", 0, "dtype is missing"},
      {R"({"a":{"dtype":"U8","shape":[0]}})", 0, "data_offsets is missing"},
      {R"({"a":{"dtype":"U8","data_offsets":[0,0]}})", 0, "shape is missing"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"extra":1}})", 0, "'extra' is none of"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0, "dtype is given twice"},
      {R"({"a":{"dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0]}})", 0, "shape is given twice"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0,
       "'a' is given twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ is given twice"},
      {R"({"__metadata__":{"k":"v","k":"w"}})", 0, "'k' twice"},
      {R"({"__metadata__":{"k":1}})", 0, "'k' is a number, expected text"},
      {R"({"__metadata__":{"k":{}}})", 0, "'k' is an object, expected text"},
      {R"({"__metadata__":"k"})", 0, "expected an object"},
      {R"({"a":{"dtype":"F33","shape":[0],"data_offsets":[0,0]}})", 0, "'F33' is not one of the format's"},
      {R"({"a":{"dtype":"f32","shape":[0],"data_offsets":[0,0]}})", 0, "'f32' is not one"},
      {R"({"a":{"dtype":7,"shape":[0],"data_offsets":[0,0]}})", 0, "dtype is a number"},
      {R"({"a":{"dtype":"U8","shape":0,"data_offsets":[0,0]}})", 0, "shape is a number"},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})", 0, "a negative number"},
      {R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1, "1.5"},
      {R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "expected whole numbers"},
      {R"({"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})", 1, "holds text"},
      {R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "holds a list"},
      {R"({"a":{"dtype":"U8","shape":[null],"data_offsets":[0,1]}})", 1, "holds null"},
      {R"({"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}})", 1, "holds true or false"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1]}})", 1, "too large"},
      {R"({"a":{"dtype":"U8","shape":[99999999999999999999999],"data_offsets":[0,1]}})", 1, "whole numbers"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,1]}})", 1, "too large"},
      {R"({"a":{"dtype":"F64","shape":[9223372036854775807],"data_offsets":[0,1]}})", 1, "too large"},
      {R"({"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,1]}})", 1, "not valid JSON"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "fewer than two"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1, "more than two"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "run backwards"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":{"0":1}}})", 1, "data_offsets is an object"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}})", 1, "hold 1 bytes, expected 2 for U8 [2]"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "expected 8"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, "whole bytes"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "ends at byte 2 of the data, expected at most 1"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[9223372036854775806,9223372036854775807]}})", 1, "expected at most 1"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2, "cover 1 bytes of data, expected all 2"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "leaves a hole"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3, "overlaps"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2, "overlaps"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})", 5, "leaves a hole"},
      {"{}", 1, "cover 0 bytes of data, expected all 1"},
  };
  for (const Broken& broken : cases) {
    INFO(broken.header);
    CHECK_THROWS_AS(parsed(broken.header, broken.data), FormatError);
    CHECK_THROWS_WITH(parsed(broken.header, broken.data), contains(broken.message) && contains("x.safetensors"));
  }
}

TEST_CASE("safetensors: the length field", "[io]") {
  const std::vector<std::byte> whole = file(two, 30);
  for (std::size_t n = 0; n < whole.size(); ++n) {
    INFO("the first " << n << " of " << whole.size() << " bytes");
    CHECK_THROWS_AS(Safetensors::parse(std::span(whole).first(n)), FormatError);
  }
  CHECK_NOTHROW(Safetensors::parse(std::span(whole)));
  CHECK_THROWS_WITH(Safetensors::parse(raw(0, "{}")), contains("does not start"));
  CHECK_THROWS_WITH(Safetensors::parse(raw(3, "{}")), contains("where the file ends"));
  CHECK_THROWS_WITH(Safetensors::parse(raw(~std::uint64_t{0}, "{}")), contains("at most 100000000"));
  CHECK_THROWS_WITH(Safetensors::parse(raw(100'000'001, "{}")), contains("at most 100000000"));
  CHECK_THROWS_WITH(Safetensors::parse(raw(4, std::string_view("{}\0\0", 4))), contains("zero byte"));
  CHECK_THROWS_WITH(Safetensors::parse(std::vector<std::byte>{}), contains("0 bytes"));
}

TEST_CASE("safetensors: bombs cost no stack", "[io]") {
  const std::size_t depth = 2'000'000;
  CHECK_THROWS_AS(parsed("{\"a\":" + std::string(depth, '[')), FormatError);
  std::string objects = "{";
  for (std::size_t i = 0; i < 200'000; ++i) objects += "\"a\":{";
  CHECK_THROWS_AS(parsed(objects), FormatError);
  std::string shape = R"({"a":{"dtype":"U8","shape":[1)";
  for (std::size_t i = 0; i < 1'000'000; ++i) shape += ",1";
  CHECK_THROWS_WITH(parsed(shape), contains("more than 64 dimensions"));
  CHECK_THROWS_AS(parsed("{\"" + std::string(10'000'000, 'n') + "\":1}"), FormatError);

  std::string many = "{";
  constexpr Index tensors = 100'000;
  for (Index i = 0; i < tensors; ++i)
    many += (i == 0 ? "\"model.layers." : ",\"model.layers.") + std::to_string(i * 7919 % tensors) +
            R"(.weight":{"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  many += "}";
  const Safetensors f = parsed(many, tensors);
  CHECK(f.tensors().size() == static_cast<std::size_t>(tensors));
  for (Index i = 0; i < tensors; i += 997) CHECK(f.find("model.layers." + std::to_string(i) + ".weight") != nullptr);
}

TEST_CASE("safetensors: mutated files parse or are refused", "[io]") {
  const std::vector<std::byte> whole = file(two, 30);
  const std::string_view fragments[] = {"\"",     "{",    "}",       "[",    "]",    ",",     ":",
                                        "-1",     "1e9",  "null",    "true", "\\u0", "dtype", "F8",
                                        "[0,24]", "9999", "[24,30]", "\xc3", "\x80", "0.5",   "\"__metadata__\"",
                                        " "};
  std::mt19937_64 rng(20);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(rng() % n); };
  int sound = 0, refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string header(two);
    for (std::size_t edits = 1 + below(3); edits > 0; --edits) {
      const std::size_t at = below(header.size());
      switch (below(4)) {
        case 0:
          header[at] = static_cast<char>(below(256));
          break;
        case 1:
          header.erase(at, 1 + below(6));
          break;
        case 2:
          header.insert(at, fragments[below(std::size(fragments))]);
          break;
        default:
          header.replace(at, 1, std::to_string(below(50)));
      }
      if (header.empty()) header = "{";
    }
    std::vector<std::byte> bytes = below(10) == 0 ? whole : file(header, 30);
    if (below(5) == 0) bytes.resize(below(bytes.size() + 1));
    if (below(5) == 0 && !bytes.empty()) bytes[below(std::min<std::size_t>(8, bytes.size()))] ^= static_cast<std::byte>(1u << below(8));
    try {
      const Safetensors f = Safetensors::parse(std::move(bytes));
      unsigned sum = 0;
      for (const TensorInfo& tensor : f.tensors())
        for (const std::byte b : f.bytes(tensor)) sum += std::to_integer<unsigned>(b);
      CHECK(sum <= 30);  // every byte of the data is a 1
      ++sound;
    } catch (const FormatError&) {
      ++refused;
    } catch (const UnsupportedError&) {
      ++refused;
    }
  }
  INFO(sound << " sound, " << refused << " refused");
  CHECK(sound > 100);
  CHECK(refused > 10'000);
}

TEST_CASE("safetensors: typed access", "[io]") {
  std::string data(8 + 16 + 3, '\0');
  const float f32[2] = {1.5f, -2.0f};
  const std::uint16_t bf16[4] = {0x3FC0, 0xC000, 0x0001, 0x7F80};  // 1.5, -2, the least subnormal, infinity
  const std::uint16_t f16[4] = {0x3E00, 0xC000, 0x0001, 0x7BFF};   // 1.5, -2, 2^-24, 65504
  std::memcpy(data.data(), f32, 8);
  std::memcpy(data.data() + 8, bf16, 8);
  std::memcpy(data.data() + 16, f16, 8);
  data[24] = 5, data[25] = char(0xFF), data[26] = 0;
  const std::string header =
      R"({"f":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]},)"
      R"("h":{"dtype":"F16","shape":[2,1,2],"data_offsets":[16,24]},"i":{"dtype":"I8","shape":[2],"data_offsets":[24,26]},)"
      R"("e":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[26,27]}})";
  for (std::size_t pad = 0; pad < 8; ++pad) {  // every alignment
    const std::string padded = header + std::string(pad, ' ');
    const Safetensors f = Safetensors::parse(raw(padded.size(), padded, data));
    CHECK((f.load_matrix<double>("f") == (Matrix<double>(1, 2) << 1.5, -2).finished()));
    const Vector<double> b = f.load_vector<double>("b"), h = f.load_values<double>("h");
    CHECK((b[0] == 1.5 && b[1] == -2 && b[2] == std::ldexp(1.0, -133) && std::isinf(b[3])));
    CHECK((h[0] == 1.5 && h[1] == -2 && h[2] == std::ldexp(1.0, -24) && h[3] == 65504));
    CHECK((f.load_vector<float>("b").cast<double>() == b));
    CHECK((f.load_vector<bfloat16>("b")[0] == bfloat16(1.5f)));
    CHECK((f.load_vector<std::int64_t>("i") == (Vector<std::int64_t>(2) << 5, -1).finished()));
    CHECK_THROWS_WITH(f.load_vector<std::uint32_t>("i"), contains("value 1 does not fit"));
    CHECK_THROWS_AS(f.load_vector<float>("i"), UnsupportedError);
    CHECK_THROWS_WITH(f.load_vector<float>("e"), contains("'e' is F8_E5M2, expected F64, F32, F16 or BF16"));
    CHECK_THROWS_AS(f.load_vector<int>("b"), UnsupportedError);
    CHECK_THROWS_AS(f.load_vector<half>("b"), UnsupportedError);
    CHECK_THROWS_WITH(f.load_matrix<float>("b"), contains("[4], expected a matrix"));
    CHECK_THROWS_WITH(f.load_vector<float>("f"), contains("[1, 2], expected a vector"));
    CHECK_THROWS_WITH(f.matrix<double>("f"), contains("is F32, asked for as F64"));
    if (f.aligned<float>(f.at("f"))) {
      CHECK((f.matrix<float>("f")(0, 1) == -2));
    } else {
      CHECK_THROWS_WITH(f.matrix<float>("f"), contains("expected a multiple of 4") && contains("load_matrix"));
    }
    CHECK(f.aligned<bfloat16>(f.at("b")) == ((header.size() + pad) % 2 == 0));
  }
}

TEST_CASE("safetensors: mapped, read and shared", "[io]") {
  const pith_test::TempFolder folder;
  const std::vector<std::byte> bytes = file(two, 30);
  folder.write("a.safetensors", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  const Safetensors read = Safetensors::read(folder / "a.safetensors");
  CHECK_FALSE(read.mapped());
  std::shared_ptr<const void> alive;
  std::span<const std::byte> inside;
  {
    const Safetensors mapped = Safetensors::map(folder / "a.safetensors");
    const Safetensors copy = mapped;  // NOLINT(performance-unnecessary-copy-initialization)
    CHECK(copy.bytes("a").data() == mapped.bytes("a").data());
    CHECK((mapped.load_matrix<float>("a") == read.load_matrix<float>("a")));
    alive = mapped.keep_alive();
    inside = mapped.bytes("b");
  }
  CHECK(inside[5] == std::byte{1});

  CHECK_THROWS_WITH(Safetensors::map(folder / "none"), contains("cannot open") && contains("No such file"));
  CHECK_THROWS_AS(Safetensors::read(folder / "none"), FormatError);
  CHECK_THROWS_AS(Safetensors::map(folder.path()), FormatError);
  folder.write("empty", "");
  CHECK_THROWS_WITH(Safetensors::map(folder / "empty"), contains("0 bytes"));
  CHECK_THROWS_WITH(Safetensors::read(folder / "empty"), contains("0 bytes"));
}

TEST_CASE("safetensors: released tensors are there when somebody looks again", "[io]") {
  const pith_test::TempFolder folder;
  const Matrix<float> large = Matrix<float>::Random(300, 100);  // many pages, none of which it begins or ends with
  SafetensorsWriter writer;
  writer.add("large", large);
  writer.write(folder.path() / "f.safetensors");
  for (const Safetensors& f : {Safetensors::map(folder.path() / "f.safetensors"), Safetensors::read(folder.path() / "f.safetensors")}) {
    CHECK(f.load_matrix<float>("large") == large);
    f.release(f.at("large"));
    CHECK(f.load_matrix<float>("large") == large);
  }
}

TEST_CASE("safetensors: the published files", "[io]") {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(pith_test::golden_folder() / "model"))
    if (entry.path().extension() == ".safetensors") {
      INFO(entry.path().string());
      const Safetensors f = Safetensors::map(entry.path());
      for (const TensorInfo& tensor : f.tensors()) {
        CHECK(f.find(tensor.name) == &tensor);
        if (is_floating(tensor.dtype))
          CHECK(f.load_values<double>(tensor.name).allFinite());
        else
          CHECK((f.load_values<std::int64_t>(tensor.name).size() == tensor.elements()));
      }
      ++files;
    }
  CHECK(files >= 40);
}

}  // namespace
