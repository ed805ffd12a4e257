#include "trainer/named_tokenizer.h"

namespace narrowgauge::trainer {

std::unique_ptr<data::Tokenizer> open_named_tokenizer(const std::string& path,
                                                      const std::string& kind) {
  return data::load_tokenizer(kind.empty() ? data::guess_tokenizer(path)
                                           : data::TokenizerOptions{kind, path});
}

}  // namespace narrowgauge::trainer
