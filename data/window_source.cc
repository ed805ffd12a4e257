#include "data/window_source.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "data/document_packing.h"
#include "data/window_order.h"

namespace narrowgauge::data {
namespace {

class StreamWindows : public WindowSource {
 public:
  StreamWindows(std::shared_ptr<const TokenDataset> dataset, const WindowOptions& options)
      : dataset_(std::move(dataset)),
        order_(dataset_->num_tokens(), options.seq_len, options.seed, options.shuffle) {}

  int64_t windows_per_epoch() const override { return order_.windows_per_epoch(); }

  void fill_row(int64_t sample, int64_t row, Batch& batch) const override {
    write_piece(*dataset_, order_.window_begin(sample), batch.seq_len, row, 0, batch);
  }

 private:
  std::shared_ptr<const TokenDataset> dataset_;
  WindowOrder order_;
};

class DocumentWindows : public WindowSource {
 public:
  DocumentWindows(std::shared_ptr<const TokenDataset> dataset, const WindowOptions& options)
      : dataset_(std::move(dataset)),
        packing_(*dataset_, options.seq_len, options.seed, options.shuffle) {}

  int64_t windows_per_epoch() const override { return packing_.windows_per_epoch(); }

  void fill_row(int64_t sample, int64_t row, Batch& batch) const override {
    const auto begin_document = [&](int64_t place) {
      const auto at = static_cast<int32_t>(row * batch.seq_len + place);
      if (batch.cu_seqlens.back() != at) batch.cu_seqlens.push_back(at);
    };
    if (batch.cu_seqlens.empty()) batch.cu_seqlens.push_back(0);
    int64_t place = 0;
    for (const WindowPiece& piece : packing_.window(sample)) {
      begin_document(place);
      write_piece(*dataset_, piece.begin, piece.num_targets, row, place, batch);
      place += piece.num_targets;
    }
    begin_document(place);  // padding, if there is any
    write_padding(row, place, batch);
    begin_document(batch.seq_len);
  }

 private:
  std::shared_ptr<const TokenDataset> dataset_;
  DocumentPacking packing_;
};

}  // namespace

std::unique_ptr<WindowSource> make_window_source(std::shared_ptr<const TokenDataset> dataset,
                                                 const WindowOptions& options) {
  if (options.packing == Packing::kDocuments) {
    return std::make_unique<DocumentWindows>(std::move(dataset), options);
  }
  return std::make_unique<StreamWindows>(std::move(dataset), options);
}

void write_piece(const TokenDataset& dataset, int64_t begin, int64_t num_targets, int64_t row,
                 int64_t place, Batch& batch) {
  std::vector<int64_t> tokens(num_targets + 1);
  std::vector<uint8_t> ignored(num_targets + 1);
  dataset.read(begin, tokens);
  dataset.read_ignored(begin, ignored);
  const int64_t at = row * batch.seq_len + place;
  for (int64_t i = 0; i < num_targets; ++i) {
    const bool is_target = ignored[i + 1] == 0;
    batch.inputs[at + i] = tokens[i];
    batch.targets[at + i] = is_target ? tokens[i + 1] : kIgnoredTarget;
    batch.num_valid_tokens += is_target ? 1 : 0;
  }
}

void write_padding(int64_t row, int64_t place, Batch& batch) {
  const int64_t at = row * batch.seq_len + place;
  std::fill_n(batch.inputs.begin() + at, batch.seq_len - place, 0);
  std::fill_n(batch.targets.begin() + at, batch.seq_len - place, kIgnoredTarget);
}

}  // namespace narrowgauge::data
