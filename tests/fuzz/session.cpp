// Calls to a session, sensible and not: each is carried out, or refused by one of pith's errors and changes nothing, as a twin that never
// made the refused calls shows. Speculation, adapters, files and a second session of the batch take part.
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <pith/decode.hpp>
#include <pith/io.hpp>
#include <pith/peft.hpp>

#include "fuzz/tiny_sessions.hpp"
#include "support/tiny_adapters.hpp"

namespace pith_fuzz {
namespace {

using pith::Index;
using pith::Token;
using Matrix = pith::Matrix<float>;
using Session = pith::Session<float, float>;

const pith::ModelAdapter<float>* adapter(Index which) {
  using Adapter = pith::ModelAdapter<float>;
  static const Adapter thorough = pith_test::thorough_adapter(tiny_decoder(), 3);
  static const Adapter prompt(tiny_decoder().adapter_target(), {.prompt = Matrix::Ones(3, 8)});
  static const pith::Decoder<float> other = pith_test::random_decoder<float>(pith_test::tiny_config());
  static const Adapter foreign = pith_test::random_adapter(other, 2, 5);
  const Adapter* const all[] = {nullptr, &thorough, &prompt, &foreign};
  return all[which];
}

pith::KvPrefix frozen() {
  static const pith::KvPrefix prefix = [] {
    Session session = start_tiny(0);
    session.prefill(tiny_prompt().first(3));
    return session.freeze();
  }();
  return prefix;
}

struct Setting {
  std::size_t kind, kind_above, file;
  pith::SessionOptions options;
};

/// A conversation, what speculates on it, and another conversation to decode with it.
struct SessionSide {
  Session session, other;
  pith::PromptLookup<float> lookup{tiny_vocab, {.min_ngram = 1, .memory = 16, .max_draft = 4}};
  pith::SpeculativeDecoder<Session, pith::PromptLookup<float>> speculative{
      session, lookup, {.draft_tokens = std::min<Index>(4, std::max<Index>(1, session.max_chunk() - 1)), .sampler = {.temperature = 0}}};
  std::optional<pith::SessionSnapshot<float, float>> kept;
  std::mt19937_64 rng{1};

  explicit SessionSide(const Setting& s)
      : session(started(s)), other(start_tiny(s.kind_above, {.max_prompt = 12, .max_tokens = 20, .max_draft = 2})) {}

  bool same(const SessionSide& twin) const {
    return same_session(session, twin.session) && same_session(other, twin.other) && speculative.pending() == twin.speculative.pending() &&
           lookup.next_position() == twin.lookup.next_position();
  }

 private:
  static Session started(const Setting& s) {
    const std::array policies{tiny_policy(s.kind, 0), tiny_policy(s.kind_above, 1)};
    return tiny_decoder().start<float>(policies, s.options, pith::make_merge<float>(tiny_ways[s.kind].merge));
  }
};

Matrix tokens_of(std::span<const Token> tokens) {
  Matrix m(1, static_cast<Index>(tokens.size()));
  for (Index i = 0; i < m.cols(); ++i) m(0, i) = static_cast<float>(tokens[static_cast<std::size_t>(i)]);
  return m;
}

class SessionCalls {
 public:
  SessionCalls(Bytes bytes, Setting setting) : in_(bytes), sides_(setting) {}

  void run() {
    for (int i = 0; i < 40 && !in_.done(); ++i) step();
    probe();
  }

 private:
  std::vector<Token> tokens(Index count) {
    std::vector<Token> out = pith_test::random_tokens(static_cast<std::size_t>(count), tiny_vocab, in_.byte() % 4u);
    return out;
  }

  void step() {
    switch (in_.below(26)) {
      default: {  // a prompt, or a piece of one
        const auto text = tokens(in_.below(15));
        const bool more = in_.below(4) == 0;
        return sides_.call([&](SessionSide& s) -> Matrix { return s.session.prefill(text, {.more = more}); });
      }
      case 4:
      case 5:
      case 6: {
        const auto text = tokens(in_.below(7));
        return sides_.call([&](SessionSide& s) -> Matrix { return s.session.decode(text); });
      }
      case 7: {
        std::vector<Token> text = tokens(1 + in_.below(3));
        text[static_cast<std::size_t>(in_.below(static_cast<Index>(text.size())))] = static_cast<Token>(in_.number());
        const bool prompt = in_.flag();
        return sides_.call([&](SessionSide& s) -> Matrix { return prompt ? s.session.prefill(text) : s.session.decode(text); });
      }
      case 8:
      case 9:
        return sides_.call([](SessionSide& s) { return s.session.checkpoint(), none(); });
      case 10:
      case 11: {
        const bool nearby = in_.below(8) != 0;
        const Index back = nearby ? in_.below(8) : in_.number();
        return sides_.call([&](SessionSide& s) {
          const auto to = nearby ? earlier(s.session.next_position(), back) : static_cast<pith::Position>(back);
          return s.session.crop(to), none();
        });
      }
      case 12:
        return sides_.call([](SessionSide& s) { return s.session.clear(), none(); });
      case 13: {
        const Index coming = in_.number();
        return sides_.call([&](SessionSide& s) { return one(static_cast<double>(s.session.make_room(coming))); });
      }
      case 14:
        return sides_.call([](SessionSide& s) { return s.kept = s.session.snapshot(), none(); });
      case 15:
        return restore();
      case 16:
        return file();
      case 17: {
        const auto* const which = adapter(in_.below(4));
        return sides_.call([&](SessionSide& s) { return s.session.use(which), none(); });
      }
      case 18:
        return embeddings();
      case 19:
        return sides_.call([](SessionSide& s) { return s.speculative.resume(s.session.logits()), none(); });
      case 20: {
        const auto text = tokens(in_.below(6));
        return sides_.both([&](SessionSide& s) { return s.speculative.prefill(text), none(); });
      }
      case 21:
      case 22: {
        const Index most = in_.below(3) == 0 ? in_.number() : 9, stop = in_.below(6);
        return sides_.call([&](SessionSide& s) {
          Index told = 0;
          return tokens_of(s.speculative.step(s.rng, most, [&](Token) { return ++told != stop; }));
        });
      }
      case 23: {
        const auto text = tokens(2);
        const bool bad = in_.below(6) == 0;
        return sides_.call([&](SessionSide& s) {
          const std::array<Session*, 2> all{&s.session, bad ? &s.session : &s.other};
          pith::Workspace ws(tiny_decoder().together_workspace_bytes<float>(all));
          Matrix logits(2, tiny_vocab);
          tiny_decoder().decode_together<float>(all, text, logits, ws);
          return logits;
        });
      }
      case 24: {
        const auto text = tokens(in_.below(14));
        const Index what = in_.below(3);
        return sides_.call([&](SessionSide& s) -> Matrix {
          if (what == 0) return s.other.clear(), none();
          return what == 1 ? s.other.prefill(text) : s.other.decode(text);
        });
      }
      case 25:
        return sides_.call([](SessionSide& s) { return one(static_cast<double>(s.session.freeze().fingerprint() >> 40)); });
    }
  }

  void restore() {
    if (!sides_.told().kept) return;
    pith::SessionSnapshot<float, float> kept = *sides_.told().kept;
    if (in_.flag()) damage(kept.layers[static_cast<std::size_t>(in_.below(2))], in_);
    if (in_.below(8) == 0) kept.layers.resize(static_cast<std::size_t>(in_.below(4)));
    if (in_.below(8) == 0) kept.logits.setZero(in_.below(3), in_.below(2) == 0 ? tiny_vocab : 3);
    sides_.call([&](SessionSide& s) { return s.session.restore(kept), none(); });
  }

  /// Saves the session, or takes another one's file.
  void file() {
    const bool save = in_.flag();
    const std::filesystem::path path = scratch() / (in_.below(4) == 0 ? "no such folder/kept" : "kept");
    sides_.call([&](SessionSide& s) {
      save ? pith::save_session(s.session, path) : pith::load_session(s.session, path);
      return none();
    });
  }

  void embeddings() {
    const Index rows = in_.below(14), width = in_.below(8) == 0 ? 7 : 8;
    const Matrix x = pith_test::random_matrix<float>(rows, width, in_.seed());
    std::vector<pith::TokenKind> kinds(static_cast<std::size_t>(in_.below(8) == 0 ? in_.below(14) : rows));
    for (auto& kind : kinds) kind = static_cast<pith::TokenKind>(in_.below(32) == 0 ? 200 : in_.below(3));
    std::vector<float> masses(static_cast<std::size_t>(in_.below(3) != 0 ? 0 : in_.below(8) == 0 ? in_.below(14) : rows));
    for (float& mass : masses) mass = in_.below(16) == 0 ? static_cast<float>(in_.real()) : static_cast<float>(1 + in_.below(3));
    const bool more = in_.below(4) == 0;
    sides_.call([&](SessionSide& s) -> Matrix { return s.session.prefill(x, kinds, {.more = more, .masses = masses}); });
  }

  /// Both go on in the same way, even if a call on one was refused before.
  void probe() {
    sides_.compare();
    const std::vector<Token> text = pith_test::random_tokens(4, tiny_vocab, 9);
    sides_.both([&](SessionSide& s) -> Matrix { return s.session.decode(Token{1}); });
    sides_.both([&](SessionSide& s) -> Matrix { return s.other.decode(Token{1}); });
    sides_.both([&](SessionSide& s) { return tokens_of(s.speculative.step(s.rng)); });
    sides_.both([&](SessionSide& s) { return s.session.crop(s.session.next_position()), none(); });
    sides_.both([&](SessionSide& s) -> Matrix { return s.session.decode(Token{2}); });
    sides_.both([&](SessionSide& s) -> Matrix { return s.session.prefill(std::span(text).first(2)); });
    sides_.compare();
    demand(attempt([&] { sides_.told().session.clear(); }) == Outcome::done, "clear() is never refused");
    demand(attempt([&] { sides_.told().session.use(nullptr); }) == Outcome::done, "an empty session can use no adapter");
  }

  Reader in_;
  Twins<SessionSide> sides_;
};

}  // namespace

void run_session(Bytes bytes) {
  Reader in(bytes);
  Setting setting{.kind = tiny_kind(in.byte()), .kind_above = 0, .file = 0, .options = {}};
  const std::size_t above = in.byte();
  setting.kind_above = above < 192 ? setting.kind : tiny_kind(above);
  const Index sizes = in.byte();
  setting.options = {.max_prompt = std::array<Index, 4>{12, 12, 8, 1}[static_cast<std::size_t>(sizes & 3)],
                     .max_tokens = std::array<Index, 4>{40, 20, 16, 9}[static_cast<std::size_t>(sizes >> 2 & 3)],
                     .max_generated = std::array<Index, 4>{12, 6, 2, 40}[static_cast<std::size_t>(sizes >> 4 & 3)],
                     .max_draft = std::array<Index, 4>{4, 2, 0, 8}[static_cast<std::size_t>(sizes >> 6 & 3)]};
  const std::uint8_t rest = in.byte();
  setting.options.keep_masses = (rest & 3) == 0;
  if ((rest >> 2 & 3) == 3) setting.options.prefix = frozen();
  if (rest > 250) setting.options.max_tokens = in.number();
  if (rest > 252) setting.options.max_generated = in.number();
  std::optional<SessionCalls> calls;
  if (attempt([&] { calls.emplace(in.rest(), setting); }) == Outcome::done) calls->run();
}

}  // namespace pith_fuzz
