// Memory runs out, at every place where it can: std::bad_alloc comes out, nothing leaks, and what was there before is as it was.
#include <nlohmann/json.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include <pith/decode.hpp>
#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "io/quantised_folder.hpp"
#include "io/temp_folder.hpp"
#include "io/tiny_adapter.hpp"
#include "io/tiny_checkpoint.hpp"
#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/same_session.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::same_bits;

namespace {

struct Ending {
  bool refused = false, failed = false, only_memory = true;
  std::size_t leaked = 0;
};

/// One call, whose k-th allocation fails.
template <class F> Ending with_failure(std::uint64_t k, bool all_after, F& call) {
  Ending end;
  const std::size_t before = pith_test::live_bytes();
  {
    const pith_test::FailingAllocation failing(k, all_after ? std::uint64_t{1} << 40 : 0);
    try {
      call();
    } catch (const std::bad_alloc&) {
      end.refused = true;
    } catch (...) {
      end.refused = true;
      end.only_memory = false;
    }
    end.failed = failing.failed();
  }
  end.leaked = pith_test::live_bytes() - before;
  return end;
}

/// Calls again and again, and each time another allocation fails, alone or with all after it, until none does. `after` looks at what a
/// refused call has left; `before` prepares for a call wherever the last one was carried out. Returns how many allocations failed.
template <class Before, class F, class After> std::uint64_t fail_each(Before&& before, F&& call, After&& after) {
  std::uint64_t count = 0;
  for (const bool all_after : {false, true}) {
    before();
    for (std::uint64_t k = 1;; ++k) {
      const Ending end = with_failure(k, all_after, call);
      if (!end.failed) {
        REQUIRE(!end.refused);
        break;
      }
      ++count;
      if (!end.only_memory || end.leaked != 0) {
        CAPTURE(k, all_after);
        REQUIRE(end.only_memory);
        REQUIRE(end.leaked == 0);
      }
      end.refused ? after() : before();  // the system does without a buffer
    }
  }
  return count;
}
template <class F> std::uint64_t fail_each(F&& call) {
  return fail_each(call, call, [] {});  // called before, for what is allocated once and for all
}

/// A checkpoint of one layer, and adapters for it.
struct OneLayer {
  pith_test::TempFolder folder, sharded, lora, vera, prompt, prefix;

  OneLayer() {
    pith_test::TinyCheckpoint checkpoint;
    checkpoint.config.replace(checkpoint.config.find("layers\":2"), 9, "layers\":1");
    const auto kept = [](const std::string& name) { return name.find("layers.1") == std::string::npos; };
    checkpoint.write(folder, kept);
    const auto first_shard = [](const std::string& name) { return name.find("mlp") != std::string::npos; };
    const std::string shards[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
    checkpoint.write(
        sharded, [&](const std::string& name) { return kept(name) && first_shard(name); }, shards[0]);
    checkpoint.write(
        sharded, [&](const std::string& name) { return kept(name) && !first_shard(name); }, shards[1]);
    nlohmann::json index;
    for (const auto& tensor : checkpoint.tensors)
      if (kept(tensor.first)) index["weight_map"][tensor.first] = shards[first_shard(tensor.first) ? 0 : 1];
    sharded.write("model.safetensors.index.json", index.dump());
    pith_test::TinyAdapter adapter;
    std::erase_if(adapter.tensors, [](const auto& tensor) { return tensor.first.find("layers.1") != std::string::npos; });
    adapter.config["rank_pattern"] = {{".*up_proj", 2}};
    adapter.config["use_dora"] = true;
    adapter.put(adapter.name("model.layers.0.self_attn.q_proj", "lora_magnitude_vector"), 8);
    adapter.put(adapter.name("model.layers.0.mlp.up_proj", "lora_magnitude_vector"), 6);
    adapter.write(lora);
    pith_test::TinyAdapter soft;
    soft.tensors.clear();
    soft.config = {{"peft_type", "PROMPT_TUNING"}, {"num_virtual_tokens", 3}, {"token_dim", 8}, {"num_layers", 1}};
    soft.put("prompt_embeddings", 3, 8);
    soft.write(prompt);
    pith_test::TinyAdapter shared;
    shared.tensors.clear();
    shared.config = {{"peft_type", "VERA"}, {"r", 3}, {"target_modules", {"q_proj"}}};
    const std::string q = "model.layers.0.self_attn.q_proj";
    shared.put(shared.name(q, "vera_lambda_b"), 8);
    shared.put(shared.name(q, "vera_lambda_d"), 3);
    shared.put("base_model.vera_A", 3, 8);
    shared.put("base_model.vera_B", 8, 3);
    shared.write(vera);
    pith_test::TinyAdapter ahead;
    ahead.tensors.clear();
    ahead.config = {{"peft_type", "PREFIX_TUNING"}, {"num_virtual_tokens", 2}, {"token_dim", 4}, {"num_layers", 1}};
    ahead.put("prompt_embeddings", 2, 8);
    ahead.write(prefix);
  }
  Decoder<float> load(WeightsLayout weights = WeightsLayout::packed) const {
    return load_decoder<float>(folder.path(), {.weights = weights});
  }
};

constexpr std::array<Token, 5> first_tokens{0, 1, 2, 3, 4};
std::span<const Token> five() { return first_tokens; }

const SessionOptions small_session{.max_prompt = 8, .max_tokens = 24, .max_generated = 8, .max_draft = 2};

/// What a session says next, without a lasting change.
Matrix<float> next_of(Session<float, float>& session) {
  session.checkpoint();
  const Position from = session.next_position();
  const Matrix<float> logits = session.decode(Token{1});
  session.crop(from);
  return logits;
}

}  // namespace

TEST_CASE("a failing allocation is found, and so is a leak", "[hot_path]") {
  int* kept = nullptr;
  std::vector<int> numbers;
  const void* volatile seen = nullptr;  // clang++ removes allocations whose memory is not used
  CHECK(fail_each([&] {
          Matrix<float> m(10, 10);
          seen = m.data();
        }) == (pith_test::counting_available() ? 2 : 0));
  CHECK(fail_each([&] { std::vector<int>(10).swap(numbers); }) == 2);
  auto leak = [&] { kept = new int(1); };
  const Ending end = with_failure(2, false, leak);
  CHECK((end.leaked >= sizeof(int) || !pith_test::counting_available()));
  delete kept;
}

TEST_CASE("loading a decoder or an adapter without memory", "[hot_path]") {
  const OneLayer files;
  for (const WeightsLayout weights : {WeightsLayout::packed, WeightsLayout::mapped, WeightsLayout::int8, WeightsLayout::int4})
    CHECK(fail_each([&] { files.load(weights); }) > 100);
  const Decoder<float> decoder = files.load();
  CHECK(fail_each([&] { load_adapter(files.lora.path(), decoder); }) > 100);
  CHECK(fail_each([&] { load_adapter(files.vera.path(), decoder); }) > 50);
  CHECK(fail_each([&] { load_adapter(files.prompt.path(), decoder); }) > 20);
  CHECK(fail_each([&] { load_prefix(files.prefix.path(), decoder); }) > 20);
  CHECK(fail_each([&] { load_decoder<float>(files.sharded.path()); }) > 100);

  pith_test::QuantisedFolder quantised(nlohmann::json::parse(R"({"quant_method":"awq","group_size":-1})"),
                                       {.hidden = 8, .inner = 8, .heads = 1, .kv_heads = 1, .head_dim = 8, .vocab = 5});
  quantised.modules([&](const std::string& name, int out, int in) { quantised.awq(name, quantised.random(out, in, 4, 0)); });
  const pith_test::TempFolder coded;
  quantised.write(coded);
  CHECK(fail_each([&] { load_decoder<float>(coded.path()); }) > 100);

  const std::string broken = files.folder.read("config.json");  // a refusal needs memory for its words
  files.folder.write("config.json", broken.substr(0, 100));
  CHECK(fail_each([&] {
          try {
            files.load();
          } catch (const FormatError&) {
          }
        }) > 10);
}

TEST_CASE("starting a session without memory", "[hot_path]") {
  const Decoder<float> decoder = OneLayer().load();
  const auto rope = std::make_shared<const Rope<float>>(decoder.config().rope());
  const auto o_proj = std::make_shared<Matrix<float>>(8, 8);
  decoder.weights().layers[0].o_proj.copy_weight(0, *o_proj);
  std::size_t turn = 0;
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const MergeEntry<float>& merging = merge_catalogue()[turn++ % merge_catalogue().size()];
    INFO(entry.name << ", " << merging.name);
    const AnyPolicy<float> policy = entry.make(12, {rope, o_proj});
    const AnyMerge<float> merge = merging.make();
    CHECK(fail_each([&] { decoder.start(policy, small_session, merge); }) > 10);
    const auto session = decoder.start(policy, small_session, merge);
    CHECK(fail_each([&] { session.caches()[0].clone(); }) > 5);
  }
  CHECK(fail_each([&] {
          auto target = decoder.start(Dense{}, small_session);
          PromptLookup<float> draft(decoder.vocab_size(), {.memory = 16});
          SpeculativeDecoder speculative(target, draft, {.draft_tokens = 2});
        }) > 20);
}

TEST_CASE("a conversation goes on where no memory is left", "[hot_path]") {
  const Decoder<float> decoder = OneLayer().load();
  for (const AnyPolicy<float>& policy :
       {AnyPolicy<float>(HeavyHitter{.heavy = 3, .recent = 3}), AnyPolicy<float>(SnapKv{.keep = 6, .window = 2}),
        AnyPolicy<float>(AtCachePositions(HeavyHitter{.heavy = 3, .recent = 3}))}) {
    auto session = decoder.start(policy, small_session), twin = decoder.start(policy, small_session);
    Matrix<float> logits(1, 5);
    const auto talk = [](auto& s, auto& out) {
      s.prefill(five());
      for (int i = 0; i < 6; ++i) out = s.decode(Token{2});
      s.checkpoint();
      s.decode(five().first(3));
      s.crop(s.next_position() - 2);
      out = s.decode(Token{3});
    };
    auto call = [&] { talk(session, logits); };
    const Ending end = with_failure(1, true, call);
    CHECK((!end.refused && !end.failed));
    Matrix<float> expected(1, 5);
    talk(twin, expected);
    CHECK(same_bits(logits, expected));

    // Nor does a call that is refused change anything, if its message finds no memory.
    std::vector<Token> wrong{1, 99};
    fail_each([&] {
      try {
        session.decode(wrong);
      } catch (const ShapeError&) {
      }
    });
    CHECK(same_bits(next_of(session), next_of(twin)));
  }
}

TEST_CASE("sessions, prefixes and files of them without memory", "[hot_path]") {
  const Decoder<float> decoder = OneLayer().load();
  const pith_test::TempFolder folder;
  const auto path = folder / "session";
  for (const AnyPolicy<float>& policy : {AnyPolicy<float>(HeavyHitter{.heavy = 3, .recent = 3}), AnyPolicy<float>(Dense{})}) {
    const auto start = [&] { return decoder.start(policy, small_session, make_merge<float>("d2o")); };
    const auto talk = [](auto& s) {
      s.clear();
      s.prefill(five());
      s.decode(Token{4});
    };
    auto session = start(), twin = start(), other = start();
    talk(session);
    talk(twin);
    other.prefill(five().first(2));
    save_session(other, path);
    const auto unchanged = [&] { return same_bits(session.logits(), twin.logits()) && same_bits(next_of(session), next_of(twin)); };

    const std::string old = folder.read("session");
    CHECK(fail_each([&] { folder.write("session", old); }, [&] { save_session(session, path); },
                    [&] {
                      if (folder.read("session") != old || folder.files() != 1) FAIL("an old file is intact, and nothing beside it");
                    }) > 20);
    CHECK(folder.read("session") != old);

    folder.write("session", old);
    CHECK(fail_each(
              [&] {
                talk(session);
                talk(twin);
              },
              [&] { load_session(session, path); },
              [&] {
                talk(twin);
                if (!unchanged()) FAIL("a session that could not be loaded is as it was");
                talk(session);
              }) > 20);
    CHECK(session.next_position() == 2);
    talk(twin);
    const SessionSnapshot<float, float> snapshot = twin.snapshot();
    CHECK(fail_each([&] { session.snapshot(); }) > 5);
    const SessionSnapshot<float, float> earlier = other.snapshot();
    fail_each([&] { session.restore(earlier); }, [&] { session.restore(snapshot); },
              [&] {
                if (const std::string what = pith_test::difference(session, other); !what.empty())
                  FAIL("a session that could not be restored is as it was, but for its " << what);
              });
    CHECK(pith_test::difference(session, twin) == "");
    CHECK(unchanged());
    if (policy.budget() == unlimited) {
      CHECK(fail_each([&] { session.freeze(); }) > 3);
      const KvPrefix prefix = session.freeze();
      CHECK(fail_each([&] { decoder.start(Dense{}, {.max_prompt = 8, .max_tokens = 24, .max_draft = 2, .prefix = prefix}); }) > 10);
    }
  }
}

TEST_CASE("a prompt in pieces under a prompt-only policy, and its cancellation, without memory", "[hot_path]") {
  const Decoder<float> decoder = OneLayer().load();
  // The protected policy may overfill and the others may be cancelled: a later prompt copies the rows first.
  const auto protects = [](auto inside) { return Protect(inside, {.sinks = 1, .recent = 3}); };
  const AnyPolicy<float> policies[] = {PromptOnly(HeavyHitter{.heavy = 3, .recent = 3}), SnapKv{.keep = 6, .window = 2},
                                       PromptOnly(protects(HeavyHitter{.heavy = 2, .recent = 2})), HeavyHitter{.heavy = 3, .recent = 3}};
  for (const AnyPolicy<float>& policy : policies)
    for (const bool cancels : {false, true}) {
      CAPTURE(&policy - policies, cancels);
      const SessionOptions options{.max_prompt = 16, .max_generated = 5, .max_draft = 2};  // the last piece needs the prompt buffer
      auto session = decoder.start(policy, options), twin = decoder.start(policy, options);
      const PrefillOptions waits{.more = true}, asks{.progress = [](const PrefillProgress&) { return false; }};
      const auto wait = [&](auto& s) {  // a turn, an answer, and a piece of the next turn whose tokens wait for the last piece
        s.clear();
        s.prefill(five());
        s.decode(Token{4});
        s.prefill(five().first(4), waits);
      };
      const auto unchanged = [&] {
        const auto a = session.snapshot(), b = twin.snapshot();
        if (!same_bits(a.logits, b.logits) || a.layers[0].keys != b.layers[0].keys || a.layers[0].values != b.layers[0].values ||
            a.layers[0].positions != b.layers[0].positions || a.layers[0].heads != b.layers[0].heads ||
            a.layers[0].stats != b.layers[0].stats || a.layers[0].next != b.layers[0].next)
          FAIL("a piece that was refused has not been");
      };
      wait(session);
      wait(twin);
      unchanged();
      if (cancels) {
        const auto cancel = [&] {
          try {
            session.prefill(five(), asks);
          } catch (const Cancelled&) {
          }
        };
        CHECK(fail_each(unchanged, cancel, unchanged) > 5);
      } else {
        const bool copies = policy.traits().overfills;
        CHECK((fail_each([&] { wait(session); }, [&] { session.prefill(five()); }, unchanged) > 5) == copies);
        wait(session);
      }
      session.prefill(five());
      twin.prefill(five());
      unchanged();
    }
}

TEST_CASE("a clone without memory leaves its original as it was", "[hot_path]") {
  const Decoder<float> decoder = OneLayer().load();
  for (const AnyPolicy<float>& policy : {AnyPolicy<float>(HeavyHitter{.heavy = 3, .recent = 3}), AnyPolicy<float>(Dense{})}) {
    auto session = decoder.start(policy, small_session, make_merge<float>("d2o")),
         twin = decoder.start(policy, small_session, make_merge<float>("d2o"));
    for (auto* s : {&session, &twin}) {
      s->prefill(five());
      s->decode(Token{4});
    }
    CHECK(fail_each([&] { session.clone(); }) > 10);
    CHECK(same_bits(session.logits(), twin.logits()));
    CHECK(same_bits(next_of(session), next_of(twin)));
  }
}

TEST_CASE("writing an adapter without memory leaves the old folder whole", "[hot_path]") {
  const pith_test::TempFolder folder;
  const auto lora = [](std::uint64_t seed) {
    return LoraAdapter<float>(pith_test::random_matrix<float>(2, 4, seed), pith_test::random_matrix<float>(3, 2, seed + 1), {.alpha = 3});
  };
  const LoraAdapter<float> one = lora(1), two = lora(5);
  LoraFolderWriter<float> old({.base_model = "old"}), coming({.base_model = "new"});
  old.add("model.layers.0.self_attn.q_proj", one);
  coming.add("model.layers.0.self_attn.q_proj", two);
  old.write(folder.path());
  const std::string config = folder.read("adapter_config.json"), tensors = folder.read("adapter_model.safetensors");
  CHECK(fail_each([&] { old.write(folder.path()); }, [&] { coming.write(folder.path()); },
                  [&] {
                    if (folder.read("adapter_config.json") != config || folder.read("adapter_model.safetensors") != tensors ||
                        folder.files() != 2)
                      FAIL("an old folder is intact, and nothing in it besides");
                  }) > 50);
  CHECK(folder.read("adapter_config.json") != config);
  CHECK(folder.read("adapter_model.safetensors") != tensors);
  CHECK(fail_each([&] {
          LoraFolderWriter<float> writer({.base_model = "a model whose name is long enough to be allocated"});
          writer.add("model.layers.0.self_attn.q_proj", one);
        }) > 4);
}
