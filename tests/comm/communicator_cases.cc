#include "tests/comm/communicator_cases.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace narrowgauge::comm {
namespace {

// What `rank` contributes: values whose fp32 sums round, so that another order of summing shows.
at::Tensor data_of(int rank, int64_t numel, at::ScalarType dtype) {
  const at::Tensor x = at::arange(numel, at::kDouble).add(1.0 + 31.0 * rank);
  if (c10::isIntegralType(dtype, false)) {
    return x.mul(17).remainder(1001).to(dtype);
  }
  return x.sin().mul(x.remainder(7).exp2()).to(dtype);
}

// Left to right over the ranks in fp32 (16-bit floats) or the dtype itself.
at::Tensor reduced(int size, int64_t numel, at::ScalarType dtype, ReduceOp op) {
  const bool narrow = dtype == at::kBFloat16 || dtype == at::kHalf;
  const at::ScalarType wide = narrow ? at::kFloat : dtype;
  at::Tensor total = data_of(0, numel, dtype).to(wide);
  for (int rank = 1; rank < size; ++rank) {
    const at::Tensor part = data_of(rank, numel, dtype).to(wide);
    total = op == ReduceOp::kMax ? total.maximum(part) : total.add(part);
  }
  return (op == ReduceOp::kAvg ? total.div(size) : total).to(dtype);
}

void expect_equal(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  EXPECT_TRUE(actual.equal(expected)) << what << ": got\n" << actual << "\nexpected\n" << expected;
}

std::string label(const char* operation, at::ScalarType dtype, int64_t numel) {
  return std::string(operation) + " of " + std::to_string(numel) + " " + c10::toString(dtype);
}

constexpr int64_t kCounts[] = {0, 1, 3, 1000, 20'001};

void all_gather_keeps_rank_order(Communicator& communicator) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kLong, at::kByte}) {
    for (const int64_t numel : kCounts) {
      std::vector<at::Tensor> parts;
      for (int rank = 0; rank < communicator.size(); ++rank) {
        parts.push_back(data_of(rank, numel, dtype));
      }
      const at::Tensor output = at::zeros({communicator.size(), numel}, dtype);
      communicator.all_gather(output, parts[communicator.rank()]);
      expect_equal(output.view({-1}), at::cat(parts), label("all_gather", dtype, numel));
    }
  }
}

void all_gather_in_place(Communicator& communicator) {
  const at::Tensor output = at::full({communicator.size(), 5000}, -1.0F);
  output.select(0, communicator.rank()).fill_(communicator.rank());
  communicator.all_gather(output, output.select(0, communicator.rank()));
  for (int rank = 0; rank < communicator.size(); ++rank) {
    expect_equal(output.select(0, rank), at::full({5000}, static_cast<float>(rank)), "in place");
  }
}

void all_gather_moves_fp8_bytes(Communicator& communicator) {
  const at::Tensor bits = at::arange(256, at::kByte).bitwise_xor(communicator.rank());
  const at::Tensor output = at::empty({256 * communicator.size()}, at::kFloat8_e4m3fn);
  communicator.all_gather(output, bits.view(at::kFloat8_e4m3fn));  // NaN bit patterns included
  for (int rank = 0; rank < communicator.size(); ++rank) {
    expect_equal(output.view(at::kByte).narrow(0, 256L * rank, 256),
                 at::arange(256, at::kByte).bitwise_xor(rank), "fp8 bytes");
  }
}

void reductions_sum_in_rank_order(Communicator& communicator) {
  const int size = communicator.size();
  for (const at::ScalarType dtype :
       {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf, at::kLong, at::kInt}) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kMax}) {
      if (op == ReduceOp::kAvg && c10::isIntegralType(dtype, false)) {
        continue;  // refused, see wrong_arguments_throw
      }
      for (const int64_t numel : kCounts) {
        const at::Tensor tensor = data_of(communicator.rank(), numel, dtype);
        communicator.all_reduce(tensor, op);
        expect_equal(tensor, reduced(size, numel, dtype, op), label("all_reduce", dtype, numel));

        const at::Tensor input = data_of(communicator.rank(), numel * size, dtype);
        const at::Tensor before = input.clone();
        const at::Tensor output = at::empty({numel}, dtype);
        communicator.reduce_scatter(output, input, op);
        expect_equal(
            output,
            reduced(size, numel * size, dtype, op).narrow(0, communicator.rank() * numel, numel),
            label("reduce_scatter", dtype, numel));
        expect_equal(input, before, "reduce_scatter leaves its input");
      }
    }
  }
}

void narrow_floats_are_rounded_once(Communicator& communicator) {
  // In bf16 256 + 1 is 256 again, so a sum that rounds at each rank would stay at 256.
  const at::Tensor tensor = at::ones({8}, at::kBFloat16);
  if (communicator.rank() == 0) {
    tensor.fill_(256.0);
  }
  communicator.all_reduce(tensor, ReduceOp::kSum);
  expect_equal(tensor, at::full({8}, 256.0 + communicator.size() - 1).to(at::kBFloat16),
               "bf16 sum");
}

void max_propagates_nan(Communicator& communicator) {
  const at::Tensor tensor = at::full({3}, static_cast<double>(communicator.rank()));
  tensor[1].fill_(communicator.rank() == 0 ? NAN : 1.0);
  tensor[2].fill_(communicator.rank() == communicator.size() - 1 ? NAN : INFINITY);
  communicator.all_reduce(tensor, ReduceOp::kMax);
  EXPECT_EQ(tensor[0].item<double>(), communicator.size() - 1);
  EXPECT_TRUE(std::isnan(tensor[1].item<double>()));
  EXPECT_TRUE(std::isnan(tensor[2].item<double>()));
}

void broadcast_from_each_root(Communicator& communicator) {
  for (int root = 0; root < communicator.size(); ++root) {
    const at::Tensor tensor = data_of(communicator.rank(), 3001, at::kBFloat16);
    communicator.broadcast(tensor, root);
    expect_equal(tensor, data_of(root, 3001, at::kBFloat16), "broadcast");
  }
}

void split_ranks_by_key(Communicator& communicator) {
  // Even and odd ranks apart, each group in reverse order.
  const int rank = communicator.rank();
  const auto part = communicator.split(rank % 2, -rank);
  const int expected_size = (communicator.size() + (rank % 2 == 0 ? 1 : 0)) / 2;
  ASSERT_EQ(part->size(), expected_size);
  EXPECT_EQ(part->rank(), expected_size - 1 - rank / 2);
  const at::Tensor members = at::empty({part->size()}, at::kInt);
  part->all_gather(members, at::full({1}, rank, at::kInt));
  for (int i = 0; i < part->size(); ++i) {
    EXPECT_EQ(members[i].item<int>(), 2 * (part->size() - 1 - i) + rank % 2);
  }
  // Both are in use at once.
  const at::Tensor total = at::full({1}, rank, at::kLong);
  communicator.all_reduce(total, ReduceOp::kSum);
  EXPECT_EQ(total.item<int64_t>(), communicator.size() * (communicator.size() - 1) / 2);
}

void wrong_arguments_throw(Communicator& communicator) {
  const int size = communicator.size();
  const at::Tensor floats = at::zeros({4});
  EXPECT_THROW(communicator.all_gather(at::zeros({4 * size + 1}), floats), c10::Error);
  EXPECT_THROW(communicator.all_gather(at::zeros({4 * size}, at::kHalf), floats), c10::Error);
  EXPECT_THROW(communicator.all_gather(at::zeros({4 * size}), at::zeros({4, 2}).select(1, 0)),
               c10::Error);
  EXPECT_THROW(communicator.all_gather(at::zeros({4 * size}), at::Tensor()), c10::Error);
  EXPECT_THROW(communicator.all_gather(at::zeros({4 * size}, at::kMeta), floats), c10::Error);
  EXPECT_THROW(communicator.reduce_scatter(floats, at::zeros({4 * size + 1}), ReduceOp::kSum),
               c10::Error);
  EXPECT_THROW(communicator.all_reduce(at::zeros({4}, at::kFloat8_e4m3fn), ReduceOp::kSum),
               c10::Error);
  EXPECT_THROW(communicator.broadcast(floats, size), c10::Error);
  EXPECT_THROW(communicator.split(-1, 0), c10::Error);
  const at::Tensor whole = at::zeros({4 * size + 2});
  EXPECT_THROW(communicator.all_gather(whole.narrow(0, 0, 4 * size),
                                       whole.narrow(0, 4 * communicator.rank() + 2, 4)),
               c10::Error);
  barrier(communicator);  // still usable
}

}  // namespace

const std::vector<CommunicatorCase>& communicator_cases() {
  static const std::vector<CommunicatorCase> cases = {
      {"AllGatherKeepsRankOrder", all_gather_keeps_rank_order},
      {"AllGatherInPlace", all_gather_in_place},
      {"AllGatherMovesFp8Bytes", all_gather_moves_fp8_bytes},
      {"ReductionsSumInRankOrder", reductions_sum_in_rank_order},
      {"NarrowFloatsAreRoundedOnce", narrow_floats_are_rounded_once},
      {"MaxPropagatesNan", max_propagates_nan},
      {"BroadcastFromEachRoot", broadcast_from_each_root},
      {"SplitRanksByKey", split_ranks_by_key},
      {"WrongArgumentsThrow", wrong_arguments_throw},
  };
  return cases;
}

}  // namespace narrowgauge::comm
