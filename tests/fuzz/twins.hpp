#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include <pith/kv/snapshot.hpp>

#include "fuzz/fuzz.hpp"
#include "support/random_matrix.hpp"
#include "support/seen_cache.hpp"

namespace pith_fuzz {

template <class X> bool same_list(const std::vector<X>& a, const std::vector<X>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(static_cast<const void*>(a.data()), b.data(), a.size() * sizeof(X)) == 0);
}

template <pith::KvStorage T> bool same_snapshot(const pith::KvSnapshot<T>& a, const pith::KvSnapshot<T>& b) {
  return a.layout == b.layout && a.next == b.next && a.next_rope_position == b.next_rope_position && a.unevicted == b.unevicted &&
         a.prefill == b.prefill && a.more == b.more && a.heads == b.heads && same_list(a.keys, b.keys) && same_list(a.values, b.values) &&
         a.positions == b.positions && a.rope_positions == b.rope_positions && a.kinds == b.kinds &&
         pith_test::same_bits(a.stats, b.stats) && pith_test::same_bits(a.memory, b.memory) && same_list(a.masses, b.masses) &&
         same_list(a.gate, b.gate);
}

/// Whether two caches are the same to the last bit, as far as each shows it.
template <class Cache> bool same_cache(const Cache& a, const Cache& b) {
  if (!(pith_test::snapshot_of(a) == pith_test::snapshot_of(b))) return false;
  decltype(a.snapshot()) x, y;
  const Outcome first = attempt([&] { x = a.snapshot(); }), second = attempt([&] { y = b.snapshot(); });
  return first == second && (first != Outcome::done || same_snapshot(x, y));
}

/// Numbers of a snapshot that no cache may have come to.
template <pith::KvStorage T> void damage(pith::KvSnapshot<T>& s, Reader& in) {
  const pith::Index choice = in.below(14), value = in.number();
  const auto any = [&](auto& list) {
    if (!list.empty()) list[in.byte() % list.size()] = static_cast<std::remove_reference_t<decltype(list[0])>>(value);
  };
  const auto resized = [&](auto& list) { list.resize(static_cast<std::size_t>(in.below(9))); };
  switch (choice) {
    case 0:
      s.next = static_cast<pith::Position>(value);
      break;
    case 1:
      s.next_rope_position = static_cast<pith::Position>(value);
      break;
    case 2:
      s.unevicted = value;
      break;
    case 3:
      s.prefill = !s.prefill;
      break;
    case 4:
      s.more = !s.more;
      break;
    case 5:
      any(s.heads);
      break;
    case 6:
      any(s.positions);
      break;
    case 7:
      any(s.rope_positions);
      break;
    case 8:
      if (!s.kinds.empty()) s.kinds[0] = static_cast<pith::TokenKind>(value);
      break;
    case 9:
      any(s.masses);
      break;
    case 10:
      resized(s.heads);
      break;
    case 11:
      resized(s.positions);
      break;
    case 12:
      resized(s.keys);
      break;
    case 13:
      s.stats.resize(in.below(3), in.below(3));
      s.stats.setZero();
      break;
  }
}

inline pith::Matrix<float> none() { return pith::Matrix<float>(0, 0); }
inline pith::Matrix<float> one(double number) { return pith::Matrix<float>::Constant(1, 1, static_cast<float>(number)); }

/// Two of a kind that are told the same. One of them also hears the calls that are refused.
template <class Side> class Twins {
 public:
  template <class... Args> explicit Twins(const Args&... args) : told_(args...), spared_(args...) {}
  Side& told() { return told_; }

  /// A call that is carried out, or changes nothing: what is refused to one the other is not asked. Returns numbers, compared bit for bit.
  template <class F> void call(F&& f) {
    pith::Matrix<float> here, there;
    if (attempt([&] { here = f(told_); }) == Outcome::done) {
      demand(attempt([&] { there = f(spared_); }) == Outcome::done, "a call that was carried out is carried out by the twin");
      demand(pith_test::same_bits(here, there), "twins return the same numbers");
    } else {
      demand(told_.same(spared_), "a refused call changes nothing");
    }
  }
  /// A sequence of calls, each of which may be refused: both are told.
  template <class F> void both(F&& f) {
    pith::Matrix<float> here, there;
    const Outcome first = attempt([&] { here = f(told_); }), second = attempt([&] { there = f(spared_); });
    demand(first == second, "twins refuse the same");
    demand(first != Outcome::done || pith_test::same_bits(here, there), "twins return the same numbers");
  }
  void compare() { demand(told_.same(spared_), "twins are the same"); }

 private:
  Side told_, spared_;
};

}  // namespace pith_fuzz
