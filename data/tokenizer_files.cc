#include "data/tokenizer_files.h"

#include <xxhash.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>

namespace narrowgauge::data {
namespace {

// Part of every fingerprint: raise it when a correction here changes ids of unchanged files.
constexpr std::string_view kAlgorithmVersion = "1";

}  // namespace

std::string read_tokenizer_file(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    throw std::runtime_error("expected a tokenizer file, got the directory " + path);
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (file && file.peek() != std::ifstream::traits_type::eof()) {
    content << file.rdbuf();
  }
  if (!file.is_open() || file.bad()) {
    throw std::runtime_error("expected a readable tokenizer file, got " + path + ": " +
                             std::strerror(errno) + "; check tokenizer.path");
  }
  if (content.tellp() <= 0) {
    throw std::runtime_error("expected a tokenizer file, got an empty one: " + path);
  }
  return std::move(content).str();
}

std::string tokenizer_fingerprint(std::string_view kind, std::span<const std::string> contents) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  XXH3_128bits_update(state.get(), kAlgorithmVersion.data(), kAlgorithmVersion.size());
  for (const std::string& content : contents) {
    const uint64_t size = content.size();
    XXH3_128bits_update(state.get(), &size, sizeof(size));
    XXH3_128bits_update(state.get(), content.data(), content.size());
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  char text[33];
  std::snprintf(text, sizeof(text), "%016" PRIx64 "%016" PRIx64, static_cast<uint64_t>(hash.high64),
                static_cast<uint64_t>(hash.low64));
  return std::string(kind) + ":" + text;
}

}  // namespace narrowgauge::data
