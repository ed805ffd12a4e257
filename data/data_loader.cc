#include "data/data_loader.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "data/mix64.h"

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
  Batch batch{batch_size, seq_len, {}, {}};
  batch.inputs.resize(batch_size * seq_len);
  batch.targets.resize(batch_size * seq_len);
  return batch;
}

// The windows of a stream from its first token on, the last one padded. Unlike StreamWindows' they
// hold every target.
class WindowsToTheEnd : public WindowSource {
 public:
  WindowsToTheEnd(std::shared_ptr<const TokenDataset> dataset, int64_t seq_len)
      : dataset_(std::move(dataset)), seq_len_(seq_len) {}

  int64_t windows_per_epoch() const override { return (dataset_->num_tokens() - 2) / seq_len_ + 1; }

  void fill_row(int64_t sample, int64_t row, Batch& batch) const override {
    const int64_t begin = sample * seq_len_;
    const int64_t num_targets = std::min(dataset_->num_tokens() - 1 - begin, seq_len_);
    write_piece(*dataset_, begin, num_targets, row, 0, batch);
    write_padding(row, num_targets, batch);
  }

 private:
  std::shared_ptr<const TokenDataset> dataset_;
  int64_t seq_len_;
};

std::unique_ptr<WindowSource> validation_windows(std::shared_ptr<const TokenDataset> dataset,
                                                 int64_t seq_len, int64_t global_batch_size,
                                                 Packing packing) {
  if (seq_len < 1 || global_batch_size < 1) {
    throw std::invalid_argument("expected seq_len and global_batch_size of at least 1, got " +
                                std::to_string(seq_len) + " and " +
                                std::to_string(global_batch_size));
  }
  if (dataset->num_tokens() < 2) {
    throw std::invalid_argument("expected at least 2 tokens of validation data, got " +
                                std::to_string(dataset->num_tokens()) +
                                "; raise data.validation_fraction or name data.validation");
  }
  if (packing == Packing::kStream) {
    return std::make_unique<WindowsToTheEnd>(std::move(dataset), seq_len);
  }
  return make_window_source(std::move(dataset),
                            {.seq_len = seq_len, .shuffle = false, .packing = packing});
}

}  // namespace

DataLoader::DataLoader(std::shared_ptr<const TokenDataset> dataset,
                       const DataLoaderOptions& options)
    : DataLoader(std::vector<WeightedDataset>{{std::move(dataset), 1.0}}, options) {
  if (options.global_batch_size < 1 || windows_per_epoch() < options.global_batch_size) {
    throw std::invalid_argument(
        "expected data for at least one global batch of " +
        std::to_string(options.global_batch_size) + " windows, got " +
        std::to_string(windows_per_epoch()) + " of " + std::to_string(options.seq_len) +
        " tokens; add data, or lower training.global_batch_size or training.seq_len");
  }
}

DataLoader::DataLoader(const std::vector<WeightedDataset>& datasets,
                       const DataLoaderOptions& options)
    : options_(options) {
  std::vector<double> weights;
  for (const auto& [dataset, weight] : datasets) {
    // Sources of the same size must not go through their windows in step.
    const uint64_t seed = sources_.empty() ? options.seed : mix64(options.seed, sources_.size());
    sources_.push_back(make_window_source(dataset, {.seq_len = options.seq_len,
                                                    .seed = seed,
                                                    .shuffle = options.shuffle,
                                                    .packing = options.packing}));
    weights.push_back(weight);
  }
  if (weights.size() != 1) mixture_.emplace(weights, options.seed);
}

int64_t DataLoader::windows_per_epoch() const {
  int64_t sum = 0;
  for (const auto& source : sources_) sum += source->windows_per_epoch();
  return sum;
}

Batch DataLoader::batch(int64_t step, int64_t first_sample_in_batch, int64_t num_samples) const {
  const int64_t num_steps = std::numeric_limits<int64_t>::max() / options_.global_batch_size;
  require_slice(step, first_sample_in_batch, num_samples, options_.global_batch_size, num_steps);
  Batch batch = empty_batch(num_samples, options_.seq_len);
  for (int64_t row = 0; row < num_samples; ++row) {
    const int64_t sample = step * options_.global_batch_size + first_sample_in_batch + row;
    const Mixture::Pick pick = mixture_ ? mixture_->pick(sample) : Mixture::Pick{0, sample};
    sources_[pick.source]->fill_row(pick.sample, row, batch);
  }
  return batch;
}

ValidationLoader::ValidationLoader(std::shared_ptr<const TokenDataset> dataset, int64_t seq_len,
                                   int64_t global_batch_size, Packing packing)
    : seq_len_(seq_len),
      global_batch_size_(global_batch_size),
      windows_(validation_windows(std::move(dataset), seq_len, global_batch_size, packing)),
      num_batches_((windows_->windows_per_epoch() - 1) / global_batch_size + 1) {}

Batch ValidationLoader::batch(int64_t index, int64_t first_sample_in_batch,
                              int64_t num_samples) const {
  require_slice(index, first_sample_in_batch, num_samples, global_batch_size_, num_batches_);
  Batch batch = empty_batch(num_samples, seq_len_);
  for (int64_t row = 0; row < num_samples; ++row) {
    const int64_t sample = index * global_batch_size_ + first_sample_in_batch + row;
    if (sample < windows_->windows_per_epoch()) {
      windows_->fill_row(sample, row, batch);
    } else {
      write_padding(row, 0, batch);
      if (!batch.cu_seqlens.empty()) batch.cu_seqlens.push_back((row + 1) * seq_len_);
    }
  }
  return batch;
}

}  // namespace narrowgauge::data
