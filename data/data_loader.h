#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "data/batch.h"
#include "data/mixture.h"
#include "data/window_source.h"

namespace narrowgauge::data {

// A part of what a run trains on.
struct WeightedDataset {
  std::shared_ptr<const TokenDataset> dataset;
  double weight = 1.0;  // its share of the samples, relative to the others'
};

struct DataLoaderOptions {
  int64_t seq_len = 0;
  int64_t global_batch_size = 0;  // samples of a step, over all ranks and micro-batches
  uint64_t seed = 0;
  bool shuffle = true;
  Packing packing = Packing::kStream;
};

// Batches for training. Sample s of step t is a function of (seed, t * global_batch_size + s), see
// WindowSource and Mixture: resuming needs the step alone, and the ranks of any world size together
// see the same samples. Immutable: any number of threads may call `batch`.
class DataLoader {
 public:
  // Throws std::invalid_argument with both numbers when an epoch has fewer windows than one global
  // batch.
  DataLoader(std::shared_ptr<const TokenDataset> dataset, const DataLoaderOptions& options);
  // Of several, in proportion to their weights; each may be smaller than a batch and is gone
  // through again as often as its share asks for. Throws as Mixture does, too.
  DataLoader(const std::vector<WeightedDataset>& datasets, const DataLoaderOptions& options);

  // Samples [first_sample_in_batch, first_sample_in_batch + num_samples) of the global batch of
  // `step`. A rank asks for its contiguous slice, in as many calls as it has micro-batches. Throws
  // std::out_of_range unless they lie in the global batch.
  Batch batch(int64_t step, int64_t first_sample_in_batch, int64_t num_samples) const;

  // Of all data sets together.
  int64_t windows_per_epoch() const;
  int64_t tokens_per_epoch() const { return windows_per_epoch() * options_.seq_len; }

 private:
  DataLoaderOptions options_;
  std::vector<std::unique_ptr<const WindowSource>> sources_;
  std::optional<Mixture> mixture_;  // of more than one source
};

// Batches for validation: every target once, in order, in windows that do not overlap. The number
// of batches is the same for every rank: what lies behind the end of the data is padded with
// ignored targets, a part of a window as well as whole samples, so no rank ever runs out first.
class ValidationLoader {
 public:
  // Throws std::invalid_argument when the data set has fewer than two tokens.
  ValidationLoader(std::shared_ptr<const TokenDataset> dataset, int64_t seq_len,
                   int64_t global_batch_size, Packing packing = Packing::kStream);

  int64_t num_batches() const { return num_batches_; }

  // As DataLoader::batch, for 0 <= index < num_batches().
  Batch batch(int64_t index, int64_t first_sample_in_batch, int64_t num_samples) const;

 private:
  int64_t seq_len_;
  int64_t global_batch_size_;
  std::unique_ptr<const WindowSource> windows_;
  int64_t num_batches_;
};

}  // namespace narrowgauge::data
