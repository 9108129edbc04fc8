#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <string_view>

#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>
#include <pith/io/detail/peft_kinds/boft.hpp>
#include <pith/io/detail/peft_kinds/hra.hpp>
#include <pith/io/detail/peft_kinds/ia3.hpp>
#include <pith/io/detail/peft_kinds/loha.hpp>
#include <pith/io/detail/peft_kinds/lokr.hpp>
#include <pith/io/detail/peft_kinds/miss.hpp>
#include <pith/io/detail/peft_kinds/oft.hpp>
#include <pith/io/detail/peft_kinds/randlora.hpp>
#include <pith/io/detail/peft_kinds/vera.hpp>

// The kinds of adapter folder beyond LoRA that change projections.
namespace pith { inline namespace v0 { namespace detail {

struct PeftKindEntry {
  std::string_view peft_type;
  std::span<const std::string_view> keys;  ///< of the config, beside the common ones
  std::shared_ptr<const PeftKind> (*make)(const JsonFields& config);

  bool has_key(std::string_view key) const { return std::find(keys.begin(), keys.end(), key) != keys.end(); }
};

template <class Kind> PeftKindEntry kind_entry() {
  return {Kind::peft_type, Kind::keys,
          [](const JsonFields& config) -> std::shared_ptr<const PeftKind> { return std::make_shared<const Kind>(config); }};
}

template <class... Kinds> struct KindsOf {
  static std::span<const PeftKindEntry> entries() {
    static const std::array<PeftKindEntry, sizeof...(Kinds)> all{kind_entry<Kinds>()...};
    return all;
  }
  /// Calls act with the kind as what it is.
  template <class Act> static void with(const PeftKind& kind, const Act& act) {
    const auto is = [&]<class Kind>(const Kind* own) { return own != nullptr && (act(*own), true); };
    static_cast<void>((is(dynamic_cast<const Kinds*>(&kind)) || ...));
  }
};
using PeftKinds = KindsOf<Ia3Kind, VeraKind, LohaKind, LokrKind, OftKind, BoftKind, HraKind, MissKind, RandLoraKind>;

/// The kind of a peft_type; nullptr: none of these.
inline const PeftKindEntry* find_peft_kind(std::string_view peft_type) {
  const std::span<const PeftKindEntry> kinds = PeftKinds::entries();
  const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const PeftKindEntry& kind) { return kind.peft_type == peft_type; });
  return found == kinds.end() ? nullptr : &*found;
}

// What a kind computes is a template of the scalar, not a virtual function for both scalars: it is compiled where an adapter is loaded, for
// that scalar, and not wherever a header of io is included.

/// Reads what all modules of a folder share.
template <class S>
KindShared<S> kind_shared(const PeftKind& kind, const Safetensors& file, const KindTensors& found, Index most_in, Index most_out) {
  KindShared<S> out = {};
  PeftKinds::with(kind, [&](const auto& own) {
    if constexpr (requires { own.template projections<S>(file, found, most_in, most_out); })
      out = own.template projections<S>(file, found, most_in, most_out);
  });
  return out;
}

template <class S> LinearAdapter<S> kind_change(const PeftKind& kind, const KindModule& module, const KindPlace<S>& place) {
  LinearAdapter<S> out;
  PeftKinds::with(kind, [&](const auto& own) { out = own.template overlay<S>(module, place); });
  return out;
}

}}}  // namespace pith::v0::detail
