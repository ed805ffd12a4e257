// MPI knows neither bf16 nor fp8 and its reductions may sum in any order, so bytes are all that
// travels here: a reduction sends every rank its slice of everybody's data and sums it locally in
// rank order. That moves as many bytes as a ring reduce-scatter does.

#include "comm/mpi_communicator.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/collective_arguments.h"
#include "comm/mpi_wait.h"
#include "comm/ordered_reduction.h"

namespace narrowgauge::comm {
namespace {

// Bounds the receive buffers of a reduction to size() pieces of this many bytes, and keeps a piece
// in the cache between its arrival and its sum.
constexpr int64_t kReducePieceBytes = int64_t{1} << 20;
// Up to this many bytes a rank, a collective is over when the last rank has come: it needs no
// arrival of its own, and an all-reduce is one gather and a local sum.
constexpr size_t kSmallBytes = 1 << 14;
constexpr int kTag = 0;

std::byte* bytes_of(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

// The sends and receives of one step, completed together.
class Exchange {
 public:
  explicit Exchange(MPI_Comm comm) : comm_(comm) {}

  void send(const std::byte* data, int64_t size, int to) {
    if (size > 0) {
      check_mpi(MPI_Isend(data, static_cast<int>(size), MPI_BYTE, to, kTag, comm_, next()),
                "MPI_Isend");
    }
  }

  void receive(std::byte* data, int64_t size, int from) {
    if (size > 0) {
      check_mpi(MPI_Irecv(data, static_cast<int>(size), MPI_BYTE, from, kTag, comm_, next()),
                "MPI_Irecv");
    }
  }

  void complete() {
    check_mpi(
        MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE),
        "MPI_Waitall");
    requests_.clear();
  }

 private:
  MPI_Request* next() { return &requests_.emplace_back(MPI_REQUEST_NULL); }

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
};

// Gathers `size` bytes of each rank, few enough that waiting for the last one is all it costs.
void gather_small(const void* input, void* output, size_t size, MPI_Comm comm) {
  MPI_Request request = MPI_REQUEST_NULL;
  const auto count = static_cast<int>(size);
  check_mpi(MPI_Iallgather(input, count, MPI_BYTE, output, count, MPI_BYTE, comm, &request),
            "MPI_Iallgather");
  wait(request);
}

// How much of a slice of `size` bytes the piece at `offset` covers.
int64_t piece_size(int64_t size, int64_t offset, int64_t limit) {
  return std::clamp<int64_t>(size - offset, 0, limit);
}

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm parent, int64_t max_message_bytes)
    : max_message_bytes_(max_message_bytes), exceptions_at_birth_(std::uncaught_exceptions()) {
  // The largest element has 8 bytes; a piece never cuts one in two.
  TORCH_CHECK(
      max_message_bytes >= 8 && max_message_bytes % 8 == 0 && max_message_bytes <= kMaxMessageBytes,
      "expected a message limit of 8 to ", kMaxMessageBytes, " bytes, a multiple of 8, got ",
      max_message_bytes);
  check_mpi(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
}

MpiCommunicator::~MpiCommunicator() {
  // While an exception unwinds, the job is about to be aborted and the other ranks will not join.
  if (comm_ != MPI_COMM_NULL && std::uncaught_exceptions() == exceptions_at_birth_) {
    MPI_Comm_free(&comm_);
  }
}

void MpiCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  check_all_gather(output, input, rank_, size_);
  const auto bytes = static_cast<int64_t>(input.nbytes());
  const bool in_place = gathers_in_place(output, input, rank_);
  const void* mine = in_place ? MPI_IN_PLACE : bytes_of(input);
  if (input.nbytes() <= kSmallBytes && bytes <= max_message_bytes_) {
    return gather_small(mine, bytes_of(output), input.nbytes(), comm_);
  }
  arrive();
  if (bytes <= max_message_bytes_) {
    const auto count = static_cast<int>(bytes);
    check_mpi(MPI_Allgather(mine, count, MPI_BYTE, bytes_of(output), count, MPI_BYTE, comm_),
              "MPI_Allgather");
    return;
  }
  if (!in_place) {
    std::copy_n(bytes_of(input), bytes, bytes_of(output) + rank_ * bytes);
  }
  share_slices(output, [bytes](int rank) { return Slice{rank * bytes, bytes}; });
}

void MpiCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                     ReduceOp op) {
  check_reduce_scatter(output, input, size_);
  arrive();
  const auto bytes = static_cast<int64_t>(output.nbytes());
  reduce_slices(
      input,
      [bytes](int rank) {
        return Slice{rank * bytes, bytes};
      },
      bytes_of(output), op);
}

void MpiCommunicator::all_reduce(const at::Tensor& tensor, ReduceOp op) {
  check_all_reduce(tensor);
  if (size_ == 1 || tensor.numel() == 0) {
    return;
  }
  const auto total = static_cast<int64_t>(tensor.nbytes());
  const auto slice =
      static_cast<int64_t>(tensor.element_size()) * ((tensor.numel() + size_ - 1) / size_);
  const SliceOf slice_of = [total, slice](int rank) {
    const int64_t begin = std::min(rank * slice, total);
    return Slice{begin, std::min(slice, total - begin)};
  };
  if (tensor.nbytes() <= kSmallBytes) {
    std::vector<std::byte> gathered(total * size_);
    gather_small(bytes_of(tensor), gathered.data(), tensor.nbytes(), comm_);
    std::vector<const void*> parts;
    for (int other = 0; other < size_; ++other) {
      parts.push_back(gathered.data() + other * total);
    }
    reduce_in_rank_order(bytes_of(tensor), parts, tensor.numel(), tensor.scalar_type(), op);
    return;
  }
  arrive();
  // In place: a piece of this rank's slice is overwritten only when all of its parts have arrived.
  reduce_slices(tensor, slice_of, bytes_of(tensor) + slice_of(rank_).begin, op);
  share_slices(tensor, slice_of);
}

void MpiCommunicator::broadcast(const at::Tensor& tensor, int root) {
  check_broadcast(tensor, root, size_);
  arrive();
  const auto total = static_cast<int64_t>(tensor.nbytes());
  for (int64_t offset = 0; offset < total; offset += max_message_bytes_) {
    const int64_t count = piece_size(total, offset, max_message_bytes_);
    check_mpi(MPI_Bcast(bytes_of(tensor) + offset, static_cast<int>(count), MPI_BYTE, root, comm_),
              "MPI_Bcast");
  }
}

std::shared_ptr<Communicator> MpiCommunicator::split(int color, int key) {
  check_split(color);
  arrive();
  MPI_Comm part = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(comm_, color, key, &part), "MPI_Comm_split");
  auto communicator = std::make_shared<MpiCommunicator>(part, max_message_bytes_);
  MPI_Comm_free(&part);
  return communicator;
}

// MPI's blocking calls spin and move data as fast as it goes; its non-blocking ones move a fragment
// at each look. So ranks first wait for each other with pauses, and then move all there is at once.
void MpiCommunicator::arrive() {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
  wait(request);
}

void MpiCommunicator::reduce_slices(const at::Tensor& input, const SliceOf& slice_of, void* output,
                                    ReduceOp op) {
  const int64_t limit = std::min(kReducePieceBytes, max_message_bytes_);
  const Slice mine = slice_of(rank_);
  const int64_t longest = slice_of(0).size;
  std::vector<std::byte> received(size_ * std::min(limit, longest));
  Exchange exchange(comm_);
  for (int64_t offset = 0; offset < longest; offset += limit) {
    const int64_t my_piece = piece_size(mine.size, offset, limit);
    std::vector<const void*> parts(size_);
    for (int other = 0; other < size_; ++other) {
      if (other == rank_) {
        parts[other] = bytes_of(input) + mine.begin + offset;
        continue;
      }
      std::byte* part = received.data() + other * std::min(limit, longest);
      parts[other] = part;
      exchange.receive(part, my_piece, other);
    }
    for (int step = 1; step < size_; ++step) {
      // Each rank begins with its right neighbour, so that no rank is everybody's first target.
      const int other = (rank_ + step) % size_;
      const Slice theirs = slice_of(other);
      exchange.send(bytes_of(input) + theirs.begin + offset, piece_size(theirs.size, offset, limit),
                    other);
    }
    exchange.complete();
    reduce_in_rank_order(static_cast<std::byte*>(output) + offset, parts,
                         my_piece / static_cast<int64_t>(input.element_size()), input.scalar_type(),
                         op);
  }
}

void MpiCommunicator::share_slices(const at::Tensor& data, const SliceOf& slice_of) {
  const Slice mine = slice_of(rank_);
  const int64_t longest = slice_of(0).size;
  Exchange exchange(comm_);
  for (int64_t offset = 0; offset < longest; offset += max_message_bytes_) {
    for (int step = 1; step < size_; ++step) {
      const int from = (rank_ + size_ - step) % size_;
      const int to = (rank_ + step) % size_;
      const Slice theirs = slice_of(from);
      exchange.receive(bytes_of(data) + theirs.begin + offset,
                       piece_size(theirs.size, offset, max_message_bytes_), from);
      exchange.send(bytes_of(data) + mine.begin + offset,
                    piece_size(mine.size, offset, max_message_bytes_), to);
    }
    exchange.complete();
  }
}

}  // namespace narrowgauge::comm
