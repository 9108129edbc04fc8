#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <new>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include <pith/io/detail/atomic_file.hpp>
#include <pith/io/detail/file_bytes.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/io/peft_writer.hpp>
#include <pith/peft/lora.hpp>

#include "io/temp_folder.hpp"
#include "support/alloc_counter.hpp"
#include "support/catch.hpp"

#if PITH_HAS_MMAP
#include <sys/resource.h>
#endif

using namespace pith;
using pith::detail::AtomicFile;
using pith_test::TempFolder;
namespace fs = std::filesystem;

namespace {

using pith_test::contains;

void write(const fs::path& path, const std::string& text) {
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(text.data(), text.size())));
  file.commit();
}

LoraAdapter<float> lora(float first) {
  Matrix<float> down(2, 3), up(4, 2);
  down << first, 2, 3, 4, 5, 6;
  up << 1, -1, 2, -2, 3, -3, 4, -4;
  return LoraAdapter<float>(down, up);
}

}  // namespace

TEST_CASE("AtomicFile: a new file has the mode of this process, a replaced one its own", "[io]") {
  const TempFolder folder;
  folder.write("as_others", "");  // by another writer of new files
  write(folder / "new", "1");
  CHECK(fs::status(folder / "new").permissions() == fs::status(folder / "as_others").permissions());
#if PITH_HAS_POSIX_FILES
  for (const unsigned mode : {0600u, 0640u, 0755u, 0444u}) {
    fs::permissions(folder / "new", fs::perms(mode));
    write(folder / "new", "2");
    CHECK(fs::status(folder / "new").permissions() == fs::perms(mode));
  }
#endif
  CHECK(folder.read("new") == "2");
  CHECK(folder.files() == 2);
}

TEST_CASE("AtomicFile: writes through symbolic links to what they lead to", "[io]") {
  const TempFolder folder;
  fs::create_directory(folder / "real");
  folder.write("real/file", "old");
  fs::create_symlink("real/file", folder / "link");
  fs::create_symlink(folder / "link", folder / "second");
  fs::create_symlink("real/later", folder / "dangling");
  fs::create_symlink("loop", folder / "loop");
  write(folder / "second", "new");
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(fs::is_symlink(folder / "second"));
  CHECK_FALSE(fs::is_symlink(folder / "real/file"));
  CHECK(folder.read("real/file") == "new");
  write(folder / "dangling", "made");
  CHECK(fs::is_symlink(folder / "dangling"));
  CHECK(folder.read("real/later") == "made");
  CHECK_THROWS_AS(write(folder / "loop", "x"), FormatError);
  CHECK_THROWS_WITH(write(folder / "loop", "x"), contains("cannot follow"));
  CHECK(folder.files() == 5);
}

TEST_CASE("AtomicFile: long names, folders in the way and lost files leave nothing behind", "[io]") {
  const TempFolder folder;
  const std::string longest(255, 'n');
  write(folder / longest, "1");
  write(folder / longest, "2");
  CHECK(folder.read(longest) == "2");
  CHECK_THROWS_AS(write(folder / (longest + "n"), "3"), FormatError);
  fs::create_directory(folder / "taken");
  CHECK_THROWS_WITH(write(folder / "taken", "3"), contains("cannot replace") && contains("not a regular file"));
  CHECK_THROWS_WITH(write(folder / "none/file", "3"), contains("cannot create"));
  { const AtomicFile dropped(folder / longest); }
  {
    AtomicFile file(folder / "late");
    fs::create_directories(folder / "late/inside");
    CHECK_THROWS_WITH(file.commit(), contains("cannot replace"));
    CHECK_THROWS_AS(file.commit(), StateError);
  }
  CHECK(folder.read(longest) == "2");
  CHECK(folder.files() == 3);
}

TEST_CASE("AtomicFile: of two files both are replaced, or none", "[io]") {
  for (const bool old : {false, true})
    for (const bool blocked : {false, true}) {
      CAPTURE(old, blocked);
      const TempFolder folder;
      if (old) folder.write("a", "old");
      {
        AtomicFile a(folder / "a"), b(folder / "b");
        a.write(std::as_bytes(std::span("new", 3)));
        b.write(std::as_bytes(std::span("new", 3)));
        if (blocked) {
          fs::create_directories(folder / "b/inside");
          CHECK_THROWS_WITH(AtomicFile::commit(a, b), contains("cannot replace") && contains("/b'"));
        } else {
          AtomicFile::commit(a, b);
        }
      }
      CHECK(fs::exists(folder / "a") == (old || !blocked));
      CHECK(folder.read("a") == (!blocked ? "new" : old ? "old" : ""));
      if (!blocked) CHECK(folder.read("b") == "new");
      CHECK(folder.files() == 1 + (old || !blocked));
    }
}

TEST_CASE("the system's errors: no memory is std::bad_alloc, all others are refusals with the reason", "[io]") {
  CHECK_THROWS_AS(detail::raise_system("open", "a", ENOMEM), std::bad_alloc);
  CHECK_THROWS_AS(detail::raise_system("open", "a", std::make_error_code(std::errc::not_enough_memory)), std::bad_alloc);
  CHECK_THROWS_WITH(detail::raise_system("open", "a", EACCES), contains("pith: cannot open 'a': Permission denied"));
  const TempFolder folder;
  CHECK_FALSE(detail::present(folder / "none"));
  CHECK_FALSE(detail::present(folder / "none/of/these"));
  CHECK(detail::present(folder.path()));
  CHECK_THROWS_WITH(detail::present(folder / std::string(300, 'n')), contains("cannot inspect"));

#if PITH_HAS_MMAP
  if (!pith_test::counting_available()) return;  // a sanitizer needs its address space
  folder.write("large", "");
  fs::resize_file(folder / "large", std::uintmax_t{1} << 30);
  ::rlimit whole{};
  REQUIRE(::getrlimit(RLIMIT_AS, &whole) == 0);
  ::rlimit small = whole;
  small.rlim_cur = 1 << 20;
  bool refused = false;
  REQUIRE(::setrlimit(RLIMIT_AS, &small) == 0);
  try {
    detail::FileBytes::map(folder / "large");
  } catch (const std::bad_alloc&) {
    refused = true;
  } catch (const FormatError&) {
  }
  ::setrlimit(RLIMIT_AS, &whole);
  CHECK(refused);
#endif
}

TEST_CASE("LoraFolderWriter: what PeftFolder would not read is not written", "[io]") {
  const TempFolder folder;
  LoraFolderWriter<float> old;
  old.add("model.layers.0.self_attn.q_proj", lora(1));
  old.write(folder.path());
  const std::string tensors = folder.read("adapter_model.safetensors"), config = folder.read("adapter_config.json");
  const auto refuses = [&](const auto& writer, const char* why) {
    CHECK_THROWS_AS(writer.write(folder.path()), FormatError);
    CHECK_THROWS_WITH(writer.write(folder.path()), contains("nothing was written") && contains(why));
    CHECK(folder.read("adapter_model.safetensors") == tensors);
    CHECK(folder.read("adapter_config.json") == config);
    CHECK(folder.files() == 2);
    CHECK_THROWS_AS(writer.write(folder / "fresh"), FormatError);
    CHECK_FALSE(fs::exists(folder / "fresh"));
  };
  const LoraAdapter<float> one(Matrix<float>::Ones(1, 1).eval(), Matrix<float>::Ones(1, 1).eval());
  LoraFolderWriter<float> many, wordy({.base_model = std::string(std::size_t{1} << 20, 'b')}), head, inner;
  for (int i = 0; i < 8193; ++i) many.add("m" + std::to_string(i), one);
  refuses(many, "at most 8192");
  wordy.add("m", one);
  refuses(wordy, "bytes, expected at most 1048576");
  head.add("score", one);
  refuses(head, "classifier");
  inner.add("m.lora_A.n", one);
  refuses(inner, "is no part of an adapter");
  LoraFolderWriter<double> wide;
  wide.add("m", LoraAdapter<double>(Matrix<double>::Constant(1, 1, 1e300).eval(), Matrix<double>::Ones(1, 1).eval()));
  refuses(wide, "NaN or infinity");

  LoraFolderWriter<float> all;  // as many as a folder may name, each with a rank or alpha of its own
  for (int i = 0; i < 8192; ++i)
    all.add("m" + std::to_string(i),
            LoraAdapter<float>(Matrix<float>::Ones(1, 1).eval(), Matrix<float>::Ones(1, 1).eval(), {.alpha = static_cast<float>(1 + i)}));
  all.write(folder.path());
  CHECK(PeftFolder(folder.path()).modules().size() == 8192);
  CHECK(PeftFolder(folder.path()).load("m8191").gain[0] == 8192.f);
}

TEST_CASE("LoraFolderWriter: what cannot be written changes nothing", "[io]") {
  const TempFolder folder;
  LoraFolderWriter<float> writer({.base_model = "models/größe \"x\"\n"});
  writer.add("model.layers.0.self_attn.q_proj", lora(1));
  writer.write(folder / "new/deep/adapter");
  const std::string tensors = folder.read("new/deep/adapter/adapter_model.safetensors"),
                    config = folder.read("new/deep/adapter/adapter_config.json");
  CHECK(PeftFolder(folder / "new/deep/adapter").config().base_model == "models/größe \"x\"\n");
  CHECK(PeftFolder(folder / "new/deep/adapter").load("model.layers.0.self_attn.q_proj").down == lora(1).down());

  CHECK_THROWS_AS(LoraFolderWriter<float>({.base_model = "a\xff"}), FormatError);
  CHECK_THROWS_WITH(LoraFolderWriter<float>({.base_model = "a\xff"}), contains("base_model is not UTF-8 at byte 1"));
  CHECK_THROWS_WITH(LoraFolderWriter<float>({.task_type = "\xed\xa0\x80"}), contains("task_type is not UTF-8 at byte 0"));

  LoraFolderWriter<float> other;
  other.add("model.layers.1.self_attn.q_proj", lora(7));
  const auto kept = [&](const std::string& name) {
    CHECK(folder.read(name + "/adapter_model.safetensors") == tensors);
    CHECK(fs::is_directory(folder / (name + "/adapter_config.json")));
  };
  fs::create_directories(folder / "blocked/adapter_config.json/inside");
  folder.write("blocked/adapter_model.safetensors", tensors);
  CHECK_THROWS_AS(other.write(folder / "blocked"), FormatError);
  kept("blocked");

  folder.write("file", "");
  CHECK_THROWS_AS(other.write(folder / "file/a/b"), FormatError);
  if (pith_test::counting_available()) {
    for (const char* place : {"fresh/a", "new/deep/adapter"})
      for (std::uint64_t k = 1;; ++k) {
        bool reached = false, written = false;
        {
          const pith_test::FailingAllocation failing(k);
          try {
            other.write(folder / place);
            written = true;
          } catch (const std::bad_alloc&) {
          }
          reached = failing.failed();
        }
        if (written) {
          CHECK(PeftFolder(folder / place).modules() == std::vector<std::string>{"model.layers.1.self_attn.q_proj"});
          if (!reached) break;
          fs::remove_all(folder / "fresh");  // an allocation that the system's library can do without
          folder.write("new/deep/adapter/adapter_model.safetensors", tensors);
          folder.write("new/deep/adapter/adapter_config.json", config);
          continue;
        }
        if (place == std::string("fresh/a")) CHECK_FALSE(fs::exists(folder / "fresh"));
        if (place != std::string("fresh/a")) {
          CHECK(folder.read("new/deep/adapter/adapter_model.safetensors") == tensors);
          CHECK(folder.read("new/deep/adapter/adapter_config.json") == config);
        }
        if (!reached) break;
        if (place == std::string("fresh/a")) continue;
        CHECK(std::distance(fs::directory_iterator(folder / "new/deep/adapter"), fs::directory_iterator()) == 2);
      }
  }
}
