// Copies of conversations, and prompts that report their progress and may be cancelled.
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/same_session.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::difference;

namespace {

struct Model {
  DecoderConfig config = pith_test::tiny_config();
  Decoder<float> decoder = pith_test::random_decoder<float>(config);
  ModelAdapter<float> adapter = pith_test::random_adapter(decoder, 2, 7);
  std::vector<Token> tokens = pith_test::random_tokens(90, 50);

  AnyPolicy<float> policy(const PolicyEntry<float>& entry, Index rows) const {
    auto o_proj = std::make_shared<Matrix<float>>(config.hidden_size, config.num_attention_heads * config.head_dim);
    decoder.weights().layers[0].o_proj.copy_weight(0, *o_proj);
    return entry.make(rows, {std::make_shared<const Rope<float>>(config.rope()), o_proj});
  }
  std::span<const Token> some(std::size_t first, std::size_t n) const { return std::span(tokens).subspan(first, n); }
};

/// Another strategy for each policy.
const MergeEntry<float>& merging(std::size_t turn) { return merge_catalogue()[turn % merge_catalogue().size()]; }

/// Throws when it scores, once it is told to.
struct Fails {
  std::shared_ptr<bool> now = std::make_shared<bool>(false);
  Index budget() const { return 6; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> score) const {
    if (*now) throw std::runtime_error("no score");
    for (Index r = 0; r < score.size(); ++r) score[r] = static_cast<S>(rows.positions[static_cast<std::size_t>(r)]);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a clone goes on as its original does, under every policy, and neither changes the other", "[model]", float, bfloat16,
                   Q8) {
  const Model model;
  std::size_t turn = sizeof(TestType);
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const MergeEntry<float>& merge = merging(turn++);
    INFO(entry.name << ", " << merge.name);
    if (entry.name == "h2o-cache" && !std::is_same_v<TestType, float>) continue;  // turned keys are not rounded
    const AnyPolicy<float> policy = model.policy(entry, 12);
    const auto talk = [&] {
      auto session = model.decoder.template start<TestType>(policy, {.max_prompt = 30, .max_generated = 60, .keep_masses = turn % 2 == 0},
                                                            merge.make());
      session.use(turn % 3 == 0 ? &model.adapter : nullptr);
      session.prefill(model.some(0, 30));
      for (std::size_t t = 30; t < 35; ++t) session.decode(model.tokens[t]);
      session.checkpoint();
      session.decode(model.some(35, 3));
      session.decode(model.some(38, 2));
      return session;
    };
    auto original = std::make_optional(talk()), twin = std::make_optional(talk());  // the twin is never copied
    auto clone = original->clone();
    CHECK(clone.adapter() == original->adapter());
    CHECK(clone.bytes() == original->bytes());
    CHECK(clone.room() == original->room());
    REQUIRE(Matrix<float>(clone.logits()) == Matrix<float>(original->logits()));
    // The journal came along, and each has its own.
    clone.crop(38);
    original->crop(40);
    twin->crop(40);
    REQUIRE(difference(*original, *twin) == "");
    auto other = talk();
    other.crop(38);
    REQUIRE(difference(clone, other) == "");
    // Both read a prompt longer than the budget, one after the other, each in its own buffer.
    const auto go_on = [&](auto& session, std::size_t from) {
      const Matrix<float> first = session.prefill(model.some(from, 20));
      session.checkpoint();
      session.decode(model.some(from + 20, 4));
      session.crop(session.next_position() - 2);
      return std::pair(first, Matrix<float>(session.decode(model.tokens[from + 25])));
    };
    const auto a = go_on(*original, 40), b = go_on(clone, 60);
    REQUIRE(a == go_on(*twin, 40));
    REQUIRE(b == go_on(other, 60));
    REQUIRE(difference(*original, *twin) == "");
    original.reset();  // a clone outlives its original
    twin.reset();
    REQUIRE(Matrix<float>(clone.decode(model.tokens[3])) == Matrix<float>(other.decode(model.tokens[3])));
    REQUIRE(difference(clone, other) == "");
  }
}

TEST_CASE("a clone between two pieces of a prompt, behind a prefix, of an empty session and of a clone", "[model]") {
  const Model model;
  auto system = model.decoder.start(Dense{}, {.max_prompt = 8, .max_tokens = 8});
  system.prefill(model.some(0, 8));
  const SessionOptions options{.max_prompt = 20, .max_generated = 30, .prefix = system.freeze()};
  for (const AnyPolicy<float>& policy : {AnyPolicy<float>(SnapKv{.keep = 6, .window = 2}), AnyPolicy<float>(Window{6})}) {
    auto session = model.decoder.start(policy, options);
    auto empty = session.clone().clone();
    CHECK(empty.next_position() == 8);
    CHECK(empty.logits().rows() == 0);
    const auto pieces = [&](auto& s) { return Matrix<float>(s.prefill(model.some(10, 12), {.more = true})); };
    const Matrix<float> logits = pieces(session);
    REQUIRE(pieces(empty) == logits);
    auto clone = session.clone();
    for (auto* s : {&session, &clone, &empty}) s->prefill(model.some(22, 3));
    REQUIRE(difference(session, clone) == "");
    REQUIRE(difference(session, empty) == "");
  }
}

TEST_CASE("a session that is not whole has no clone", "[model]") {
  const Model model;
  const Fails fails;
  const std::vector<AnyPolicy<float>> policies{Window{6}, fails};
  auto session = model.decoder.start(std::span(policies), {.max_prompt = 20});
  session.prefill(model.some(0, 10));
  *fails.now = true;
  CHECK_THROWS_AS(session.prefill(model.some(10, 10)), std::runtime_error);
  CHECK_THROWS_AS(session.clone(), StateError);
  CHECK_THROWS_WITH(session.clone(), contains("clear() first"));
  *fails.now = false;
  session.clear();
  CHECK(session.clone().next_position() == 0);

  int asked = 0;
  session.prefill(model.some(0, 10), {.progress = [&](const PrefillProgress&) {
                    CHECK_THROWS_WITH(session.clone(), contains("in the middle of a call"));
                    return ++asked > 0;
                  }});
  CHECK(asked == 2);
}

TEST_CASE("a prompt reports its layers, and reads as one that does not", "[model]") {
  const Model model;
  auto session = model.decoder.start(Window{6}, {.max_prompt = 80}), twin = model.decoder.start(Window{6}, {.max_prompt = 80});
  std::vector<std::pair<Index, Index>> seen;
  const PrefillOptions options{.progress = [&](const PrefillProgress& p) {
    seen.emplace_back(p.layers_done, p.layers_total);
    return true;
  }};
  REQUIRE(Matrix<float>(session.prefill(model.some(0, 70), options)) == Matrix<float>(twin.prefill(model.some(0, 70))));
  const Matrix<float> rows = pith_test::random_matrix<float>(5, model.config.hidden_size, 3);
  REQUIRE(Matrix<float>(session.prefill(rows, {}, options)) == Matrix<float>(twin.prefill(rows)));
  CHECK(seen == std::vector<std::pair<Index, Index>>{{1, 2}, {2, 2}, {1, 2}, {2, 2}});
  REQUIRE(difference(session, twin) == "");
}

TEST_CASE("a cancelled prompt has not been, under every policy, wherever it is cancelled", "[model]") {
  const Model model;
  std::size_t turn = 0;
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const MergeEntry<float>& merge = merging(turn++);
    const AnyPolicy<float> evicting = model.policy(entry, 12);
    for (const std::vector<AnyPolicy<float>>& policies :
         {std::vector<AnyPolicy<float>>{evicting, evicting}, std::vector<AnyPolicy<float>>{Dense{}, evicting}}) {
      INFO(entry.name << ", " << merge.name << (policies[0].budget() == unlimited ? ", behind a dense layer" : ""));
      const auto start = [&] { return model.decoder.start(std::span(policies), {.max_prompt = 30, .max_generated = 60}, merge.make()); };
      auto session = start(), twin = start();
      const auto cancel = [&](std::size_t first, std::size_t n, bool throws = false) {
        for (const Index layers : {1, 2}) {
          const PrefillOptions options{.progress = [&](const PrefillProgress& p) {
            if (throws && p.layers_done == layers) throw std::out_of_range("stop");
            return p.layers_done < layers;
          }};
          const auto read = [&] { session.prefill(model.some(first, n), options); };
          if (throws) {
            REQUIRE_THROWS_AS(read(), std::out_of_range);
          } else {
            REQUIRE_THROWS_AS(read(), Cancelled);
            REQUIRE_THROWS_WITH(read(), contains("cancelled after " + std::to_string(layers) + " of 2 layers"));
          }
        }
      };
      cancel(0, 30);
      REQUIRE(difference(session, twin) == "");
      const auto both = [&](const auto& call) {
        call(session);
        call(twin);
        REQUIRE(difference(session, twin) == "");
      };
      both([&](auto& s) { s.prefill(model.some(0, 25)); });
      cancel(30, 25);  // a second prompt over the budget
      cancel(30, 2);
      REQUIRE(difference(session, twin) == "");
      both([&](auto& s) { s.decode(model.some(25, 4)); });
      cancel(30, 25, true);
      REQUIRE(difference(session, twin) == "");
      if (!evicting.traits().prompt_only) {  // a short prompt inside a journal, which then goes on
        session.checkpoint();
        twin.checkpoint();
        const Position p = session.next_position();
        session.decode(model.tokens[40]);
        twin.decode(model.tokens[40]);
        if (evicting.budget() == unlimited || session.caches()[1].capacity() - session.caches()[1].size(0) >= 2) cancel(41, 2);
        REQUIRE(Matrix<float>(session.decode(model.some(41, 3))) == Matrix<float>(twin.decode(model.some(41, 3))));
        both([&](auto& s) { s.crop(p + 2); });
        both([&](auto& s) { s.crop(s.next_position()); });
      }
      both([&](auto& s) { s.prefill(model.some(30, 25)); });
      both([&](auto& s) { s.decode(model.some(55, 3)); });
    }
  }
}
