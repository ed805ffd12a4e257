#include "data/token_dataset.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "data/random_tokens.h"
#include "data/token_file.h"

namespace narrowgauge::data {
namespace {

using Storages = std::vector<std::shared_ptr<const TokenStorage>>;

constexpr const char* kRandomTokens = "random_tokens";
// More than any run can read, and far from overflow in whatever is computed from it.
constexpr int64_t kRandomTrainTokens = int64_t{1} << 48;
constexpr int64_t kRandomValidationTokens = int64_t{1} << 20;

// Index of the document that holds token `position`.
size_t document_at(std::span<const DocumentEnd> documents, int64_t position) {
  const auto found =
      std::upper_bound(documents.begin(), documents.end(), static_cast<uint64_t>(position),
                       [](uint64_t at, const DocumentEnd& document) { return at < document.end; });
  return static_cast<size_t>(found - documents.begin());
}

bool is_random(const std::vector<std::string>& sources) {
  if (std::find(sources.begin(), sources.end(), kRandomTokens) == sources.end()) return false;
  if (sources.size() > 1) {
    throw std::invalid_argument("expected random_tokens as the only source, got it among " +
                                std::to_string(sources.size()) + "; remove it or the others");
  }
  return true;
}

std::shared_ptr<const TokenStorage> open_cache(const std::string& path, int64_t vocab_size) {
  auto cache = std::make_shared<const TokenCache>(path);
  if (vocab_size > 0 && cache->vocab_size() > vocab_size) {
    throw std::invalid_argument("'" + path + "': made with a vocabulary of " +
                                std::to_string(cache->vocab_size()) +
                                ", but the model's vocab_size is " + std::to_string(vocab_size) +
                                "; raise model.vocab_size or prepare the data again");
  }
  return cache;
}

PrepareOptions prepare_options(const DatasetOptions& options) {
  if (options.invalid_utf8 != "error" && options.invalid_utf8 != "replace") {
    throw std::invalid_argument("expected data.invalid_utf8 of 'error' or 'replace', got '" +
                                options.invalid_utf8 + "'");
  }
  PrepareOptions prepare;
  prepare.text.text_field = options.text_field;
  prepare.text.replace_invalid_utf8 = options.invalid_utf8 == "replace";
  prepare.chat = options.chat;
  prepare.cache_dir = options.cache_dir;
  prepare.num_threads = options.num_threads;
  prepare.progress = options.progress;
  return prepare;
}

// A glob over Megatron-LM's files finds both; an index alone is not what anybody means.
void require_ids_beside(const std::string& index_path, const std::vector<std::string>& paths) {
  const std::string ids = index_path.substr(0, index_path.rfind('.')) + ".bin";
  if (std::find(paths.begin(), paths.end(), ids) == paths.end()) {
    throw std::invalid_argument("expected files to train on, got the index '" + index_path +
                                "'; name '" + ids + "'");
  }
}

// The streams of the sources: text first, as one, then files of ids in the order of their paths.
Storages open_sources(const std::vector<std::string>& sources, const DatasetOptions& options,
                      const Tokenizer* tokenizer) {
  const bool is_held_out = options.validation.empty() && options.validation_fraction > 0;
  const DocumentHash hash = is_held_out ? DocumentHash::kContent : DocumentHash::kPosition;
  std::vector<SourceFile> text_files;
  Storages id_files;
  const std::vector<std::string> paths = expand_paths(sources);
  for (const auto& path : paths) {
    if (path.ends_with(".bin")) {
      id_files.push_back(open_token_file(path, options.vocab_size, hash));
    } else if (path.ends_with(".idx")) {
      require_ids_beside(path, paths);
    } else if (path.ends_with(".tokens")) {
      id_files.push_back(open_cache(path, options.vocab_size));
    } else {
      text_files.push_back(describe_file(path));
    }
  }
  Storages storages;
  if (!text_files.empty()) {
    if (tokenizer == nullptr) {
      throw std::invalid_argument(
          "expected files of token ids (.bin, .tokens) without a tokenizer, "
          "got '" +
          text_files.front().path + "'; set tokenizer.kind");
    }
    storages.push_back(prepare_tokens(text_files, *tokenizer, prepare_options(options)));
  }
  std::move(id_files.begin(), id_files.end(), std::back_inserter(storages));
  return storages;
}

// The part of `ranges` that lies in `storages`, the streams of source `name`.
std::shared_ptr<TokenDataset> select_source(const std::vector<TokenRange>& ranges,
                                            const Storages& storages, const std::string& name) {
  std::vector<TokenRange> selected;
  std::copy_if(ranges.begin(), ranges.end(), std::back_inserter(selected), [&](const auto& range) {
    return std::find(storages.begin(), storages.end(), range.storage) != storages.end();
  });
  if (selected.empty()) {
    throw std::invalid_argument("'" + name +
                                "': expected tokens to train on, but all are held out; lower "
                                "data.validation_fraction or name data.validation");
  }
  return std::make_shared<TokenDataset>(std::move(selected));
}

// What is trained on and what is held out of it.
Split open_train(const DatasetOptions& options, const Tokenizer* tokenizer, double fraction) {
  std::vector<Storages> sources;
  if (options.separates_sources) {
    for (const std::string& source : options.train) {
      sources.push_back(open_sources({source}, options, tokenizer));
    }
  } else {
    sources.push_back(open_sources(options.train, options, tokenizer));
  }
  Storages all;
  for (const Storages& storages : sources) all.insert(all.end(), storages.begin(), storages.end());
  // At once, so that a text that several sources have is on one side.
  HeldOut parts = hold_out(all, fraction);
  Split split;
  for (size_t i = 0; options.separates_sources && i < sources.size(); ++i) {
    split.sources.push_back(select_source(parts.train, sources[i], options.train[i]));
  }
  split.train = std::make_shared<TokenDataset>(std::move(parts.train));
  if (!parts.validation.empty()) {
    split.validation = std::make_shared<TokenDataset>(std::move(parts.validation));
  }
  return split;
}

std::shared_ptr<TokenDataset> open_random(const DatasetOptions& options, bool is_validation) {
  std::shared_ptr<const TokenStorage> storage =
      is_validation ? make_random_tokens(options.vocab_size, ~options.seed, kRandomValidationTokens)
                    : make_random_tokens(options.vocab_size, options.seed, kRandomTrainTokens);
  const int64_t num_tokens = storage->num_tokens();
  return std::make_shared<TokenDataset>(
      std::vector<TokenRange>{{std::move(storage), 0, num_tokens}});
}

}  // namespace

TokenDataset::TokenDataset(std::vector<TokenRange> ranges) : ranges_(std::move(ranges)) {
  starts_.reserve(ranges_.size() + 1);
  starts_.push_back(0);
  for (const auto& range : ranges_) {
    if (range.begin < 0 || range.begin >= range.end || range.end > range.storage->num_tokens()) {
      throw std::invalid_argument("expected a range of tokens of '" + range.storage->name() +
                                  "', got [" + std::to_string(range.begin) + ", " +
                                  std::to_string(range.end) + ") of " +
                                  std::to_string(range.storage->num_tokens()));
    }
    starts_.push_back(starts_.back() + range.end - range.begin);
    const auto documents = range.storage->documents();
    num_documents_ += static_cast<int64_t>(document_at(documents, range.end - 1) -
                                           document_at(documents, range.begin) + 1);
  }
}

int64_t TokenDataset::num_windows(int64_t seq_len) const {
  return num_tokens() > seq_len ? (num_tokens() - 1) / seq_len : 0;
}

template <typename T, typename Visit>
void TokenDataset::for_each_part(int64_t begin, std::span<T> out, Visit visit) const {
  if (begin < 0 || static_cast<int64_t>(out.size()) > num_tokens() - begin) {
    throw std::out_of_range("expected tokens within " + std::to_string(num_tokens()) + ", got [" +
                            std::to_string(begin) + ", " +
                            std::to_string(begin + static_cast<int64_t>(out.size())) + ")");
  }
  auto next = std::upper_bound(starts_.begin(), starts_.end(), begin);
  while (!out.empty()) {
    const size_t index = static_cast<size_t>(next - starts_.begin()) - 1;
    const size_t size = std::min(out.size(), static_cast<size_t>(*next - begin));
    visit(ranges_[index], ranges_[index].begin + begin - starts_[index], out.first(size));
    out = out.subspan(size);
    begin += static_cast<int64_t>(size);
    ++next;
  }
}

void TokenDataset::read(int64_t begin, std::span<int64_t> out) const {
  for_each_part(begin, out, [](const TokenRange& range, int64_t position, std::span<int64_t> part) {
    range.storage->read(position, part);
  });
}

void TokenDataset::read_ignored(int64_t begin, std::span<uint8_t> out) const {
  for_each_part(begin, out, [](const TokenRange& range, int64_t position, std::span<uint8_t> part) {
    range.storage->read_ignored(position, part);
  });
}

std::vector<int64_t> TokenDataset::document_ends() const {
  std::vector<int64_t> ends;
  ends.reserve(num_documents_);
  for (size_t i = 0; i < ranges_.size(); ++i) {
    const TokenRange& range = ranges_[i];
    const auto documents = range.storage->documents();
    const size_t last = document_at(documents, range.end - 1);
    for (size_t document = document_at(documents, range.begin); document < last; ++document) {
      ends.push_back(starts_[i] + static_cast<int64_t>(documents[document].end) - range.begin);
    }
    ends.push_back(starts_[i + 1]);
  }
  return ends;
}

Split open_dataset(const DatasetOptions& options, const Tokenizer* tokenizer) {
  if (options.train.empty()) {
    throw std::invalid_argument("expected sources in data.train, got none");
  }
  if (tokenizer != nullptr && options.vocab_size > 0) {
    check_vocab_size(options.vocab_size, *tokenizer);
  }
  const bool is_held_out = options.validation.empty();
  Split split;
  if (is_random(options.train)) {
    split.train = open_random(options, false);
  } else {
    split = open_train(options, tokenizer, is_held_out ? options.validation_fraction : 0);
  }
  if (is_held_out) return split;
  if (is_random(options.validation)) {
    split.validation = open_random(options, true);
  } else {
    const Storages storages = open_sources(options.validation, options, tokenizer);
    split.validation = std::make_shared<TokenDataset>(hold_out(storages, 0).train);
  }
  return split;
}

void check_vocab_size(int64_t model_vocab_size, const Tokenizer& tokenizer) {
  if (tokenizer.vocab_size() <= model_vocab_size) return;
  throw std::invalid_argument("expected model.vocab_size of at least the tokenizer's " +
                              std::to_string(tokenizer.vocab_size()) + ", got " +
                              std::to_string(model_vocab_size) +
                              "; raise it, or choose a smaller tokenizer");
}

}  // namespace narrowgauge::data
