#include "data/encode_pipeline.h"

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

namespace narrowgauge::data {
namespace {

// Short records share a job, so that a thread is woken once for many lines.
constexpr uint64_t kJobBytes = uint64_t{1} << 16;
constexpr uint64_t kMaxBytesInFlight = uint64_t{1} << 27;
constexpr size_t kJobsPerThread = 8;

}  // namespace

EncodePipeline::EncodePipeline(TextSource& source, const Tokenizer& tokenizer, int num_threads,
                               ChatFormat chat)
    : source_(source), tokenizer_(tokenizer), chat_(std::move(chat)) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
}

EncodePipeline::~EncodePipeline() {
  const std::lock_guard lock(mutex_);
  is_stopped_ = true;
  has_work_.notify_all();
}

std::optional<std::vector<EncodedRecord>> EncodePipeline::next() {
  while (!is_read_ && in_order_.size() < kJobsPerThread * threads_.size() &&
         (in_order_.empty() || bytes_in_flight_ < kMaxBytesInFlight)) {
    is_read_ = !read_job();
  }
  if (in_order_.empty()) return std::nullopt;
  const auto job = std::move(in_order_.front());
  in_order_.pop_front();
  {
    std::unique_lock lock(mutex_);
    has_result_.wait(lock, [&] { return job->is_done; });
  }
  bytes_in_flight_ -= job->bytes;
  if (job->error) std::rethrow_exception(job->error);
  return std::move(job->results);
}

// Hands the next records to the threads; false at the end of the source. An error in reading takes
// its place in the order, behind the records read before it.
bool EncodePipeline::read_job() {
  auto job = std::make_shared<Job>();
  bool is_more = true;
  try {
    while (is_more && job->bytes < kJobBytes) {
      auto record = source_.next();
      is_more = record.has_value();
      if (!is_more) break;
      job->bytes += record->bytes.size();
      job->records.push_back(std::move(*record));
    }
  } catch (...) {
    job->error = std::current_exception();
    is_more = false;
  }
  if (job->records.empty() && !job->error) return false;
  bytes_in_flight_ += job->bytes;
  in_order_.push_back(job);
  const std::lock_guard lock(mutex_);
  waiting_.push_back(std::move(job));
  has_work_.notify_one();
  return is_more;
}

void EncodePipeline::work() {
  while (true) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      has_work_.wait(lock, [&] { return is_stopped_ || !waiting_.empty(); });
      if (is_stopped_) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    try {
      for (auto& record : job->records) job->results.push_back(encode(std::move(record)));
    } catch (...) {
      job->error = std::current_exception();  // stands before an error of reading
    }
    job->records.clear();
    const std::lock_guard lock(mutex_);
    job->is_done = true;
    has_result_.notify_one();
  }
}

EncodedRecord EncodePipeline::encode(Record record) const {
  if (chat_.chat_template) return encode_conversation(std::move(record));
  EncodedRecord encoded{.ids = {}, .text_bytes = 0, .ends_document = record.ends_document};
  const std::string text = source_.decode(std::move(record));
  encoded.text_bytes = text.size();
  if (text.empty()) return encoded;
  encoded.ids = tokenizer_.encode_document(text);
  const auto eos = tokenizer_.eos_id();
  if (eos && (encoded.ids.empty() || encoded.ids.back() != *eos)) encoded.ids.push_back(*eos);
  return encoded;
}

EncodedRecord EncodePipeline::encode_conversation(Record record) const {
  const std::string place = record.path + ":" + std::to_string(record.line) + ": ";
  const jinja::Json object = source_.decode_object(std::move(record));
  try {
    ChatTokens tokens = encode_chat(*chat_.chat_template, tokenizer_, read_conversation(object),
                                    chat_.train_on_input);
    return {.ids = std::move(tokens.ids),
            .ignored = std::move(tokens.ignored),
            .text_bytes = tokens.text_bytes,
            .ends_document = true};
  } catch (const std::exception& error) {
    throw std::runtime_error(place + error.what());
  }
}

}  // namespace narrowgauge::data
