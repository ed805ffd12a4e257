#include "data/prepare_tokens.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <thread>

#include "data/byte_tokenizer.h"
#include "data/encode_pipeline.h"

namespace narrowgauge::data {
namespace {

namespace fs = std::filesystem;

// A file of bytes is encoded in pieces: it may be larger than memory, and threads may share it.
constexpr size_t kPieceBytes = size_t{1} << 20;

// Held by the one process, or thread, that makes a cache. The lock file stays: to remove it while
// another process waits for it would let two hold "the" lock.
class FileLock {
 public:
  FileLock(const std::string& path, const ProgressCallback& progress)
      : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    require(descriptor_ >= 0, path);
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
    if (progress) progress("waiting for another process to prepare the same tokens", 0, 0);
    int status = 0;
    do {
      status = ::flock(descriptor_, LOCK_EX);
    } while (status != 0 && errno == EINTR);
    if (status != 0) {
      const int error = errno;
      ::close(descriptor_);
      errno = error;
      require(false, path);
    }
  }
  ~FileLock() { ::close(descriptor_); }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  static void require(bool ok, const std::string& path) {
    if (ok) return;
    throw std::runtime_error(
        "cannot lock '" + path + "': " + std::strerror(errno) +
        "; set data.cache_dir (--cache-dir) to a directory that can be written");
  }

  int descriptor_;
};

// Two identical runs must find the same cache, and any change that could change an id another.
CacheFingerprint fingerprint_of(const std::vector<SourceFile>& files, const Tokenizer& tokenizer,
                                const TextOptions& text, const ChatFormat& chat) {
  std::string key;
  const auto add = [&key](const std::string& part) { key += part + '\0'; };
  add("tokens 1");
  add(tokenizer.fingerprint());
  add(std::to_string(tokenizer.eos_id().value_or(-1)));
  add(text.text_field);
  add(text.replace_invalid_utf8 ? "replace" : "error");
  if (chat.chat_template) {
    add(chat.chat_template->fingerprint());
    add(chat.train_on_input ? "all" : "answers");
  }
  for (const auto& file : files) {
    add(file.path);
    add(std::to_string(file.size_bytes));
    add(std::to_string(file.modified_ns));
  }
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  return {hash.low64, hash.high64};
}

std::string file_name_of(const CacheFingerprint& fingerprint) {
  char name[48];
  std::snprintf(name, sizeof name, "%016llx%016llx.tokens",
                static_cast<unsigned long long>(fingerprint[1]),
                static_cast<unsigned long long>(fingerprint[0]));
  return name;
}

// The cache at `path`, or null when there is none or it cannot be used.
std::shared_ptr<const TokenCache> try_open(const std::string& path,
                                           const CacheFingerprint& fingerprint,
                                           const ProgressCallback& progress) {
  if (!fs::exists(path)) return nullptr;
  std::string why;
  try {
    auto cache = std::make_shared<const TokenCache>(path);
    if (cache->fingerprint() == fingerprint) return cache;
    why = "'" + path + "' was made from other sources than its name says";
  } catch (const std::runtime_error& error) {
    why = error.what();
  }
  if (progress) progress("making the token cache anew: " + why, 0, 0);
  return nullptr;
}

void write_cache(const std::string& path, const CacheFingerprint& fingerprint,
                 const std::vector<SourceFile>& files, const Tokenizer& tokenizer,
                 const PrepareOptions& options) {
  TextOptions text = options.text;
  if (dynamic_cast<const ByteTokenizer*>(&tokenizer) != nullptr) text.piece_bytes = kPieceBytes;
  TextSource source(files, text);
  const bool has_ignored = options.chat.chat_template && !options.chat.train_on_input;
  TokenCacheWriter writer(path, fingerprint, tokenizer.vocab_size(), has_ignored);
  const int num_processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  EncodePipeline pipeline(source, tokenizer,
                          options.num_threads > 0 ? options.num_threads : num_processors,
                          options.chat);
  while (const auto records = pipeline.next()) {
    for (const auto& record : *records) {
      writer.append(record.ids, record.text_bytes, record.ignored);
      if (record.ends_document) writer.end_document();
    }
    if (options.progress) {
      const double read = static_cast<double>(source.bytes_read());
      options.progress("tokenizing", read / static_cast<double>(source.total_bytes()),
                       writer.num_tokens());
    }
  }
  if (writer.num_tokens() == 0) {
    throw std::runtime_error("expected text to train on, got " + std::to_string(files.size()) +
                             " file(s) without any, '" + files.front().path +
                             "' the first of them");
  }
  writer.finish();
}

}  // namespace

std::string default_cache_dir() {
  if (const char* cache = std::getenv("NARROWGAUGE_CACHE"); cache != nullptr && *cache != '\0') {
    return (fs::path(cache) / "tokens").string();
  }
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') {
    throw std::runtime_error(
        "expected HOME or NARROWGAUGE_CACHE to say where caches go, got neither; set "
        "data.cache_dir (--cache-dir)");
  }
  return (fs::path(home) / ".cache" / "narrowgauge" / "tokens").string();
}

std::shared_ptr<const TokenCache> prepare_tokens(const std::vector<SourceFile>& files,
                                                 const Tokenizer& tokenizer,
                                                 const PrepareOptions& options) {
  if (files.empty()) throw std::invalid_argument("expected files to prepare, got none");
  const std::string directory = options.cache_dir.empty() ? default_cache_dir() : options.cache_dir;
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) {
    throw std::runtime_error("cannot create the directory '" + directory + "' for token caches: " +
                             error.message() + "; set data.cache_dir (--cache-dir)");
  }
  const CacheFingerprint fingerprint = fingerprint_of(files, tokenizer, options.text, options.chat);
  const std::string path = (fs::path(directory) / file_name_of(fingerprint)).string();
  if (fs::exists(path)) {
    if (auto cache = try_open(path, fingerprint, nullptr)) return cache;
  }
  const FileLock lock(path + ".lock", options.progress);
  // Another process may have made it while this one waited.
  if (auto cache = try_open(path, fingerprint, options.progress)) return cache;
  write_cache(path, fingerprint, files, tokenizer, options);
  return std::make_shared<const TokenCache>(path);
}

}  // namespace narrowgauge::data
