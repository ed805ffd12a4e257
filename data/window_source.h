#pragma once

#include <cstdint>
#include <memory>

#include "data/batch.h"
#include "data/token_dataset.h"

namespace narrowgauge::data {

// How windows are cut out of a data set.
enum class Packing {
  kStream,     // documents one after another, cut wherever a window ends
  kDocuments,  // whole documents, see DocumentPacking; they do not see each other
};

struct WindowOptions {
  int64_t seq_len = 0;
  uint64_t seed = 0;
  bool shuffle = true;
  Packing packing = Packing::kStream;
};

// The windows of a data set, each with seq_len inputs and as many targets. Immutable: any number of
// threads may read them.
class WindowSource {
 public:
  virtual ~WindowSource() = default;

  virtual int64_t windows_per_epoch() const = 0;

  // Fills row `row` of `batch` with the window of `sample`, a function of (seed, sample) alone;
  // what the window has no tokens for is padded. Tokens that are no targets of the loss (see
  // TokenStorage::read_ignored) are none here. REQUIRES: sample >= 0, rows are filled in order.
  virtual void fill_row(int64_t sample, int64_t row, Batch& batch) const = 0;
};

// Throws std::invalid_argument with the numbers when there is not one window.
std::unique_ptr<WindowSource> make_window_source(std::shared_ptr<const TokenDataset> dataset,
                                                 const WindowOptions& options);

// Writes tokens [begin, begin + num_targets] of `dataset` as inputs and targets from place `place`
// of row `row` on, and counts the targets that are not ignored.
void write_piece(const TokenDataset& dataset, int64_t begin, int64_t num_targets, int64_t row,
                 int64_t place, Batch& batch);

// Fills the places from `place` on of row `row` with padding.
void write_padding(int64_t row, int64_t place, Batch& batch);

}  // namespace narrowgauge::data
