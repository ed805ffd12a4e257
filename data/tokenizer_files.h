#pragma once

#include <span>
#include <string>
#include <string_view>

namespace narrowgauge::data {

// The bytes of the file. Throws std::runtime_error naming the file and the system's reason.
std::string read_tokenizer_file(const std::string& path);

// "kind:" and a hash of the contents, in order and with their sizes.
std::string tokenizer_fingerprint(std::string_view kind, std::span<const std::string> contents);

}  // namespace narrowgauge::data
