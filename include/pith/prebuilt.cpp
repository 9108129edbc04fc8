// All of pith::prebuilt in one source, for builds without CMake, whose target compiles the four side by side.
#include <pith/prebuilt/adapters.cpp>
#include <pith/prebuilt/decoders.cpp>
#include <pith/prebuilt/folders.cpp>
#include <pith/prebuilt/text.cpp>
