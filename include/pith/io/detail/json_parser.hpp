#pragma once

#include <nlohmann/json.hpp>

#include <pith/io/detail/json_events.hpp>

namespace pith { inline namespace v0 { namespace detail {

// Not inline: a program that declares an instance extern leaves all of the parser to the source file that instantiates it.
template <class Bytes, class Receiver> void read_events(Bytes first, Bytes last, Receiver& receiver) {
  nlohmann::json::sax_parse(first, last, &receiver);
}

}}}  // namespace pith::v0::detail
