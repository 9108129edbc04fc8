// The file of a session: refused, and then the session goes on as one that was never shown the file; or loaded, and then it can be saved
// again, taken back and gone on from. The first byte chooses the policy.
#include <array>
#include <memory>
#include <vector>

#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "fuzz/fuzz.hpp"
#include "fuzz/tiny_sessions.hpp"

namespace pith_fuzz {
namespace {

using Session = pith::Session<float, float>;

Session begun(std::size_t kind) {
  Session session = start_tiny(kind);
  session.prefill(tiny_prompt());
  for (const pith::Token t : {3, 1, 4}) session.decode(t);
  return session;
}

}  // namespace

void run_session_file(Bytes bytes) {
  if (bytes.empty()) return;
  const std::size_t kind = tiny_kind(bytes[0]);
  const std::filesystem::path path = scratch() / "session.safetensors", again = scratch() / "again.safetensors";
  write_file(path, text_of(bytes.subspan(1)));
  Session session = begun(kind);
  const Outcome outcome = attempt([&] { pith::load_session(session, path); });
  demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::memory, "a session is refused as a file");
  if (outcome != Outcome::done) {
    Session twin = begun(kind);
    demand(same_session(session, twin), "a file that is refused changes nothing");
    for (const pith::Token t : {1, 5, 9}) demand(same_logits(session.decode(t), twin.decode(t)), "a file that is refused changes nothing");
    return;
  }
  pith::save_session(session, again);
  Session other = start_tiny(kind);
  demand(attempt([&] { pith::load_session(other, again); }) == Outcome::done, "a session that was loaded can be saved and loaded again");
  demand(same_session(session, other), "saved and loaded again, a session is the same");
  for (int turn = 0; turn < 2; ++turn) {
    const Outcome next = attempt([&] {
      session.checkpoint();
      const pith::Position from = session.next_position();
      for (const pith::Token t : {1, 5, 9}) session.decode(t);
      session.crop(from + turn);
    });
    if (next != Outcome::done) attempt([&] { session.clear(); });
    attempt([&] { session.prefill(tiny_prompt()); });
  }
}

}  // namespace pith_fuzz
