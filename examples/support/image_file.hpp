#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <pith/vision.hpp>

#ifdef PITH_EXAMPLES_STB  // Debian's libstb-dev
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#include <stb_image.h>
#endif

// Reads images from files, and draws an image with its tokens over it.
namespace example {

inline std::vector<unsigned char> bytes_in(const std::filesystem::path& path) {
  constexpr std::uintmax_t most = std::uintmax_t{1} << 29;
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error || size > most) throw std::runtime_error(path.string() + (error ? " cannot be read" : " is too large for an image"));
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Reads a binary PPM: "P6 WIDTH HEIGHT 255", whitespace and comments between, one byte of it before the pixels.
inline pith::Image read_ppm(const std::vector<unsigned char>& bytes, const std::string& name) {
  std::size_t at = 2;
  const auto refuse = [&]() -> pith::Image { throw std::runtime_error(name + " is no binary PPM of 8 bits a color"); };
  const auto number = [&]() -> pith::Index {
    for (; at < bytes.size(); ++at) {
      if (bytes[at] == '#')
        while (at + 1 < bytes.size() && bytes[at] != '\n') ++at;
      else if (bytes[at] > ' ')
        break;
    }
    pith::Index value = 0;
    const std::size_t first = at;
    for (; at < bytes.size() && bytes[at] >= '0' && bytes[at] <= '9' && value < (1 << 24); ++at) value = 10 * value + (bytes[at] - '0');
    return at > first ? value : -1;
  };
  if (bytes.size() < 2 || bytes[0] != 'P' || bytes[1] != '6') return refuse();
  const pith::Index width = number(), height = number(), most = number();
  if (width < 1 || height < 1 || most != 255 || width > pith::max_image_pixels / height) return refuse();
  const auto size = static_cast<std::size_t>(3 * width * height);
  if (at >= bytes.size() || bytes.size() - at - 1 < size) return refuse();
  const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(at + 1);
  return {{first, first + static_cast<std::ptrdiff_t>(size)}, height, width};
}

/// Reads an image: PPM, and with stb_image PNG and JPEG. An alpha channel is dropped; EXIF rotation is not applied.
inline pith::Image read_image(const std::filesystem::path& path) {
  const std::vector<unsigned char> bytes = bytes_in(path);
  if (bytes.size() > 2 && bytes[0] == 'P' && bytes[1] == '6') return read_ppm(bytes, path.string());
#ifdef PITH_EXAMPLES_STB
  int width = 0, height = 0, channels = 0;
  unsigned char* pixels = stbi_load_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width, &height, &channels, 3);
  if (pixels == nullptr) throw std::runtime_error(path.string() + ": " + stbi_failure_reason());
  pith::Image out{{pixels, pixels + std::size_t(3) * static_cast<std::size_t>(width) * static_cast<std::size_t>(height)}, height, width};
  stbi_image_free(pixels);
  return out;
#else
  throw std::runtime_error(path.string() + " is no PPM; PNG and JPEG need stb_image (apt-get install libstb-dev, and configure again)");
#endif
}

/// A PNG of uncompressed blocks, as base64.
inline std::string png_base64(const pith::Image& image) {
  std::vector<std::uint8_t> raw, png{0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  const auto row = static_cast<std::size_t>(3 * image.width);
  for (std::size_t y = 0; y < static_cast<std::size_t>(image.height); ++y) {
    raw.push_back(0);  // no filter
    raw.insert(raw.end(), image.pixels.begin() + static_cast<std::ptrdiff_t>(y * row),
               image.pixels.begin() + static_cast<std::ptrdiff_t>((y + 1) * row));
  }
  const auto add_number = [](std::vector<std::uint8_t>& to, std::uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) to.push_back(static_cast<std::uint8_t>(value >> shift));
  };
  const auto add_chunk = [&](const char* type, const std::vector<std::uint8_t>& data) {
    add_number(png, static_cast<std::uint32_t>(data.size()));
    const std::size_t first = png.size();
    png.insert(png.end(), type, type + 4);
    png.insert(png.end(), data.begin(), data.end());
    std::uint32_t crc = 0xffffffff;
    for (std::size_t i = first; i < png.size(); ++i) {
      crc ^= png[i];
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
    }
    add_number(png, ~crc);
  };
  std::vector<std::uint8_t> head, data{0x78, 0x01};
  add_number(head, static_cast<std::uint32_t>(image.width));
  add_number(head, static_cast<std::uint32_t>(image.height));
  head.insert(head.end(), {8, 2, 0, 0, 0});
  std::uint32_t a = 1, b = 0;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (i % 65535 == 0) {
      const std::size_t length = std::min<std::size_t>(65535, raw.size() - i);
      for (const std::size_t byte : {std::size_t(i + length == raw.size()), length & 255, length >> 8, ~length & 255, ~length >> 8 & 255})
        data.push_back(static_cast<std::uint8_t>(byte));
    }
    data.push_back(raw[i]);
    a = (a + raw[i]) % 65521, b = (b + a) % 65521;
  }
  add_number(data, b << 16 | a);
  add_chunk("IHDR", head);
  add_chunk("IDAT", data);
  add_chunk("IEND", {});
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (std::size_t i = 0; i < png.size(); i += 3) {
    const auto at = [&](std::size_t j) { return j < png.size() ? std::uint32_t(png[j]) : 0u; };
    const std::uint32_t three = at(i) << 16 | at(i + 1) << 8 | at(i + 2);
    for (int d = 0; d < 4; ++d) out += i + static_cast<std::size_t>(d) > png.size() ? '=' : digits[three >> (18 - 6 * d) & 63];
  }
  return out;
}

}  // namespace example
