#include "data/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <unordered_map>

#include "data/bpe_byte_alphabet.h"
#include "data/bpe_word_counts.h"
#include "data/pre_tokenizer.h"
#include "data/utf8.h"

namespace narrowgauge::data {
namespace {

using nlohmann::ordered_json;
using Pair = std::pair<int32_t, int32_t>;

struct PairHash {
  size_t operator()(const Pair& pair) const {
    const uint64_t key =
        static_cast<uint64_t>(pair.first) << 32 | static_cast<uint32_t>(pair.second);
    return key * 0x9E3779B97F4A7C15 >> 17;
  }
};

// Merges the most frequent pair of adjacent symbols again and again, keeping the counts of all
// pairs up to date word by word. The arithmetic is that of Hugging Face's BpeTrainer::do_train,
// counts of overlapping pairs ("aaa" has two) included, so that ties and ranks come out equal.
class MergeTrainer {
 public:
  // `tokens`: the initial vocabulary; `symbols`: the id of each byte.
  MergeTrainer(std::vector<std::string> tokens, const std::vector<int32_t>& symbols,
               const std::vector<WordCount>& counts);

  // Until the vocabulary has vocab_size entries or no pair is left.
  void train(int64_t vocab_size, const std::function<void(double)>& progress);

  const std::vector<std::string>& tokens() const { return tokens_; }  // in the byte alphabet
  const std::vector<Pair>& merges() const { return merges_; }

 private:
  struct Word {
    std::vector<int32_t> symbols;
    int64_t count;
  };
  struct Candidate {
    Pair pair;
    int64_t count;
    std::vector<int32_t> words;  // that have, or had, the pair; a word may be listed twice

    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  struct Change {
    Pair pair;
    int sign;
  };

  int32_t add_token(const std::string& token);
  void merge_word(Word& word, const Pair& pair, int32_t merged, std::vector<Change>& changes) const;
  void merge(const Candidate& top);
  void push(Candidate candidate);
  void push_new_candidates();

  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int32_t> token_ids_;
  std::vector<Word> words_;
  std::vector<Pair> merges_;
  std::unordered_map<Pair, int64_t, PairHash> pair_counts_;
  std::unordered_map<Pair, std::vector<int32_t>, PairHash> new_words_;  // since the last push
  std::vector<Candidate> queue_;  // a heap, the next to merge on top
};

MergeTrainer::MergeTrainer(std::vector<std::string> tokens, const std::vector<int32_t>& symbols,
                           const std::vector<WordCount>& counts)
    : tokens_(std::move(tokens)) {
  for (size_t id = 0; id < tokens_.size(); ++id) {
    token_ids_.emplace(tokens_[id], static_cast<int32_t>(id));
  }
  words_.reserve(counts.size());
  for (const WordCount& entry : counts) {
    if (entry.word.size() < 2) {
      continue;
    }
    Word& word = words_.emplace_back(Word{{}, entry.count});
    for (const char byte : entry.word) {
      word.symbols.push_back(symbols[static_cast<unsigned char>(byte)]);
    }
    const auto index = static_cast<int32_t>(words_.size() - 1);
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
      const Pair pair(word.symbols[i], word.symbols[i + 1]);
      pair_counts_[pair] += word.count;
      std::vector<int32_t>& where = new_words_[pair];
      if (where.empty() || where.back() != index) {
        where.push_back(index);
      }
    }
  }
  push_new_candidates();
}

void MergeTrainer::train(int64_t vocab_size, const std::function<void(double)>& progress) {
  const auto start = static_cast<double>(tokens_.size());
  while (static_cast<int64_t>(tokens_.size()) < vocab_size && !queue_.empty()) {
    std::pop_heap(queue_.begin(), queue_.end());
    Candidate top = std::move(queue_.back());
    queue_.pop_back();
    const int64_t count = pair_counts_[top.pair];
    if (top.count != count) {  // merges since have changed it
      top.count = count;
      push(std::move(top));
      continue;
    }
    if (count < 1) {
      break;
    }
    merge(top);
    progress((static_cast<double>(tokens_.size()) - start) /
             (static_cast<double>(vocab_size) - start));
  }
}

int32_t MergeTrainer::add_token(const std::string& token) {
  const auto [entry, is_new] = token_ids_.emplace(token, static_cast<int32_t>(tokens_.size()));
  if (is_new) {
    tokens_.push_back(token);
  }
  return entry->second;
}

void MergeTrainer::merge(const Candidate& top) {
  const int32_t merged = add_token(tokens_[static_cast<size_t>(top.pair.first)] +
                                   tokens_[static_cast<size_t>(top.pair.second)]);
  merges_.push_back(top.pair);
  std::vector<Change> changes;
  for (const int32_t index : top.words) {
    Word& word = words_[static_cast<size_t>(index)];
    changes.clear();
    merge_word(word, top.pair, merged, changes);
    for (const Change& change : changes) {
      pair_counts_[change.pair] += change.sign * word.count;
      if (change.sign > 0) {
        std::vector<int32_t>& where = new_words_[change.pair];
        if (where.empty() || where.back() != index) {
          where.push_back(index);
        }
      }
    }
  }
  push_new_candidates();
}

void MergeTrainer::merge_word(Word& word, const Pair& pair, int32_t merged,
                              std::vector<Change>& changes) const {
  std::vector<int32_t>& symbols = word.symbols;
  size_t written = 0;
  for (size_t i = 0; i < symbols.size(); ++written) {
    if (i + 1 == symbols.size() || symbols[i] != pair.first || symbols[i + 1] != pair.second) {
      symbols[written] = symbols[i++];
      continue;
    }
    if (written > 0) {
      changes.push_back({{symbols[written - 1], pair.first}, -1});
      changes.push_back({{symbols[written - 1], merged}, 1});
    }
    if (i + 2 < symbols.size()) {
      changes.push_back({{pair.second, symbols[i + 2]}, -1});
      changes.push_back({{merged, symbols[i + 2]}, 1});
    }
    symbols[written] = merged;
    i += 2;
  }
  symbols.resize(written);
}

void MergeTrainer::push(Candidate candidate) {
  queue_.push_back(std::move(candidate));
  std::push_heap(queue_.begin(), queue_.end());
}

void MergeTrainer::push_new_candidates() {
  for (auto& [pair, words] : new_words_) {
    const int64_t count = pair_counts_[pair];
    if (count > 0) {
      push({pair, count, std::move(words)});
    }
  }
  new_words_.clear();
}

ordered_json pre_tokenizer_json(const BpeTrainerOptions& options) {
  const bool is_gpt2 = options.pre_tokenizer == "gpt2";
  const ordered_json byte_level = {{"type", "ByteLevel"},
                                   {"add_prefix_space", false},
                                   {"trim_offsets", true},
                                   {"use_regex", is_gpt2}};
  if (is_gpt2) {
    return byte_level;
  }
  const ordered_json split = {{"type", "Split"},
                              {"pattern", {{"Regex", kLlama3Pattern}}},
                              {"behavior", "Isolated"},
                              {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", ordered_json::array({split, byte_level})}};
}

ordered_json added_tokens_json(const BpeTrainerOptions& options) {
  ordered_json tokens = ordered_json::array();
  for (const std::string& token : options.special_tokens) {
    tokens.push_back({{"id", tokens.size()},
                      {"content", token},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", true}});
  }
  return tokens;
}

std::string tokenizer_json(const MergeTrainer& trainer, const BpeTrainerOptions& options) {
  ordered_json vocab = ordered_json::object();
  // An ordered object is a vector of pairs. Tokens differ, so there is no need of its operator[],
  // which searches all of them.
  auto& members = vocab.get_ref<ordered_json::object_t&>();
  for (size_t id = 0; id < trainer.tokens().size(); ++id) {
    members.emplace_back(trainer.tokens()[id], id);
  }
  // As "left right", which every version of the libraries reads: the byte alphabet has no space.
  ordered_json merges = ordered_json::array();
  for (const auto& [left, right] : trainer.merges()) {
    merges.push_back(trainer.tokens()[static_cast<size_t>(left)] + " " +
                     trainer.tokens()[static_cast<size_t>(right)]);
  }
  const ordered_json document = {{"version", "1.0"},
                                 {"truncation", nullptr},
                                 {"padding", nullptr},
                                 {"added_tokens", added_tokens_json(options)},
                                 {"normalizer", nullptr},
                                 {"pre_tokenizer", pre_tokenizer_json(options)},
                                 {"post_processor", nullptr},
                                 {"decoder",
                                  {{"type", "ByteLevel"},
                                   {"add_prefix_space", true},
                                   {"trim_offsets", true},
                                   {"use_regex", true}}},
                                 {"model",
                                  {{"type", "BPE"},
                                   {"dropout", nullptr},
                                   {"unk_token", nullptr},
                                   {"continuing_subword_prefix", nullptr},
                                   {"end_of_word_suffix", nullptr},
                                   {"fuse_unk", false},
                                   {"byte_fallback", false},
                                   {"ignore_merges", false},
                                   {"vocab", std::move(vocab)},
                                   {"merges", std::move(merges)}}}};
  return document.dump(1) + "\n";
}

}  // namespace

void check_bpe_options(const BpeTrainerOptions& options) {
  if (options.pre_tokenizer != "llama3" && options.pre_tokenizer != "gpt2") {
    throw std::invalid_argument("expected pre_tokenizer llama3 or gpt2, got '" +
                                options.pre_tokenizer + "'");
  }
  std::set<std::string> seen;
  for (const std::string& token : options.special_tokens) {
    if (token.empty() || !seen.insert(token).second ||
        find_invalid_utf8(token) != std::string_view::npos) {
      throw std::invalid_argument("expected special tokens that differ and are not empty, got '" +
                                  token + "'");
    }
    const auto bytes = from_byte_alphabet(token);
    if (bytes && bytes->size() == 1) {
      throw std::invalid_argument("expected special tokens beside the 256 bytes, got '" + token +
                                  "', which is one of them");
    }
  }
  const auto minimum = static_cast<int64_t>(256 + options.special_tokens.size());
  constexpr int64_t kMaximum = int64_t{1} << 24;
  if (options.vocab_size < minimum || options.vocab_size > kMaximum) {
    throw std::invalid_argument("expected vocab_size from " + std::to_string(minimum) +
                                " (256 bytes and the special tokens) to " +
                                std::to_string(kMaximum) + ", got " +
                                std::to_string(options.vocab_size));
  }
}

std::string train_bpe(std::span<const std::string_view> documents,
                      const BpeTrainerOptions& options) {
  check_bpe_options(options);
  for (size_t i = 0; i < documents.size(); ++i) {
    const size_t offset = find_invalid_utf8(documents[i]);
    if (offset != std::string_view::npos) {
      throw std::invalid_argument("expected UTF-8 text, got an invalid byte at offset " +
                                  std::to_string(offset) + " of document " + std::to_string(i));
    }
  }
  const auto report = [&](std::string_view stage) {
    return [&options, stage](double fraction) {
      if (options.progress) {
        options.progress(fraction, stage);
      }
    };
  };
  const UnicodeRegex pattern(options.pre_tokenizer == "gpt2" ? kGpt2Pattern : kLlama3Pattern);
  const std::vector<WordCount> counts =
      count_words(documents, pattern, options.num_threads, report("counting words"));
  if (counts.empty()) {
    throw std::invalid_argument("expected text to train on, got " +
                                std::to_string(documents.size()) + " documents without any");
  }
  std::vector<std::string> tokens = options.special_tokens;
  std::vector<int32_t> symbols(256);
  for (const AlphabetEntry& entry : byte_alphabet()) {
    symbols[entry.byte] = static_cast<int32_t>(tokens.size());
    tokens.push_back(to_byte_alphabet(std::string(1, static_cast<char>(entry.byte))));
  }
  MergeTrainer trainer(std::move(tokens), symbols, counts);
  trainer.train(options.vocab_size, report("merging"));
  return tokenizer_json(trainer, options);
}

std::string tokenizer_config_json(const BpeTrainerOptions& options) {
  ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                         {"clean_up_tokenization_spaces", false},
                         {"bos_token", nullptr},
                         {"eos_token", nullptr}};
  if (!options.special_tokens.empty()) {
    config["eos_token"] = options.special_tokens.front();
  }
  return config.dump(1) + "\n";
}

}  // namespace narrowgauge::data
