#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::data {

struct BpeTrainerOptions {
  int64_t vocab_size = 2000;  // special tokens and the 256 bytes included
  int num_threads = 1;
  // Take the first ids, in this order. The first is the end of a document.
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  std::string pre_tokenizer = "llama3";  // llama3 | gpt2
  // Called now and then from the calling thread with the part done, 0 to 1, of a stage.
  std::function<void(double fraction, std::string_view stage)> progress = nullptr;
};

// A byte-level BPE learns nothing more from text beyond this; see read_documents in text_source.h.
inline constexpr uint64_t kEnoughTrainingBytes = uint64_t{256} << 20;

// Throws std::invalid_argument for options that make no sense.
void check_bpe_options(const BpeTrainerOptions& options);

// Trains a byte-level BPE and returns the text of its tokenizer.json. The result is a function of
// the documents and the options alone, whatever the threads, and equals that of Hugging Face's
// BpeTrainer with the byte alphabet: of the most frequent pairs, the one of smallest ids (left,
// then right) merges first. It has fewer than vocab_size entries when the text runs out of pairs.
//
// Throws std::invalid_argument as check_bpe_options does, for documents without a word and,
// with the document's index, for text that is not UTF-8.
std::string train_bpe(std::span<const std::string_view> documents,
                      const BpeTrainerOptions& options);

// The tokenizer_config.json to go with it, so that transformers knows where a document ends.
std::string tokenizer_config_json(const BpeTrainerOptions& options);

}  // namespace narrowgauge::data
