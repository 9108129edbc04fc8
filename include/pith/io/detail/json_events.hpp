#pragma once

// read_events(), declared without the parser and the receivers: what <pith/prebuilt.hpp> declares extern.
namespace pith { inline namespace v0 { namespace detail {

class JsonBytes;
class JsonBuilder;
class HeaderReader;

/// Parses a text and gives its parts to a receiver of nlohmann's events.
template <class Bytes, class Receiver> void read_events(Bytes first, Bytes last, Receiver& receiver);

}}}  // namespace pith::v0::detail
