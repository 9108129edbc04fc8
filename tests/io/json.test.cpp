#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/io/checkpoint_files.hpp>
#include <pith/io/config_json.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/safetensors.hpp>

#include "io/temp_folder.hpp"
#include "support/alloc_counter.hpp"
#include "support/catch.hpp"

using namespace pith;
using pith::detail::FileBytes;
using pith::detail::Json, pith::detail::JsonDocument, pith::detail::JsonLimits, pith::detail::parse_json;
using pith_test::TempFolder;

namespace {

using pith_test::contains;

/// A file of that many zero bytes after `text`, most of which the disk does not hold.
void sparse(const std::filesystem::path& path, const std::string& text, std::uintmax_t bytes) {
  std::ofstream(path, std::ios::binary) << text;
  std::filesystem::resize_file(path, bytes);
}

constexpr std::uintmax_t huge = 200ull << 30;
constexpr std::size_t allowance = std::size_t{64} << 20;

/// What it takes beyond what is there already, refused or not.
template <class Read> std::size_t peak_of(const Read& read) {
  const pith_test::PeakScope scope;
  try {
    read();
  } catch (const FormatError&) {
  } catch (const UnsupportedError&) {
  }
  return scope.bytes();
}

std::string repeated(std::string_view piece, std::size_t bytes) {
  std::string out;
  out.reserve(bytes + piece.size());
  while (out.size() < bytes) out += piece;
  return out;
}

}  // namespace

TEST_CASE("A JSON document keeps what the text says, in its order") {
  const std::string source =
      R"( {"z":1,"a":{"y":[true,null,-2,2.5,18446744073709551615],"é\n":"\u00fc\ud83d\ude00"},"":"","m":[],"o":{}} )";
  JsonDocument first = parse_json(source, "x.json");
  const JsonDocument document = std::move(first);
  const Json& root = document.root();
  REQUIRE(root.is_object());
  CHECK(root.size() == 5);
  std::vector<std::string> keys;
  for (const auto& [key, value] : root.items()) {
    keys.emplace_back(key);
    CHECK(root.find(key) == &value);
  }
  CHECK(keys == std::vector<std::string>{"z", "a", "", "m", "o"});
  CHECK(root.find("z")->get<double>() == 1);
  CHECK(root.find("none") == nullptr);
  CHECK(*root.find("") == "");
  CHECK(root.find("m")->empty());
  CHECK(root.find("o")->empty());
  const Json& list = *root.find("a")->find("y");
  REQUIRE(list.size() == 5);
  CHECK(list[0] == true);
  CHECK(list[1].is_null());
  CHECK(list[2].get<double>() == -2);
  CHECK(list[3].get<double>() == 2.5);
  CHECK(list[4].get<double>() == 18446744073709551616.0);
  CHECK(std::distance(list.begin(), list.end()) == 5);
  CHECK(root.find("a")->find("é\n")->get<std::string>() == "ü😀");
  CHECK(root.find("a")->dump() == R"({"y":[true,null,-2,2.5,18446744073709551615],"é\u000a":"ü😀"})");
  CHECK(root.dump(10).size() < 40);
  CHECK_THROWS_AS(list[0].get<double>(), StateError);
  CHECK_THROWS_AS(list[5], StateError);
  CHECK_THROWS_AS(root[0], StateError);
}

TEST_CASE("Text that is not JSON is refused by file, byte and line") {
  struct Case {
    std::string json, message;
  };
  const std::vector<Case> cases{
      {"", "not valid JSON"},
      {"[]", "expected a JSON object"},
      {"{} {}", "not valid JSON at byte 4 (line 1)"},
      {"{\"a\":1,\n\"b\":}", "not valid JSON at byte 13 (line 2)"},
      {"{\"a\":1,\n \"b\":Infinit}", "not valid JSON at byte 14 (line 2)"},
      {"{\"a\":+Infinity}", "not valid JSON at byte 6 (line 1)"},
      {"{\"a\":NaN1}", "not valid JSON"},
      {"{\"a\":1NaN}", "not valid JSON"},
      {"{\"a\":[NaN NaN]}", "not valid JSON"},
      {"{\"a\":[NaN,nan]}", "not valid JSON at byte 12 (line 1)"},
      {"{NaN:1}", "not valid JSON"},
      {"NaN", "expected a JSON object"},
      {std::string("{\"a\0\":1}", 8), "at byte 3 (line 1): a zero byte"},
      {std::string("{\"a\":1}\0", 8), "at byte 7 (line 1): a zero byte"},
      {"{\"a\":{\"b\":1,\"c\":2,\"b\":3}}", "key 'b' is given twice"},
      {"{\"a\":" + std::string(32, '[') + std::string(32, ']') + "}", "nested deeper than 32"},
      {"{\"a\":\"" + std::string((1 << 20) + 1, 'x') + "\"}", "a text of 1048577 bytes, expected at most 1048576"},
      {"{\"a\":" + std::string(1025, '1') + "}", "a number or word of 1025 bytes, expected at most 1024"},
      {"{\"a\":[" + repeated("0,", 2 << 18) + "0]}", "more than 262144 values"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n", "a Git LFS pointer"},
  };
  for (const Case& broken : cases) {
    CAPTURE(broken.json.substr(0, 60));
    CHECK_THROWS_AS(parse_json(broken.json, "x.json"), FormatError);
    CHECK_THROWS_WITH(parse_json(broken.json, "x.json"), contains("'x.json'") && contains(broken.message));
  }
  CHECK(parse_json(R"({"a":"Infinity, NaN: version https://git-lfs.github.com/spec/v1 \" [{"})", "x").root().size() == 1);
  CHECK(parse_json("{\"a\":" + std::string(31, '[') + std::string(31, ']') + "}", "x").root().size() == 1);
  CHECK(parse_json("{\"a\":\"" + std::string(1 << 20, 'x') + "\"}", "x").root().find("a")->get<std::string>().size() == 1 << 20);
}

TEST_CASE("NaN and Infinity are numbers, as Python writes them, until somebody needs a finite one") {
  const std::string source = R"({"a":[ NaN,Infinity ,-Infinity,1,-1e2,11111111,0.5,111],"s":"\\\"NaN,","NaN":Infinity})";
  const JsonDocument document = parse_json(source, "x.json");
  const Json& list = *document.root().find("a");
  REQUIRE(list.size() == 8);
  CHECK(std::isnan(list[0].get<double>()));
  const double rest[] = {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(), 1, -100, 11111111, 0.5, 111};
  for (std::size_t i = 0; i < 7; ++i) CHECK(list[i + 1].get<double>() == rest[i]);
  CHECK(list.dump() == "[NaN,Infinity,-Infinity,1,-100.0,11111111,0.5,111]");
  CHECK(*document.root().find("s") == "\\\"NaN,");
  CHECK(document.root().find("NaN")->get<double>() == rest[0]);

  const pith::detail::JsonFields fields("x.json", document.root());
  CHECK_THROWS_WITH(fields.number("NaN"), contains("'x.json': key 'NaN' is 'Infinity', expected a finite number"));
  CHECK_THROWS_WITH(fields.size("NaN"), contains("key 'NaN' is 'Infinity', expected a whole number from 1"));
  const std::string header = R"({"t":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}})";
  std::vector<std::byte> bytes(8 + header.size());
  bytes[0] = std::byte(header.size());
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  CHECK_THROWS_WITH(Safetensors{FileBytes::own(std::move(bytes), "x.safetensors")}, contains("NaN, but JSON has no NaN and no Infinity"));
}

TEST_CASE("A parser's message is short whatever the text holds") {
  const auto message = [](const std::string& json) {
    try {
      parse_json(json, "x.json");
    } catch (const FormatError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  for (const std::string& json : {"{\"a\":\"" + std::string(1000000, 'x') + "\n\"}", "{\"a\":" + std::string(1000, 'x') + "}"}) {
    CHECK_THAT(message(json), contains("not valid JSON at byte"));
    CHECK(message(json).size() < 400);
  }
}

TEST_CASE("A file over its limit is refused before it is read") {
  const TempFolder folder;
  const std::string lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n";
  const auto check = [&](const std::string& file, const std::string& limit, const auto& read) {
    CAPTURE(file);
    sparse(folder / file, "{}", huge);
    CHECK_THROWS_WITH(read(), contains(file) && contains("has 214748364800 bytes, expected at most " + limit));
    if (pith_test::counting_available()) CHECK(peak_of(read) < 64 << 10);
    folder.write(file, lfs);
    CHECK_THROWS_AS(read(), FormatError);
    CHECK_THROWS_WITH(read(), contains(file) && contains("Git LFS pointer") && contains("git lfs pull"));
  };
  check("config.json", "16777216", [&] { read_config(folder / "config.json"); });
  check("adapter_config.json", "1048576", [&] { read_peft_config(folder / "adapter_config.json"); });
  check("model.safetensors.index.json", "33554432", [&] { CheckpointFiles(folder.path()); });
  check("other.json", "16777216", [&] { detail::read_json(folder / "other.json"); });

  sparse(folder / "model.safetensors", std::string("\xff\xff\xff\xff\0\0\0\0{", 9), huge);
  CHECK_THROWS_WITH(Safetensors::map(folder / "model.safetensors"), contains("4294967295 bytes long, expected at most 100000000"));
  if (pith_test::counting_available()) CHECK(peak_of([&] { Safetensors::map(folder / "model.safetensors"); }) < 64 << 10);
  for (const char* file : {"model.safetensors", "adapter_model.safetensors"}) {
    folder.write(file, lfs);
    CHECK_THROWS_WITH(Safetensors::map(folder / file), contains(file) && contains("Git LFS pointer") && contains("git lfs pull"));
    CHECK_THROWS_WITH(Safetensors::read(folder / file), contains("Git LFS pointer"));
  }
}

TEST_CASE("JSON of the largest size takes 64 MB besides its text, whatever it says", "[.large]") {
  if (!pith_test::counting_available()) return;
  const JsonLimits index{.bytes = max_index_bytes};
  const std::size_t room = max_index_bytes - 64;
  std::string keys = "{";
  for (std::size_t i = 0; keys.size() < room - 160; ++i)
    keys += (i == 0 ? "\"" : ",\"") + std::string(100, 'k') + std::to_string(i) + "\":\"" + std::string(30, 'v') + "\"";
  const std::string objects = "{\"a\":[" + repeated("{},", room - 80) + "{}]}";
  keys += "}";
  const std::string deep = repeated("{\"a\":", room), long_text = "{\"a\":\"" + std::string(room, 'x') + "\"}";
  const std::string texts = "{\"a\":[" + repeated("\"" + std::string(1 << 20, 'x') + "\",", room - (2 << 20)) + "1]}";
  const std::string escapes = "{\"a\":[" + repeated("\"" + repeated("\\u00e9", 6000) + "\",", room - 7000) + "1]}";
  const std::string numbers = "{\"a\":[" + repeated(std::string(1000, '1') + ",", room - 1100) + "1]}";
  const std::string broken = "{\"a\":[" + repeated("\"" + std::string(1 << 20, '\x01') + "\",", room - (2 << 20)) + "1]}";
  for (const std::string* json :
       {static_cast<const std::string*>(&keys), &objects, &deep, &long_text, &texts, &escapes, &numbers, &broken}) {
    CAPTURE(json->substr(0, 40));
    REQUIRE(json->size() <= max_index_bytes);
    const std::size_t peak = peak_of([&] { parse_json(*json, "index.json", index); });
    CHECK(peak <= allowance);
  }
  CHECK_NOTHROW(parse_json(keys, "index.json", index));
  CHECK_NOTHROW(parse_json(texts, "index.json", index));
}

TEST_CASE("A parser that finds no memory says so, wherever it happens") {
  if (!pith_test::counting_available()) return;
  const std::string good =
      R"({"model_type":"a model of some length, beyond what fits a string","list":[1,2.5,"x",[{}]],"o":{"k":{"a":[]}}})";
  const std::string twice = R"({"o":{"a key of some length, beyond what fits":1,"a key of some length, beyond what fits":2}})";
  const std::string broken = R"({"o":{"a key of some length, beyond what fits": [1,2,{"a":tru}]}})";
  for (const std::string* json : {&good, &twice, &broken})
    for (const std::uint64_t more : {std::uint64_t{0}, std::uint64_t{1} << 40}) {
      const std::size_t before = pith_test::live_bytes();
      for (std::uint64_t k = 1;; ++k) {
        bool reached = false, refused = false, no_memory = false;
        {
          const pith_test::FailingAllocation failing(k, more);
          try {
            parse_json(*json, "x.json");
          } catch (const FormatError&) {
            refused = true;
          } catch (const std::bad_alloc&) {
            no_memory = true;
          }
          reached = failing.failed();
        }
        CHECK(pith_test::live_bytes() == before);
        if (!reached) {
          CHECK(refused == (json != &good));
          CHECK_FALSE(no_memory);
          CHECK(k > 4);
          break;
        }
        REQUIRE((no_memory || refused));
      }
    }
}

TEST_CASE("A header of a tensor file takes 64 MB besides its text, whatever it says", "[.large]") {
  if (!pith_test::counting_available()) return;
  const auto file = [](const std::string& header) {
    std::vector<std::byte> bytes(8 + header.size());
    const std::uint64_t length = header.size();
    std::memcpy(bytes.data(), &length, 8);
    std::memcpy(bytes.data() + 8, header.data(), header.size());
    return FileBytes::own(std::move(bytes), "x.safetensors");
  };
  const auto tensors = [](std::size_t n, const std::string& prefix, const std::string& shape) {
    std::string out;
    for (std::size_t i = 0; i < n; ++i)
      out += (i == 0 ? "{\"" : ",\"") + prefix + std::to_string(i) + R"(":{"dtype":"U8","shape":[)" + shape + R"(],"data_offsets":[0,0]})";
    return out + "}";
  };
  const auto metadata = [](std::size_t n, const std::string& value) {
    std::string out = "{\"__metadata__\":{";
    for (std::size_t i = 0; i < n; ++i) out += (i == 0 ? "\"k" : ",\"k") + std::to_string(i) + "\":\"" + value + "\"";
    return out + "}}";
  };
  std::string many_dimensions = "0";
  for (int i = 1; i < 64; ++i) many_dimensions += ",1";
  struct Case {
    std::string header;
    const char* refusal;  ///< or nullptr
  };
  const Case cases[] = {
      {tensors(200'000, "model.layers.10.mlp.experts.100.down_proj.weight.", "0,4096"), nullptr},
      {tensors(max_header_entries + 1, "t", "0"), "more than 262144 tensors"},
      {tensors(100'000, "t", many_dimensions), "the header takes more than 44040192 bytes of memory"},
      {tensors(30'000, std::string(3000, 'n'), "0"), "the header takes more than 44040192 bytes of memory"},
      {tensors(1, std::string(4096, 'n'), "0"), "has 4097 bytes, expected at most 4096"},
      {metadata(2'000'000, ""), "the header takes more than 44040192 bytes of memory"},
      {metadata(20, std::string(4'000'000, 'v')), "the header takes more than 44040192 bytes of memory"},
      {metadata(1, std::string((4 << 20) + 1, 'v')), "a text of 4194305 bytes, expected at most 4194304"},
      {metadata(9, std::string(4 << 20, 'v')), nullptr},
      {"{\"a\":{" + repeated("{},", 50'000'000) + "}}", "not valid JSON"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.header.substr(0, 60));
    const FileBytes bytes = file(c.header);
    CHECK(peak_of([&] { Safetensors{bytes}; }) <= allowance);
    if (c.refusal == nullptr)
      CHECK_NOTHROW(Safetensors{bytes});
    else
      CHECK_THROWS_WITH(Safetensors{bytes}, contains("'x.safetensors'") && contains(c.refusal));
  }
}
