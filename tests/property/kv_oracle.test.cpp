// Random programs of every verb, over policies, storages and head shapes, against an oracle that keeps every row; failures are shrunk.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "support/catch.hpp"
#include "support/kv_replay.hpp"
#include "support/shrink.hpp"

using namespace pith;
using pith_test::KvCase;
using pith_test::KvOperation;
using pith_test::Verb;

namespace {

enum class Storage { f32, bf16, f16, q8, q4, q8_q4 };
constexpr const char* storage_names[] = {"float", "bfloat16", "half", "Q8", "Rotated<Q4>", "Kv<Q8, Rotated<Q4>>"};

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* given = std::getenv(name);
  return given != nullptr ? std::strtoull(given, nullptr, 10) : otherwise;
}

/// Mostly turns of append, observe and evict, as in anybody's loop, and anything in between; rarely what must be refused.
std::vector<KvOperation> random_program(std::mt19937_64& rng, std::size_t length, bool observes) {
  std::vector<KvOperation> program;
  const auto below = [&](std::uint64_t n) { return rng() % n; };
  const auto append = [&] {
    const bool prefill = below(2) == 0;
    program.push_back({.verb = Verb::append,
                       .count = 1 + static_cast<Index>(std::min(below(7), below(7))),
                       .seed = below(1000000),
                       .prefill = prefill,
                       .more = below(prefill ? 6 : 60) == 0,
                       .skipped = below(20) == 0 ? 1 + static_cast<Index>(below(4)) : 0});
  };
  const auto observe = [&] {
    if (observes || below(16) == 0) program.push_back({.verb = Verb::observe, .seed = below(1000000)});
  };
  while (program.size() < length) {
    const std::uint64_t choice = below(64);
    if (choice < 26) {
      append();
      observe();
      program.push_back({.verb = Verb::evict});
    } else if (choice < 32) {
      append();
    } else if (choice < 36) {
      observe();
    } else if (choice < 40) {
      program.push_back({.verb = Verb::evict});
    } else if (choice < 44) {
      program.push_back({.verb = Verb::make_room, .count = static_cast<Index>(below(9))});
    } else if (choice < 48) {
      program.push_back({.verb = Verb::checkpoint});
    } else if (choice < 55) {
      program.push_back({.verb = Verb::crop, .seed = below(1000000)});
    } else if (choice < 56) {
      program.push_back({.verb = Verb::clone});
    } else if (choice < 57) {
      program.push_back({.verb = Verb::restore});
    } else if (choice < 60) {
      program.push_back({.verb = Verb::drop, .count = 1 + static_cast<Index>(below(5)), .seed = below(1000000)});
    } else if (choice < 63) {
      program.push_back({.verb = Verb::reindex});
    } else {
      program.push_back({.verb = Verb::clear});
    }
  }
  program.resize(length);
  return program;
}

/// What a program breaks; empty if it keeps every law.
std::string failure_of(const KvCase& c, Storage storage, std::span<const KvOperation> program) {
  try {
    switch (storage) {
      case Storage::f32:
        pith_test::KvReplay<float>(c).run(program);
        break;
      case Storage::bf16:
        pith_test::KvReplay<bfloat16>(c).run(program);
        break;
      case Storage::f16:
        pith_test::KvReplay<half>(c).run(program);
        break;
      case Storage::q8:
        pith_test::KvReplay<Q8>(c).run(program);
        break;
      case Storage::q4:
        pith_test::KvReplay<Rotated<Q4>>(c).run(program);
        break;
      case Storage::q8_q4:
        pith_test::KvReplay<Kv<Q8, Rotated<Q4>>>(c).run(program);
        break;
    }
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

std::string lines(const std::vector<KvOperation>& program) {
  std::string text;
  for (const KvOperation& operation : program) text += "\n  " + operation.line();
  return text;
}

}  // namespace

TEST_CASE("caches do what an oracle that keeps every row expects of random programs", "[property]") {
  constexpr std::size_t length = 250;
  const std::uint64_t seed = setting("PITH_ORACLE_SEED", 1), wanted = setting("PITH_ORACLE_OPERATIONS", 500000);
  std::vector<std::string> policies{"sinks-stream", "random-cache"};
  const std::size_t merges = merge_catalogue().size();
  for (const PolicyEntry<float>& entry : policy_catalogue()) policies.emplace_back(entry.name);
  std::mt19937_64 rng(seed);
  const auto rope = std::make_shared<const Rope<float>>(RopeOptions{.head_dim = 32});
  std::uint64_t done = 0;
  for (std::size_t turn = 0; done < wanted; ++turn, done += length) {
    const AttentionShape shapes[] = {{2, 2, 32}, {4, 2, 32}, {4, 1, 32}};
    const auto below = [&](std::uint64_t n) { return static_cast<Index>(rng() % n); };
    KvCase c{.policy = policies[turn % policies.size()],
             .merge = std::string(merge_catalogue()[below(2) == 0 ? 0 : static_cast<std::size_t>(below(merges))].name),
             .rows = 4 + below(13),
             .shape = shapes[turn / policies.size() % 3],
             .options = {},
             .rope = rope};
    c.options = {.max_chunk = 3 + below(6),
                 .max_draft = below(8) == 0 ? 0 : 2 + below(10),
                 .max_tokens = 60,
                 .max_generated = below(30),
                 .window = below(4) == 0 ? 1 + below(20) : 0,
                 .keep_masses = below(3) == 0};
    const bool turns_keys = c.policy.ends_with("-cache");  // which only what is not rounded survives
    const Storage storage = turns_keys ? Storage::f32 : static_cast<Storage>(turn / policies.size() / 3 % 6);
    std::vector<KvOperation> program = random_program(rng, length, pith_test::policy_of(c).facts(c.shape).observes);
    if (failure_of(c, storage, program).empty()) continue;
    program = pith_test::shrunk(program, [&](const auto& fewer) { return !failure_of(c, storage, fewer).empty(); });
    FAIL("PITH_ORACLE_SEED=" << seed << ", program " << turn << ": " << failure_of(c, storage, program) << "\n"
                             << c.policy << " of " << c.rows << " rows, " << c.merge << (c.options.keep_masses ? " with" : " without")
                             << " keep_masses, " << storage_names[static_cast<std::size_t>(storage)] << ", " << c.shape.num_heads
                             << " heads over " << c.shape.num_kv_heads << ", max_chunk " << c.options.max_chunk << ", max_draft "
                             << c.options.max_draft << ", max_generated " << c.options.max_generated << ", window " << c.options.window
                             << lines(program));
  }
  std::printf("kv oracle: %llu operations, PITH_ORACLE_SEED=%llu repeats them\n", static_cast<unsigned long long>(done),
              static_cast<unsigned long long>(seed));
}

TEST_CASE("programs that once failed", "[property]") {
  KvCase c{.policy = "text-prior",
           .merge = "drop",
           .rows = 15,
           .shape = {4, 1, 32},
           .options = {.max_chunk = 6, .max_generated = 5},
           .rope = {}};
  SECTION("a prompt in pieces goes on after a draft that is taken back") {
    CHECK(failure_of(c, Storage::f32,
                     std::vector<KvOperation>{{.verb = Verb::append, .prefill = true, .more = true},
                                              {.verb = Verb::observe},
                                              {.verb = Verb::evict},
                                              {.verb = Verb::checkpoint},
                                              {.verb = Verb::append, .count = 7},
                                              {.verb = Verb::crop, .seed = 1},
                                              {.verb = Verb::append, .count = 2, .prefill = true}}) == "");
  }
  SECTION("a snapshot between a token decoded and the end of a prompt, of a policy that watches nothing") {
    c.policy = "chunkkv";
    CHECK(failure_of(
              c, Storage::f32,
              std::vector<KvOperation>{
                  {.verb = Verb::append, .count = 4}, {.verb = Verb::append, .count = 3, .prefill = true}, {.verb = Verb::restore}}) == "");
  }
  SECTION("a snapshot of heads that drop() has left with different numbers of rows") {
    c.policy = "random-cache";
    c.rows = 5;
    c.shape = {2, 2, 32};
    c.rope = std::make_shared<const Rope<float>>(RopeOptions{.head_dim = 32});
    for (std::uint64_t back = 0; back < 24; ++back)
      CHECK(failure_of(c, Storage::f32,
                       std::vector<KvOperation>{{.verb = Verb::append, .count = 7},
                                                {.verb = Verb::evict},
                                                {.verb = Verb::drop, .count = 3, .seed = back},
                                                {.verb = Verb::restore}}) == "");
  }
  SECTION("drop() that would leave heads with unlike numbers of rows is refused before any key is turned") {
    c.policy = "random-cache";
    c.shape = {2, 2, 32};
    c.rope = std::make_shared<const Rope<float>>(RopeOptions{.head_dim = 32});
    for (std::uint64_t back = 0; back < 24; ++back) {  // each head holds other rows, and so loses others
      std::vector<KvOperation> program;
      for (int i = 0; i < 12; ++i) {
        program.push_back({.verb = Verb::append, .count = 2});
        program.push_back({.verb = Verb::evict});
      }
      program.push_back({.verb = Verb::drop, .seed = back});
      program.push_back({.verb = Verb::reindex});
      CHECK(failure_of(c, Storage::f32, program) == "");
    }
  }
}

TEST_CASE("a failing program is shrunk to what the failure needs", "[property]") {
  std::mt19937_64 rng(5);
  const std::vector<KvOperation> program = random_program(rng, 2000, true);
  const auto planted = [](std::span<const KvOperation> operations) {  // an append of three tokens, anywhere behind a crop
    bool cropped = false;
    for (const KvOperation& operation : operations) {
      if (cropped && operation.verb == Verb::append && operation.count == 3) return true;
      cropped = cropped || operation.verb == Verb::crop;
    }
    return false;
  };
  REQUIRE(planted(program));
  const std::vector<KvOperation> least = pith_test::shrunk(program, planted);
  REQUIRE(least.size() == 2);
  CHECK(least[0].verb == Verb::crop);
  CHECK(least[1].verb == Verb::append);
}
