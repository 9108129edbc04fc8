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

inline std::span<const PeftKindEntry> peft_kinds() {
  static const std::array<PeftKindEntry, 9> kinds{kind_entry<Ia3Kind>(),  kind_entry<VeraKind>(), kind_entry<LohaKind>(),
                                                  kind_entry<LokrKind>(), kind_entry<OftKind>(),  kind_entry<BoftKind>(),
                                                  kind_entry<HraKind>(),  kind_entry<MissKind>(), kind_entry<RandLoraKind>()};
  return kinds;
}

/// The kind of a peft_type; nullptr: none of these.
inline const PeftKindEntry* find_peft_kind(std::string_view peft_type) {
  const std::span<const PeftKindEntry> kinds = peft_kinds();
  const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const PeftKindEntry& kind) { return kind.peft_type == peft_type; });
  return found == kinds.end() ? nullptr : &*found;
}

}}}  // namespace pith::v0::detail
