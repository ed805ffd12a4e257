#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::testing {

// One collective as this rank called it.
struct CollectiveRecord {
  std::string operation;  // the name of the method
  at::ScalarType dtype;
  int64_t size_bytes;  // of the larger tensor
};

class CollectiveLog {
 public:
  void add(CollectiveRecord record) { records_.push_back(std::move(record)); }
  void clear() { records_.clear(); }
  const std::vector<CollectiveRecord>& records() const { return records_; }
  int64_t count(const std::string& operation) const;

 private:
  std::vector<CollectiveRecord> records_;
};

// Hands every collective on and writes it down. Communicators split from it write to the same log.
class CountingCommunicator final : public comm::Communicator {
 public:
  CountingCommunicator(std::shared_ptr<comm::Communicator> inner,
                       std::shared_ptr<CollectiveLog> log)
      : inner_(std::move(inner)), log_(std::move(log)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                      comm::ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, comm::ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override;
  std::shared_ptr<comm::Communicator> split(int color, int key) override;

 private:
  std::shared_ptr<comm::Communicator> inner_;
  std::shared_ptr<CollectiveLog> log_;
};

}  // namespace narrowgauge::testing
