#include "trainer/data_command.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/document_packing.h"
#include "data/held_out.h"
#include "data/prepare_tokens.h"
#include "data/text_source.h"
#include "data/token_cache.h"
#include "data/token_dataset.h"
#include "data/token_file.h"
#include "trainer/named_tokenizer.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

using Clock = std::chrono::steady_clock;

void print_cache(const data::TokenCache& cache) {
  std::printf("cache       %s\n", cache.name().c_str());
  std::printf("tokens      %lld of %d bytes, ids below %lld\n",
              static_cast<long long>(cache.num_tokens()), cache.token_bytes(),
              static_cast<long long>(cache.vocab_size()));
  std::printf("documents   %zu\n", cache.documents().size());
  std::printf("text        %llu bytes, %.3f a token\n",
              static_cast<unsigned long long>(cache.text_bytes()),
              static_cast<double>(cache.text_bytes()) / static_cast<double>(cache.num_tokens()));
}

void print_split(const std::shared_ptr<const data::TokenCache>& cache, double fraction) {
  const auto split = data::hold_out({cache}, fraction);
  const data::TokenDataset validation(split.validation);
  std::printf("validation  %lld tokens (%.2f %%) of %lld documents\n",
              static_cast<long long>(validation.num_tokens()),
              100.0 * static_cast<double>(validation.num_tokens()) /
                  static_cast<double>(cache->num_tokens()),
              static_cast<long long>(validation.num_documents()));
}

void print_packing(const std::shared_ptr<const data::TokenCache>& cache, int64_t seq_len) {
  const data::TokenDataset whole({{cache, 0, cache->num_tokens()}});
  const data::DocumentPacking packing(whole, seq_len, /*seed=*/0, /*shuffle=*/false);
  std::printf("packing     %lld windows of %lld, %.2f %% filled\n",
              static_cast<long long>(packing.windows_per_epoch()), static_cast<long long>(seq_len),
              100.0 * static_cast<double>(packing.num_targets()) /
                  static_cast<double>(packing.windows_per_epoch() * seq_len));
}

void print_window(const data::TokenStorage& storage, int64_t begin, int64_t size,
                  const data::Tokenizer* tokenizer) {
  std::vector<int64_t> ids(std::min(size, storage.num_tokens() - begin));
  storage.read(begin, ids);
  std::printf("tokens [%lld, %lld)\n", static_cast<long long>(begin),
              static_cast<long long>(begin) + static_cast<long long>(ids.size()));
  std::printf("  %s\n", nlohmann::json(ids).dump().c_str());
  std::vector<uint8_t> ignored(ids.size());
  storage.read_ignored(begin, ignored);
  if (std::find(ignored.begin(), ignored.end(), 1) != ignored.end()) {
    std::string marks;
    for (const uint8_t mark : ignored) marks += mark != 0 ? '-' : '*';
    std::printf("  targets: %s\n", marks.c_str());
  }
  if (tokenizer == nullptr) return;
  const std::vector<int32_t> narrow(ids.begin(), ids.end());
  // A window may begin within a character.
  const auto text = nlohmann::json(tokenizer->decode(narrow))
                        .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::printf("  %s\n", text.c_str());
}

// Prints what the file holds as a whole.
std::shared_ptr<const data::TokenStorage> open_storage(const std::string& path, bool verify) {
  if (path.ends_with(".bin")) {
    auto storage = data::open_token_file(path, 0);
    std::printf("file        %s\ntokens      %lld\ndocuments   %zu\n", path.c_str(),
                static_cast<long long>(storage->num_tokens()), storage->documents().size());
    return storage;
  }
  auto cache = std::make_shared<const data::TokenCache>(path);
  print_cache(*cache);
  if (verify) {
    cache->verify_tokens();
    std::printf("checksum    right\n");
  }
  return cache;
}

}  // namespace

int prepare_data(const DataPrepareOptions& options) {
  const auto tokenizer = open_named_tokenizer(options.tokenizer, options.kind);
  data::PrepareOptions prepare;
  prepare.text.text_field = options.text_field;
  prepare.text.replace_invalid_utf8 = options.replace_invalid_utf8;
  if (!options.chat_template.empty()) {
    prepare.chat = {std::make_shared<const data::ChatTemplate>(
                        data::ChatTemplate::load(options.chat_template, options.tokenizer)),
                    options.train_on_input};
  }
  prepare.cache_dir = options.cache_dir;
  prepare.num_threads = static_cast<int>(options.num_threads);
  bool is_made = false;
  std::shared_ptr<const data::TokenCache> cache;
  const auto start = Clock::now();
  {
    StageProgress progress;  // its line ends before the report
    prepare.progress = [&](std::string_view stage, double done, int64_t) {
      is_made = true;
      progress.update(stage, done);
    };
    cache = data::prepare_tokens(data::find_text_files(options.sources), *tokenizer, prepare);
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  print_cache(*cache);
  print_split(cache, options.validation_fraction);
  if (options.seq_len > 0) print_packing(cache, options.seq_len);
  if (is_made) {
    std::printf("time        %.2f s, %.2f MB/s, %.3f M tokens/s\n", seconds,
                static_cast<double>(cache->text_bytes()) / seconds / 1e6,
                static_cast<double>(cache->num_tokens()) / seconds / 1e6);
  } else {
    std::printf("time        the cache was there already\n");
  }
  return kExitDone;
}

int inspect_data(const DataInspectOptions& options) {
  std::unique_ptr<data::Tokenizer> tokenizer;
  if (!options.tokenizer.empty()) {
    tokenizer = open_named_tokenizer(options.tokenizer, options.kind);
  }
  const auto storage = open_storage(options.cache, options.verify);
  const int64_t num_tokens = storage->num_tokens();
  const int64_t num_there = num_tokens == 0 ? 0 : (num_tokens - 1) / options.window + 1;
  for (int64_t i = 0; i < std::min(options.num_windows, num_there); ++i) {
    print_window(*storage, i * options.window, options.window, tokenizer.get());
  }
  return kExitDone;
}

}  // namespace narrowgauge::trainer
