#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "data/unicode_regex.h"

namespace narrowgauge::data {

struct WordCount {
  std::string_view word;  // into the documents
  int64_t count;
};

// Cuts the documents into words by `pattern` (matches and what lies between) and counts the
// different ones, in parallel. The order of the result is unspecified. `progress` takes the part
// done, from the calling thread.
//
// REQUIRES: documents are well-formed UTF-8; the pattern has a boundary between an ASCII letter and
// a space that does not depend on what surrounds them, as GPT-2's and Llama 3's have: large
// documents are shared between threads there.
std::vector<WordCount> count_words(std::span<const std::string_view> documents,
                                   const UnicodeRegex& pattern, int num_threads,
                                   const std::function<void(double)>& progress);

}  // namespace narrowgauge::data
