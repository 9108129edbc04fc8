#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/prompt_buffer.hpp>

// Members of a session whose copies are independent, so that a session is cloned member by member.
namespace pith { inline namespace v0 { namespace detail {

/// The caches of all layers; a copy clones each of them.
template <class Cache> class SessionCaches : public std::vector<Cache> {
 public:
  SessionCaches() = default;
  SessionCaches(const SessionCaches& other) : std::vector<Cache>() {
    this->reserve(other.size());
    for (const Cache& cache : other) this->push_back(cache.clone());
  }
  SessionCaches(SessionCaches&&) noexcept = default;
  SessionCaches& operator=(SessionCaches&&) noexcept = default;

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Cache& cache : *this) sum += cache.bytes();
    return sum;
  }
  /// Tokens that every layer can take one by one.
  Index room() const {
    Index least = this->front().room();
    for (const Cache& cache : *this) least = (std::min)(least, cache.room());
    return least;
  }
};

/// A prompt buffer, or none; a copy has an empty one of the same sizes.
template <KvStorage T> class SessionPromptBuffer : public std::unique_ptr<KvPromptBuffer<T>> {
  using Base = std::unique_ptr<KvPromptBuffer<T>>;

 public:
  SessionPromptBuffer() = default;
  SessionPromptBuffer(const SessionPromptBuffer& other) : Base(other ? new KvPromptBuffer<T>(other->another()) : nullptr) {}
  SessionPromptBuffer(SessionPromptBuffer&&) noexcept = default;
  SessionPromptBuffer& operator=(SessionPromptBuffer&&) noexcept = default;
  using Base::operator=;
};

/// A workspace; a copy has memory of its own and the same executor.
class SessionWorkspace : public Workspace {
 public:
  SessionWorkspace() = default;
  SessionWorkspace(std::size_t bytes, ExecutorRef executor) : Workspace(bytes, executor), least_(bytes) {}
  SessionWorkspace(const SessionWorkspace& other) : Workspace(other.bytes(), other.executor()), least_(other.least_) {}
  SessionWorkspace(SessionWorkspace&&) noexcept = default;
  SessionWorkspace& operator=(SessionWorkspace&&) noexcept = default;

  /// Holds at least `more` bytes besides those it was made with; nothing may be taken.
  void make_room(std::size_t more) {
    if (least_ + more > bytes()) static_cast<Workspace&>(*this) = Workspace(least_ + more, executor());
  }

 private:
  std::size_t least_ = 0;
};

}}}  // namespace pith::v0::detail
