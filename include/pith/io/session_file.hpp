#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/safetensors.hpp>
#include <pith/io/safetensors_writer.hpp>
#include <pith/kv/snapshot.hpp>
#include <pith/model/session.hpp>

namespace pith { inline namespace v0 {

/// Saves the state of a session as a safetensors file: rows as stored, positions, the policies' statistics, and the logits after the newest
/// token. Model, adapter, policies and prefix are not saved: the file names them by fingerprint and layout, and they must be present when
/// it is loaded.
///
/// Heap     a copy of the rows
/// Throws   StateError inside a journal, FormatError with the system's error
template <class S, KvStorage T> void save_session(const Session<S, T>& session, const std::filesystem::path& path);

/// Continues from a saved session with the same model, storage, policies and prefix.
///
/// Throws   FormatError for a file not written by save_session(), a damaged one, or one of a different session; the session is then
///          unchanged
template <class S, KvStorage T> void load_session(Session<S, T>& session, const std::filesystem::path& path);

/// Overloads for one cache of a user's own loop.
template <KvStorage T> void save_cache(const KvCache<T>& cache, const std::filesystem::path& path);
template <KvStorage T> void load_cache(KvCache<T>& cache, const std::filesystem::path& path);

namespace detail {

inline constexpr std::string_view session_format = "pith session 1";

/// The element type of stored rows; codes, and rows whose keys and values differ, are saved as bytes.
template <KvStorage T> using StoredUnit = std::conditional_t<PlainStorage<coded_t<T>>, coded_t<T>, std::uint8_t>;

template <KvStorage T> void write_cache(SafetensorsWriter& writer, const std::string& prefix, const KvSnapshot<T>& s) {
  using Unit = StoredUnit<T>;
  static_assert(sizeof(Unit) == sizeof(T));
  const auto add = [&](const char* name, DType dtype, const auto& values, Index rows) {
    const Index n = static_cast<Index>(values.size());
    writer.add(prefix + name, dtype, {rows, rows == 0 ? 0 : n / rows},
               std::as_bytes(std::span(values.data(), static_cast<std::size_t>(n))));
  };
  const std::array<std::int64_t, 6> progress{s.next, s.next_rope_position, s.unevicted, s.prefill, s.more, s.lost_initial};
  writer.metadata(prefix + "layout", s.layout);
  add("progress", DType::i64, std::span(progress).first(s.lost_initial == 0 ? 5 : 6), 1);
  add("heads", DType::i64, s.heads, static_cast<Index>(s.heads.size()) / 3);
  add("keys", dtype_of<Unit>(), s.keys, s.rows());
  add("values", dtype_of<Unit>(), s.values, s.rows());
  add("positions", DType::i32, s.positions, s.rows());
  if (!s.rope_positions.empty()) add("angles", DType::i32, s.rope_positions, s.rows());
  add("kinds", DType::u8, s.kinds, s.rows());
  writer.add(prefix + "stats", s.stats);
  writer.add(prefix + "memory", s.memory);
  if (!s.masses.empty()) add("masses", dtype_of<arithmetic_t<T>>(), s.masses, s.rows());
  if (!s.gate.empty()) add("gate", dtype_of<arithmetic_t<T>>(), s.gate, 1);
}

class SnapshotReader {
 public:
  explicit SnapshotReader(const std::filesystem::path& path) : file_(Safetensors::map(path)) {
    if (text_of("format") != session_format) refuse(text("is not a saved session: its format is ", in_quotes(text_of("format"))));
  }

  template <KvStorage T> KvSnapshot<T> cache(const std::string& prefix) const {
    const std::vector<std::int64_t> progress = values<std::int64_t>(prefix + "progress", DType::i64);
    if (progress.size() != 5 && progress.size() != 6)
      refuse(text("has ", progress.size(), " numbers in ", in_quotes(prefix + "progress"), ", expected 5 or 6"));
    for (const std::int64_t n : progress)
      if (n < 0 || n > (std::numeric_limits<Position>::max)()) refuse(text("has ", n, " in ", in_quotes(prefix + "progress")));
    using Unit = StoredUnit<T>;
    return {.layout = text_of(prefix + "layout"),
            .next = static_cast<Position>(progress[0]),
            .next_rope_position = static_cast<Position>(progress[1]),
            .unevicted = static_cast<Index>(progress[2]),
            .lost_initial = static_cast<Index>(progress.size() == 6 ? progress[5] : 0),
            .prefill = progress[3] != 0,
            .more = progress[4] != 0,
            .heads = values<std::int64_t>(prefix + "heads", DType::i64),
            .keys = values<T>(prefix + "keys", dtype_of<Unit>()),
            .values = values<T>(prefix + "values", dtype_of<Unit>()),
            .positions = values<Position>(prefix + "positions", DType::i32),
            .rope_positions = optional<Position>(prefix + "angles", DType::i32),
            .kinds = values<TokenKind>(prefix + "kinds", DType::u8),
            .stats = matrix<arithmetic_t<T>>(prefix + "stats"),
            .memory = matrix<arithmetic_t<T>>(prefix + "memory"),
            .masses = optional<arithmetic_t<T>>(prefix + "masses", dtype_of<arithmetic_t<T>>()),
            .gate = optional<arithmetic_t<T>>(prefix + "gate", dtype_of<arithmetic_t<T>>())};
  }

  std::string text_of(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    return found == file_.metadata().end() ? std::string() : found->second;
  }

  template <class S> Matrix<S> matrix(const std::string& name) const {
    const TensorInfo& info = typed(name, dtype_of<S>());
    if (info.shape.size() != 2) refuse(text("has tensor ", in_quotes(name), " ", shape_list(info.shape), ", expected a matrix"));
    return file_.template load_matrix<S>(name);
  }

  std::uint64_t fingerprint() const { return number("fingerprint", text_of("fingerprint")); }
  /// Fingerprint of the adapter in use when saved; 0: none.
  std::uint64_t adapter() const { return text_of("adapter") == "none" ? 0 : number("adapter", text_of("adapter")); }
  /// The first row that an activated LoRA changed; -1: not said.
  Position adapter_start() const {
    const std::string digits = text_of("adapter_start");
    if (digits.empty()) return -1;
    const std::uint64_t start = number("adapter_start", digits);
    if (start > static_cast<std::uint64_t>((std::numeric_limits<Position>::max)())) refuse(text("has adapter_start ", in_quotes(digits)));
    return static_cast<Position>(start);
  }

  [[noreturn]] void refuse(const std::string& why) const { raise<FormatError>("pith: ", in_quotes(file_.name()), " ", why); }

 private:
  const TensorInfo& typed(const std::string& name, DType dtype) const {
    const TensorInfo& info = file_.at(name);
    if (info.dtype != dtype) refuse(text("has tensor ", in_quotes(name), " of ", dtype_name(info.dtype), ", expected ", dtype_name(dtype)));
    return info;
  }

  std::uint64_t number(const char* key, const std::string& digits) const {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size())
      refuse(text("has ", key, " ", in_quotes(digits), ", expected a number"));
    return value;
  }

  template <class X> std::vector<X> values(const std::string& name, DType dtype) const {
    const std::span<const std::byte> bytes = file_.bytes(typed(name, dtype));
    std::vector<X> out(bytes.size() / sizeof(X));
    if (!out.empty()) std::memcpy(static_cast<void*>(out.data()), bytes.data(), out.size() * sizeof(X));
    return out;
  }

  template <class X> std::vector<X> optional(const std::string& name, DType dtype) const {
    return file_.find(name) == nullptr ? std::vector<X>() : values<X>(name, dtype);
  }

  Safetensors file_;
};

inline std::string layer_prefix(std::size_t layer) { return text("layers.", layer, "."); }

/// A writer with the metadata of a session file.
inline SafetensorsWriter session_writer() {
  SafetensorsWriter writer;
  writer.metadata("format", std::string(session_format));
  writer.metadata("adapter", "none");
  return writer;
}

}  // namespace detail

template <class S, KvStorage T> void save_session(const Session<S, T>& session, const std::filesystem::path& path) {
  const SessionSnapshot<S, T> s = session.snapshot();
  SafetensorsWriter writer = detail::session_writer();
  writer.metadata("fingerprint", std::to_string(s.fingerprint));
  if (s.adapter != 0) writer.metadata("adapter", std::to_string(s.adapter));
  if (s.adapter_start >= 0) writer.metadata("adapter_start", std::to_string(s.adapter_start));
  writer.metadata("layers", std::to_string(s.layers.size()));
  writer.add("logits", s.logits);
  for (std::size_t layer = 0; layer < s.layers.size(); ++layer) detail::write_cache(writer, detail::layer_prefix(layer), s.layers[layer]);
  writer.write(path);
}

template <class S, KvStorage T> void load_session(Session<S, T>& session, const std::filesystem::path& path) {
  const detail::SnapshotReader reader(path);
  const std::size_t layers = session.caches().size();
  if (const std::string held = reader.text_of("layers"); held != std::to_string(layers))
    reader.refuse(detail::text("holds ", detail::in_quotes(held), " layers, expected ", layers));
  SessionSnapshot<S, T> s{.fingerprint = reader.fingerprint(),
                          .adapter = reader.adapter(),
                          .adapter_start = reader.adapter_start(),
                          .logits = reader.template matrix<S>("logits")};
  for (std::size_t layer = 0; layer < layers; ++layer) s.layers.push_back(reader.template cache<T>(detail::layer_prefix(layer)));
  if (const std::string wrong = session.problem(s); !wrong.empty()) reader.refuse("is a session " + wrong);
  session.restore(s);
}

template <KvStorage T> void save_cache(const KvCache<T>& cache, const std::filesystem::path& path) {
  SafetensorsWriter writer = detail::session_writer();
  detail::write_cache(writer, "", cache.snapshot());
  writer.write(path);
}

template <KvStorage T> void load_cache(KvCache<T>& cache, const std::filesystem::path& path) {
  const detail::SnapshotReader reader(path);
  if (reader.adapter() != 0) reader.refuse("was saved under an adapter: a cache alone knows none");
  const KvSnapshot<T> s = reader.template cache<T>("");
  if (const std::string wrong = cache.problem(s); !wrong.empty()) reader.refuse("is " + wrong);
  cache.restore(s);
}

}}  // namespace pith::v0
