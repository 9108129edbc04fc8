#pragma once

#include <memory>
#include <utility>

#include <pith/kv/prompt_buffer.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Holds a prompt buffer while the rows of one cache are in it. The destructor frees the buffer, which may be destroyed before the lease.
template <KvStorage T> class PromptBufferLease {
 public:
  PromptBufferLease() = default;
  /// Throws   StateError if the buffer holds the rows of another cache
  explicit PromptBufferLease(KvPromptBuffer<T>& prompt_buffer) : prompt_buffer_(&prompt_buffer), lent_(prompt_buffer.lent_) {
    if (*lent_)
      raise<StateError>(
          "pith::KvCache: the prompt buffer holds the rows of another cache: evict() or clear() that one first, or lend one of its own");
    *lent_ = true;
  }
  PromptBufferLease(PromptBufferLease&& other) noexcept
      : prompt_buffer_(std::exchange(other.prompt_buffer_, nullptr)), lent_(std::move(other.lent_)) {}
  PromptBufferLease& operator=(PromptBufferLease&& other) noexcept {
    if (this == &other) return *this;
    end();
    prompt_buffer_ = std::exchange(other.prompt_buffer_, nullptr);
    lent_ = std::move(other.lent_);
    return *this;
  }
  ~PromptBufferLease() { end(); }

  bool held() const { return prompt_buffer_ != nullptr; }
  KvPromptBuffer<T>* operator->() const { return prompt_buffer_; }

 private:
  void end() {
    if (lent_) *lent_ = false;
    lent_ = nullptr;
    prompt_buffer_ = nullptr;
  }

  KvPromptBuffer<T>* prompt_buffer_ = nullptr;
  std::shared_ptr<bool> lent_;
};

}}}  // namespace pith::v0::detail
