#include "data/data_loader.h"

#include <algorithm>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

namespace narrowgauge::data {
namespace {

void require_slice(int64_t index, int64_t first, int64_t count, int64_t global_batch_size,
                   int64_t num_batches) {
  if (index < 0 || index >= num_batches) {
    throw std::out_of_range("expected a batch in [0, " + std::to_string(num_batches) + "), got " +
                            std::to_string(index));
  }
  if (first < 0 || count < 0 || count > global_batch_size - first) {
    throw std::out_of_range("expected samples within the global batch of " +
                            std::to_string(global_batch_size) + ", got " + std::to_string(count) +
                            " from " + std::to_string(first));
  }
}

Batch empty_batch(int64_t batch_size, int64_t seq_len) {
  Batch batch{batch_size, seq_len, {}, {}, {}, 0};
  batch.inputs.resize(batch_size * seq_len);
  batch.targets.resize(batch_size * seq_len);
  return batch;
}

// Inputs and targets of one row from the tokens at `begin`; what the stream no longer has is
// padded. `window`: room for seq_len + 1 tokens.
void fill_row(const TokenDataset& dataset, int64_t begin, std::span<int64_t> window, Batch& batch,
              int64_t row) {
  const int64_t available = std::clamp<int64_t>(dataset.num_tokens() - begin, 0, batch.seq_len + 1);
  dataset.read(std::min(begin, dataset.num_tokens()), window.first(available));
  const int64_t num_targets = std::max<int64_t>(available - 1, 0);
  const auto inputs = batch.inputs.begin() + row * batch.seq_len;
  const auto targets = batch.targets.begin() + row * batch.seq_len;
  std::copy_n(window.begin(), num_targets, inputs);
  std::fill_n(inputs + num_targets, batch.seq_len - num_targets, 0);
  std::copy_n(window.begin() + 1, num_targets, targets);
  std::fill_n(targets + num_targets, batch.seq_len - num_targets, kIgnoredTarget);
  batch.num_valid_tokens += num_targets;
}

}  // namespace

DataLoader::DataLoader(std::shared_ptr<const TokenDataset> dataset,
                       const DataLoaderOptions& options)
    : dataset_(std::move(dataset)),
      options_(options),
      order_(dataset_->num_tokens(), options.seq_len, options.seed, options.shuffle) {
  if (options.global_batch_size < 1 || windows_per_epoch() < options.global_batch_size) {
    throw std::invalid_argument(
        "expected data for at least one global batch of " +
        std::to_string(options.global_batch_size) + " windows, got " +
        std::to_string(windows_per_epoch()) + " (" + std::to_string(dataset_->num_tokens()) +
        " tokens in windows of " + std::to_string(options.seq_len) +
        "); add data, or lower training.global_batch_size or training.seq_len");
  }
}

Batch DataLoader::batch(int64_t step, int64_t first_sample_in_batch, int64_t num_samples) const {
  const int64_t num_steps = std::numeric_limits<int64_t>::max() / options_.global_batch_size;
  require_slice(step, first_sample_in_batch, num_samples, options_.global_batch_size, num_steps);
  const int64_t seq_len = options_.seq_len;
  Batch batch = empty_batch(num_samples, seq_len);
  if (options_.document_ids) batch.document_ids.resize(batch.inputs.size());
  std::vector<int64_t> window(seq_len + 1);
  for (int64_t row = 0; row < num_samples; ++row) {
    const int64_t sample = step * options_.global_batch_size + first_sample_in_batch + row;
    const int64_t begin = order_.window_begin(sample);
    fill_row(*dataset_, begin, window, batch, row);
    if (options_.document_ids) {
      const std::span<int32_t> ids(batch.document_ids);
      dataset_->read_document_ids(begin, ids.subspan(row * seq_len, seq_len));
    }
  }
  return batch;
}

ValidationLoader::ValidationLoader(std::shared_ptr<const TokenDataset> dataset, int64_t seq_len,
                                   int64_t global_batch_size)
    : dataset_(std::move(dataset)), seq_len_(seq_len), global_batch_size_(global_batch_size) {
  if (seq_len < 1 || global_batch_size < 1) {
    throw std::invalid_argument("expected seq_len and global_batch_size of at least 1, got " +
                                std::to_string(seq_len) + " and " +
                                std::to_string(global_batch_size));
  }
  const int64_t num_targets = dataset_->num_tokens() - 1;
  if (num_targets < 1) {
    throw std::invalid_argument("expected at least 2 tokens of validation data, got " +
                                std::to_string(dataset_->num_tokens()) +
                                "; raise data.validation_fraction or name data.validation");
  }
  const int64_t num_windows = (num_targets - 1) / seq_len + 1;
  num_batches_ = (num_windows - 1) / global_batch_size + 1;
}

Batch ValidationLoader::batch(int64_t index, int64_t first_sample_in_batch,
                              int64_t num_samples) const {
  require_slice(index, first_sample_in_batch, num_samples, global_batch_size_, num_batches_);
  Batch batch = empty_batch(num_samples, seq_len_);
  std::vector<int64_t> window(seq_len_ + 1);
  for (int64_t row = 0; row < num_samples; ++row) {
    const int64_t sample = index * global_batch_size_ + first_sample_in_batch + row;
    fill_row(*dataset_, sample * seq_len_, window, batch, row);
  }
  return batch;
}

}  // namespace narrowgauge::data
