#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "data/chat_tokens.h"
#include "data/text_source.h"
#include "data/tokenizer.h"

namespace narrowgauge::data {

struct EncodedRecord {
  std::vector<int32_t> ids;
  std::vector<uint8_t> ignored = {};  // see ChatTokens
  uint64_t text_bytes = 0;
  bool ends_document = true;
};

// How lines of .jsonl files are conversations; without a template they are texts.
struct ChatFormat {
  std::shared_ptr<const ChatTemplate> chat_template;
  bool train_on_input = false;  // the loss takes in what is not an answer, too
};

// Encodes records on several threads and hands the results back in the order of the records, so
// that neither the ids nor the error reported first depend on the number of threads.
class EncodePipeline {
 public:
  // REQUIRES: source and tokenizer outlive the pipeline. num_threads >= 1.
  EncodePipeline(TextSource& source, const Tokenizer& tokenizer, int num_threads,
                 ChatFormat chat = {});
  // Stops after the records that are being encoded now.
  ~EncodePipeline();
  EncodePipeline(const EncodePipeline&) = delete;
  EncodePipeline& operator=(const EncodePipeline&) = delete;

  // The next records, or none at the end. Throws what reading or encoding one of them threw.
  std::optional<std::vector<EncodedRecord>> next();

 private:
  struct Job {
    std::vector<Record> records;
    std::vector<EncodedRecord> results;
    std::exception_ptr error;
    uint64_t bytes = 0;
    bool is_done = false;  // under mutex_
  };

  bool read_job();
  void work();
  EncodedRecord encode(Record record) const;
  EncodedRecord encode_conversation(Record record) const;

  TextSource& source_;
  const Tokenizer& tokenizer_;
  const ChatFormat chat_;
  bool is_read_ = false;
  uint64_t bytes_in_flight_ = 0;
  std::deque<std::shared_ptr<Job>> in_order_;  // only the caller's thread touches it

  std::mutex mutex_;
  std::condition_variable has_work_;
  std::condition_variable has_result_;
  std::deque<std::shared_ptr<Job>> waiting_;  // under mutex_
  bool is_stopped_ = false;                   // under mutex_
  std::vector<std::jthread> threads_;         // last: joins before the rest goes
};

}  // namespace narrowgauge::data
