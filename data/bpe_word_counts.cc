#include "data/bpe_word_counts.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#include "data/bpe_piece_cache.h"
#include "data/pre_tokenizer.h"

namespace narrowgauge::data {
namespace {

// Open addressing over words that the documents hold; grows at half full.
class WordTable {
 public:
  WordTable() : slots_(size_t{1} << 12) {}

  void add(std::string_view word, int64_t count) {
    if (2 * num_words_ >= slots_.size()) {
      grow();
    }
    Slot& slot = find(word, BpePieceCache::hash(word));
    if (slot.entry.count == 0) {
      slot = {BpePieceCache::hash(word), {word, 0}};
      ++num_words_;
    }
    slot.entry.count += count;
  }

  template <typename Sink>
  void for_each(const Sink& sink) const {
    for (const Slot& slot : slots_) {
      if (slot.entry.count > 0) {
        sink(slot.entry);
      }
    }
  }

 private:
  struct Slot {
    uint64_t hash = 0;
    WordCount entry{{}, 0};
  };

  Slot& find(std::string_view word, uint64_t hash) {
    size_t index = hash & (slots_.size() - 1);
    while (slots_[index].entry.count > 0 &&
           (slots_[index].hash != hash || slots_[index].entry.word != word)) {
      index = (index + 1) & (slots_.size() - 1);
    }
    return slots_[index];
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.entry.count > 0) {
        find(slot.entry.word, slot.hash) = slot;
      }
    }
  }

  std::vector<Slot> slots_;
  size_t num_words_ = 0;
};

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

constexpr size_t kChunkBytes = 256 * 1024;

// Parts of the documents of about kChunkBytes, cut before a space that follows a letter.
std::vector<std::string_view> chunks_of(std::span<const std::string_view> documents) {
  std::vector<std::string_view> chunks;
  for (std::string_view rest : documents) {
    while (rest.size() > kChunkBytes) {
      size_t cut = kChunkBytes;
      while (cut < rest.size() && !(rest[cut] == ' ' && is_ascii_letter(rest[cut - 1]))) {
        ++cut;
      }
      chunks.push_back(rest.substr(0, cut));
      rest.remove_prefix(cut);
    }
    chunks.push_back(rest);
  }
  return chunks;
}

}  // namespace

std::vector<WordCount> count_words(std::span<const std::string_view> documents,
                                   const UnicodeRegex& pattern, int num_threads,
                                   const std::function<void(double)>& progress) {
  const std::vector<std::string_view> chunks = chunks_of(documents);
  const auto num_workers =
      std::clamp<size_t>(static_cast<size_t>(std::max(num_threads, 1)), 1, chunks.size() + 1);
  std::vector<WordTable> tables(num_workers);
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;

  // The calling thread is worker 0, so that it alone reports; it may find all chunks taken.
  const auto work = [&](size_t worker) {
    try {
      RegexScratch scratch;
      for (size_t i = next++; i < chunks.size(); i = next++) {
        for_each_isolated(pattern, chunks[i], scratch,
                          [&](std::string_view word) { tables[worker].add(word, 1); });
        if (worker == 0) {
          progress(static_cast<double>(i + 1) / static_cast<double>(chunks.size()));
        }
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
      next = chunks.size();
    }
  };
  std::vector<std::thread> threads;
  for (size_t worker = 1; worker < num_workers; ++worker) {
    threads.emplace_back(work, worker);
  }
  work(0);
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
  progress(1.0);
  for (size_t worker = 1; worker < num_workers; ++worker) {
    tables[worker].for_each(
        [&](const WordCount& entry) { tables[0].add(entry.word, entry.count); });
  }
  std::vector<WordCount> counts;
  tables[0].for_each([&](const WordCount& entry) { counts.push_back(entry); });
  return counts;
}

}  // namespace narrowgauge::data
