// A collective is: publish what this rank has, arrive, read what the others published, depart so
// that nobody takes its tensor back early. Both are a generation barrier under one mutex that a
// communicator shares with all its splits, so that one abort wakes every waiting rank.

#include "comm/thread_communicator.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>

#include "comm/collective_arguments.h"
#include "comm/ordered_reduction.h"

namespace narrowgauge::comm {
namespace {

// What one rank offers to a collective. The first four must be equal on all ranks.
struct Offer {
  const char* operation = "";
  int argument = 0;  // the ReduceOp, or the root
  at::ScalarType dtype = at::kByte;
  int64_t numel = 0;  // of the tensor that has equal counts on all ranks
  const std::byte* data = nullptr;

  bool agrees_with(const Offer& other) const {
    return std::strcmp(operation, other.operation) == 0 && argument == other.argument &&
           dtype == other.dtype && numel == other.numel;
  }
};

struct Family {
  std::mutex mutex;
  std::condition_variable changed;
  bool aborted = false;
  std::string cause;
};

const std::byte* bytes_of(const at::Tensor& tensor) {
  return static_cast<const std::byte*>(tensor.const_data_ptr());
}

std::byte* mutable_bytes_of(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

void copy_bytes(std::byte* to, const std::byte* from, size_t count) {
  if (count > 0 && to != from) {
    std::memcpy(to, from, count);
  }
}

}  // namespace

struct ThreadCommunicator::Group {
  Group(std::shared_ptr<Family> family, int size)
      : family(std::move(family)), size(size), offers(size), splits(size), parts(size) {}

  // Returns when all ranks are here. Throws CommunicatorAborted.
  void arrive() {
    std::unique_lock lock(family->mutex);
    const uint64_t mine = generation;
    if (!family->aborted) {
      meet();
    }
    family->changed.wait(lock, [&] { return generation != mine || family->aborted; });
    // A rank that met the others before the abort goes on: they are reading its tensor.
    if (generation == mine) {
      throw CommunicatorAborted(family->cause);
    }
  }

  // As arrive, but not interrupted: whoever arrived departs, and until then may be reading.
  void depart() {
    std::unique_lock lock(family->mutex);
    const uint64_t mine = generation;
    meet();
    family->changed.wait(lock, [&] { return generation != mine; });
  }

  // Offers and arrives; then every rank knows that all ask for the same. All depart, or all throw.
  void publish(int rank, const Offer& offer) {
    offers[rank] = offer;
    arrive();
    for (int other = 1; other < size; ++other) {
      const Offer& a = offers[0];
      const Offer& b = offers[other];
      TORCH_CHECK(a.agrees_with(b), "expected every rank to call the same collective, got ",
                  a.operation, "(", a.argument, ") of ", a.numel, " ", a.dtype,
                  " elements on rank 0 and ", b.operation, "(", b.argument, ") of ", b.numel, " ",
                  b.dtype, " elements on rank ", other);
    }
  }

  const std::shared_ptr<Family> family;
  const int size;
  std::vector<Offer> offers;
  std::vector<std::pair<int, int>> splits;    // (color, key) of each rank
  std::vector<std::shared_ptr<Group>> parts;  // made by the first rank of each color
  int arrived = 0;                            // guarded by family->mutex, as is generation
  uint64_t generation = 0;

 private:
  // REQUIRES: family->mutex is held.
  void meet() {
    if (++arrived == size) {
      arrived = 0;
      ++generation;
      family->changed.notify_all();
    }
  }
};

std::vector<std::shared_ptr<ThreadCommunicator>> ThreadCommunicator::create(int size) {
  TORCH_CHECK(size >= 1, "expected at least 1 rank, got ", size);
  const auto group = std::make_shared<Group>(std::make_shared<Family>(), size);
  std::vector<std::shared_ptr<ThreadCommunicator>> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_shared<ThreadCommunicator>(group, rank));
  }
  return ranks;
}

ThreadCommunicator::ThreadCommunicator(std::shared_ptr<Group> group, int rank)
    : group_(std::move(group)), rank_(rank) {}

int ThreadCommunicator::size() const { return group_->size; }

void ThreadCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  check_all_gather(output, input, rank_, size());
  group_->publish(rank_, {"all_gather", 0, input.scalar_type(), input.numel(), bytes_of(input)});
  for (int other = 0; other < size(); ++other) {
    copy_bytes(mutable_bytes_of(output) + other * input.nbytes(), group_->offers[other].data,
               input.nbytes());
  }
  group_->depart();
}

void ThreadCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                        ReduceOp op) {
  check_reduce_scatter(output, input, size());
  group_->publish(rank_, {"reduce_scatter", static_cast<int>(op), input.scalar_type(),
                          output.numel(), bytes_of(input)});
  std::vector<const void*> parts;
  for (const Offer& offer : group_->offers) {
    parts.push_back(offer.data + rank_ * output.nbytes());
  }
  reduce_in_rank_order(output.mutable_data_ptr(), parts, output.numel(), output.scalar_type(), op);
  group_->depart();
}

void ThreadCommunicator::all_reduce(const at::Tensor& tensor, ReduceOp op) {
  check_all_reduce(tensor);
  if (size() == 1) {
    return;
  }
  const at::Tensor reduced = at::empty_like(tensor);
  group_->publish(rank_, {"all_reduce", static_cast<int>(op), tensor.scalar_type(), tensor.numel(),
                          bytes_of(tensor)});
  std::vector<const void*> parts;
  for (const Offer& offer : group_->offers) {
    parts.push_back(offer.data);
  }
  reduce_in_rank_order(reduced.mutable_data_ptr(), parts, tensor.numel(), tensor.scalar_type(), op);
  group_->depart();
  copy_bytes(mutable_bytes_of(tensor), bytes_of(reduced), tensor.nbytes());
}

void ThreadCommunicator::broadcast(const at::Tensor& tensor, int root) {
  check_broadcast(tensor, root, size());
  group_->publish(rank_,
                  {"broadcast", root, tensor.scalar_type(), tensor.numel(), bytes_of(tensor)});
  copy_bytes(mutable_bytes_of(tensor), group_->offers[root].data, tensor.nbytes());
  group_->depart();
}

std::shared_ptr<Communicator> ThreadCommunicator::split(int color, int key) {
  check_split(color);
  group_->splits[rank_] = {color, key};
  group_->publish(rank_, {"split", 0, at::kByte, 0, nullptr});
  std::vector<int> members;
  for (int other = 0; other < size(); ++other) {
    if (group_->splits[other].first == color) {
      members.push_back(other);
    }
  }
  const int first = members.front();
  if (first == rank_) {
    group_->parts[rank_] = std::make_shared<Group>(group_->family, members.size());
  }
  std::stable_sort(members.begin(), members.end(), [this](int a, int b) {
    return group_->splits[a].second < group_->splits[b].second;
  });
  group_->depart();
  const auto part = group_->parts[first];
  group_->depart();
  const auto place = std::find(members.begin(), members.end(), rank_) - members.begin();
  return std::make_shared<ThreadCommunicator>(part, static_cast<int>(place));
}

void ThreadCommunicator::abort(const std::string& cause) {
  const std::lock_guard lock(group_->family->mutex);
  if (!group_->family->aborted) {
    group_->family->aborted = true;
    group_->family->cause = cause;
    group_->family->changed.notify_all();
  }
}

}  // namespace narrowgauge::comm
