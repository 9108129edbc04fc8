// Verbs of a cache. Half of the inputs: any order of them against an oracle that keeps every row and knows what is refused. The others: any
// arguments, wrong shapes and numbers among them; what is refused changes nothing, as a twin that never made the refused calls shows.
#include <array>
#include <memory>
#include <optional>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "fuzz/twins.hpp"
#include "support/kv_replay.hpp"

namespace pith_fuzz {
namespace {

using pith::Index;
using Matrix = pith::Matrix<float>;
using pith_test::KvCase;

const std::shared_ptr<const pith::Rope<float>>& rope() {
  static const auto four = std::make_shared<const pith::Rope<float>>(pith::RopeOptions{.head_dim = 4});
  return four;
}

KvCase drawn_case(Reader& in) {
  const auto policies = pith::policy_catalogue<float>();
  const auto merges = pith::merge_catalogue<float>();
  const std::size_t policy = in.byte() % (policies.size() + 2);
  const std::uint8_t sizes = in.byte();
  KvCase c;
  c.policy = policy < policies.size() ? policies[policy].name : policy == policies.size() ? "sinks-stream" : "random-cache";
  c.rows = 4 + sizes % 8;
  c.merge = sizes >= 128 ? "drop" : merges[in.byte() % merges.size()].name;
  c.shape = {4, (sizes & 1) != 0 ? 2 : 1, 4};
  c.options = {.max_chunk = 1 + (sizes >> 3 & 7), .max_draft = sizes >> 5 & 3, .max_tokens = 24, .max_generated = 12};
  c.options.keep_masses = in.below(4) == 0;
  c.rope = rope();
  return c;
}

/// Any order of verbs, arguments within reason.
void replay(Reader& in) {
  const KvCase c = drawn_case(in);
  using Operation = pith_test::KvOperation;
  using Verb = pith_test::Verb;
  std::vector<Operation> program;
  while (!in.done() && program.size() < 60) {
    const std::uint8_t choice = in.byte();
    Operation operation{.verb = static_cast<Verb>(choice % 11)};
    operation.seed = in.seed();
    operation.count = 1 + static_cast<Index>(operation.seed % 7);
    operation.prefill = (choice & 128) != 0;
    operation.more = operation.prefill && (choice & 64) != 0 && operation.seed % 3 == 0;
    operation.skipped = operation.seed % 20 == 0 ? 2 : 0;
    program.push_back(operation);
  }
  pith_test::KvReplay<float>(c).run(program);
}

/// A cache and the prompt buffer that is lent to it.
template <pith::KvStorage T> struct CacheSide {
  using Cache = pith::KvCache<T>;
  Cache cache;
  pith::KvPromptBuffer<T> prompt_buffer;
  std::optional<pith::KvSnapshot<T>> kept;

  explicit CacheSide(const KvCase& c)
      : cache(c.shape, pith_test::policy_of(c), c.options, pith::make_merge<float>(c.merge)),
        prompt_buffer(c.shape, c.rows + 16,
                      {.stats = 4,
                       .reads_rows = true,
                       .combines = true,
                       .cache_positions = true,
                       .keep_masses = c.options.keep_masses,
                       .merges = true}) {}
  bool same(const CacheSide& twin) const { return same_cache(cache, twin.cache); }
};

template <pith::KvStorage T> class CacheCalls {
 public:
  using Twin = CacheSide<T>;
  CacheCalls(Reader& in, const KvCase& c) : in_(in), sides_(c) {}

  void run() {
    for (int i = 0; i < 60 && !in_.done(); ++i) step();
    sides_.compare();
    demand(attempt([&] { sides_.told().cache.clear(); }) == Outcome::done, "clear() is never refused");
  }

 private:
  auto& cache() { return sides_.told().cache; }
  Index heads() { return cache().shape().num_kv_heads; }

  Matrix rows(Index count, Index width) {
    Matrix m = pith_test::random_matrix<float>(count, width, in_.seed());
    if (m.size() > 0 && in_.below(16) == 0) m.data()[in_.below(256) % m.size()] = static_cast<float>(in_.real() * 70000);
    return m;
  }

  void step() {
    switch (in_.below(24)) {
      default:
        return append();
      case 6:
      case 7:
      case 8:
        return turn();
      case 9:
        return observe();
      case 10:
      case 11: {
        const Index coming = in_.flag() ? 0 : in_.number();
        return sides_.call([&](Twin& s) { return one(static_cast<double>(s.cache.evict(coming))); });
      }
      case 12: {
        const Index back = in_.number(), count = in_.number();
        return sides_.call([&](Twin& s) {
          const auto first = earlier(s.cache.next_position(), back);
          return one(static_cast<double>(s.cache.drop(first, later(first, count))));
        });
      }
      case 13:
        return sides_.call([](Twin& s) { return s.cache.checkpoint(), none(); });
      case 14: {
        const Index back = in_.below(4) == 0 ? in_.number() : in_.below(6);
        return sides_.call([&](Twin& s) { return s.cache.crop(earlier(s.cache.next_position(), back)), none(); });
      }
      case 15:
        return sides_.call([](Twin& s) { return s.cache.clear(), none(); });
      case 16:
        return sides_.call([](Twin& s) {
          if constexpr (std::is_same_v<T, float>) s.cache.reindex(*rope());
          return none();
        });
      case 17:
        return sides_.call([](Twin& s) { return s.cache = s.cache.clone(), none(); });
      case 18:
        return sides_.call([](Twin& s) { return s.kept = s.cache.snapshot(), none(); });
      case 19: {
        if (!sides_.told().kept) return;
        pith::KvSnapshot<T> kept = *sides_.told().kept;
        if (in_.flag()) damage(kept, in_);
        return sides_.call([&](Twin& s) { return s.cache.restore(kept), none(); });
      }
      case 20: {
        const Index tokens = in_.number();
        const bool lent = in_.flag();
        return sides_.call([&](Twin& s) {
          pith::KvPromptBuffer<T>* const buffer = lent ? &s.prompt_buffer : nullptr;
          const Outcome expected = attempt([&] { pith::detail::CacheInternals::state(s.cache).check_reserve(tokens, buffer); });
          demand(expected == Outcome::done || attempt([&] { s.cache.reserve(tokens, buffer); }) == expected, "what is refused is refused");
          s.cache.reserve(tokens, buffer);
          demand(expected == Outcome::done, "what is not refused is carried out");
          return none();
        });
      }
      case 21: {
        const Index head = in_.number();
        return sides_.call([&](Twin& s) {
          Matrix out(in_rows(s, head), s.cache.shape().head_dim);
          s.cache.copy_keys(head, out);
          s.cache.copy_values(head, out);
          return out;
        });
      }
      case 22: {
        const bool save = in_.flag();
        const std::filesystem::path path = scratch() / "cache";
        return sides_.call([&](Twin& s) { return save ? pith::save_cache(s.cache, path) : pith::load_cache(s.cache, path), none(); });
      }
      case 23:
        return sides_.call([](Twin& s) { return s.cache.freeze(), none(); });
    }
  }
  static Index in_rows(Twin& s, Index head) { return head >= 0 && head < s.cache.shape().num_kv_heads ? s.cache.size(head) : 0; }

  void append() {
    const Index tokens = in_.below(7), width = heads() * cache().shape().head_dim - (in_.below(16) == 0 ? 1 : 0);
    const Matrix k = rows(tokens, width), v = rows(in_.below(16) == 0 ? tokens + 1 : tokens, width);
    const auto marks = [&](std::uint8_t rarely) {
      return static_cast<std::size_t>(in_.below(rarely) != 0 ? 0 : in_.below(8) == 0 ? in_.below(9) : tokens);
    };
    std::vector<pith::TokenKind> kinds(marks(2));
    for (auto& kind : kinds) kind = static_cast<pith::TokenKind>(in_.below(32) == 0 ? 200 : in_.below(3));
    std::vector<pith::Position> positions(marks(8));
    pith::Position next = cache().next_position();
    for (pith::Position& p : positions) {
      p = in_.below(8) == 0 ? static_cast<pith::Position>(in_.number()) : next;
      next = static_cast<pith::Position>(std::int64_t(p) + 1 + in_.below(2));
    }
    std::vector<float> masses(marks(4));
    for (float& mass : masses) mass = in_.below(16) == 0 ? static_cast<float>(in_.real()) : static_cast<float>(1 + in_.below(3));
    const pith::AppendOptions how{.phase = in_.flag() ? pith::Phase::prefill : pith::Phase::decode,
                                  .more = in_.below(6) == 0,
                                  .kinds = kinds,
                                  .positions = positions,
                                  .masses = masses};
    if (tokens > 0) compare_room(tokens, how);
    sides_.call([&](Twin& s) { return s.cache.append(k, v, how), none(); });
  }

  /// check_room() refuses what reserve() and append() refuse, and nothing else.
  void compare_room(Index tokens, const pith::AppendOptions& how) {
    if (how.phase == pith::Phase::decode && tokens > 1) return;  // one by one, with an eviction after each
    const auto width = heads() * cache().shape().head_dim;
    const Matrix zeros = Matrix::Zero(tokens, width);
    std::optional<pith::KvCache<T>> trial;
    if (attempt([&] { trial.emplace(cache().clone()); }) != Outcome::done) return;  // in the prompt buffer
    auto* const buffer = how.phase == pith::Phase::prefill ? &sides_.told().prompt_buffer : nullptr;
    const Outcome expected = attempt([&] { pith::detail::CacheInternals::state(cache()).check_room(tokens, how, buffer); });
    const Outcome outcome = attempt([&] {
      if (buffer != nullptr) trial->reserve(tokens, buffer);
      trial->append(zeros, zeros, how);
    });
    demand((expected == Outcome::done) == (outcome == Outcome::done), "check_room() refuses what the verbs refuse");
  }

  /// What a loop does: append, attend, evict.
  void turn() {
    const Index tokens = 1 + in_.below(3), d = cache().shape().head_dim;
    const Matrix k = rows(tokens, heads() * d), v = rows(tokens, heads() * d), q = rows(tokens, cache().shape().num_heads * d);
    const auto phase = in_.flag() ? pith::Phase::prefill : pith::Phase::decode;
    sides_.both([&](Twin& s) -> Matrix { return pith_test::KvStream<T>::feed(s.cache, q, k, v, phase); });
  }

  /// Attention of one head, of right and of wrong shapes.
  void observe() {
    const Index head = in_.below(8) == 0 ? in_.number() : in_.below(2), group = cache().shape().group();
    const Index held = in_rows(sides_.told(), head), queries = in_.below(4) * group + (in_.below(16) == 0 ? 1 : 0);
    const auto about = [&](Index n) { return std::max<Index>(0, in_.below(12) == 0 ? n - 1 + in_.below(3) : n); };
    const Matrix weights = Matrix(rows(about(queries), about(held))).cwiseAbs();
    const Matrix log_sum = rows(in_.below(8) == 0 ? 0 : 1, about(queries));
    const Matrix asked = rows(in_.below(8) == 0 ? 0 : about(queries), about(cache().shape().head_dim));
    const auto first = static_cast<pith::Position>(in_.below(4) == 0 ? in_.number() : -1);
    sides_.call([&](Twin& s) {
      s.cache.observe({.kv_head = head,
                       .weights = weights,
                       .log_sum = pith::ConstVectorRef<float>(log_sum.data(), log_sum.size()),
                       .queries = asked,
                       .first_query = first});
      return none();
    });
  }

  Reader& in_;
  Twins<Twin> sides_;
};

template <pith::KvStorage T> void call_twins(Reader& in) {
  const KvCase c = drawn_case(in);
  std::optional<CacheCalls<T>> calls;
  if (attempt([&] { calls.emplace(in, c); }) == Outcome::done) calls->run();
}

}  // namespace

void run_cache(Bytes bytes) {
  Reader in(bytes);
  switch (in.below(6)) {
    case 0:
    case 1:
      return replay(in);
    case 2:
      return call_twins<float>(in);
    case 3:
      return call_twins<pith::Q8>(in);
    case 4:
      return call_twins<pith::Kv<pith::Q8, pith::Rotated<pith::Q4>>>(in);
    default:
      return call_twins<pith::Rotated<pith::Q4>>(in);
  }
}

}  // namespace pith_fuzz
