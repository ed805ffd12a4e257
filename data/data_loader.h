#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/token_dataset.h"
#include "data/window_order.h"

namespace narrowgauge::data {

// A target that takes no part in the loss.
inline constexpr int64_t kIgnoredTarget = -100;

// Shape of inputs, targets and document_ids: [batch_size, seq_len], row by row.
struct Batch {
  int64_t batch_size = 0;
  int64_t seq_len = 0;
  std::vector<int64_t> inputs;
  std::vector<int64_t> targets;  // the input one token on, or kIgnoredTarget
  // Filled on request: for each input, how many documents have begun in its window before it, so
  // that equal numbers in a row mean one document.
  std::vector<int32_t> document_ids;
  int64_t num_valid_tokens = 0;  // targets that are not ignored
};

struct DataLoaderOptions {
  int64_t seq_len = 0;
  int64_t global_batch_size = 0;  // samples of a step, over all ranks and micro-batches
  uint64_t seed = 0;
  bool shuffle = true;
  bool document_ids = false;
};

// Batches for training. Sample s of step t is a function of (seed, t * global_batch_size + s), see
// WindowOrder: resuming needs the step alone, and the ranks of any world size together see the
// same samples. Immutable: any number of threads may call `batch`.
class DataLoader {
 public:
  // Throws std::invalid_argument with both numbers when an epoch has fewer windows than one global
  // batch.
  DataLoader(std::shared_ptr<const TokenDataset> dataset, const DataLoaderOptions& options);

  // Samples [first_sample_in_batch, first_sample_in_batch + num_samples) of the global batch of
  // `step`. A rank asks for its contiguous slice, in as many calls as it has micro-batches. Throws
  // std::out_of_range unless they lie in the global batch.
  Batch batch(int64_t step, int64_t first_sample_in_batch, int64_t num_samples) const;

  int64_t windows_per_epoch() const { return order_.windows_per_epoch(); }
  int64_t tokens_per_epoch() const { return windows_per_epoch() * options_.seq_len; }

 private:
  std::shared_ptr<const TokenDataset> dataset_;
  DataLoaderOptions options_;
  WindowOrder order_;
};

// Batches for validation: every target once, in order, in windows that do not overlap. The number
// of batches is the same for every rank: what lies behind the end of the data is padded with
// ignored targets, a part of a window as well as whole samples, so no rank ever runs out first.
class ValidationLoader {
 public:
  // Throws std::invalid_argument when the data set has fewer than two tokens.
  ValidationLoader(std::shared_ptr<const TokenDataset> dataset, int64_t seq_len,
                   int64_t global_batch_size);

  int64_t num_batches() const { return num_batches_; }

  // As DataLoader::batch, for 0 <= index < num_batches().
  Batch batch(int64_t index, int64_t first_sample_in_batch, int64_t num_samples) const;

 private:
  std::shared_ptr<const TokenDataset> dataset_;
  int64_t seq_len_;
  int64_t global_batch_size_;
  int64_t num_batches_;
};

}  // namespace narrowgauge::data
