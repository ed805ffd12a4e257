#include "fsdp/collectives.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace narrowgauge::fsdp {
namespace {

// Every tensor begins at a multiple of this, so that its bytes can be viewed in its dtype.
constexpr int64_t kAlignmentBytes = 16;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
}

int64_t size_bytes(const AllGatherInput& input) {
  return input.tensor.numel() * static_cast<int64_t>(c10::elementSize(input.dtype));
}

// All ranks' elements of tensor i, in its dtype: [size, n_i].
at::Tensor gathered_of(const AllGatherResult& result, size_t i) {
  const AllGatherInput& input = result.inputs[i];
  return result.gathered.narrow(1, result.offsets[i], size_bytes(input)).view(input.dtype);
}

// Elements of one row of a tensor of these sizes.
int64_t row_numel(const std::vector<int64_t>& sizes) {
  return c10::multiply_integers(sizes.begin() + 1, sizes.end());
}

// Of each gradient in a rank's slice, in elements; then the end.
std::vector<int64_t> reduce_offsets(const std::vector<std::vector<int64_t>>& sizes,
                                    int64_t num_shards) {
  std::vector<int64_t> offsets{0};
  for (const auto& gradient_sizes : sizes) {
    offsets.push_back(offsets.back() +
                      padded_rows(gradient_sizes[0], num_shards) * row_numel(gradient_sizes));
  }
  return offsets;
}

// Writes the chunk of `gradient` that `shard` will own at the start of `destination`
// [padded rows * row numel], zero where the chunk is short.
void copy_chunk_in(const at::Tensor& gradient, const std::vector<int64_t>& sizes,
                   int64_t num_shards, int64_t shard, const at::Tensor& destination) {
  const RowRange rows = row_range(sizes[0], num_shards, shard);
  const int64_t numel = gradient.defined() ? rows.size * row_numel(sizes) : 0;
  if (numel > 0) {
    std::vector<int64_t> chunk_sizes = sizes;
    chunk_sizes[0] = rows.size;
    destination.narrow(0, 0, numel)
        .view(chunk_sizes)
        .copy_(gradient.narrow(0, rows.begin, rows.size));
  }
  if (numel < destination.numel()) {
    destination.narrow(0, numel, destination.numel() - numel).zero_();
  }
}

at::Tensor reduce_input(std::vector<at::Tensor> gradients,
                        const std::vector<std::vector<int64_t>>& sizes, int64_t num_shards,
                        const at::TensorOptions& options) {
  const std::vector<int64_t> offsets = reduce_offsets(sizes, num_shards);
  at::Tensor input = at::empty({num_shards, offsets.back()}, options);
  for (size_t i = 0; i < gradients.size(); ++i) {
    for (int64_t shard = 0; shard < num_shards; ++shard) {
      const at::Tensor slice =
          input.select(0, shard).narrow(0, offsets[i], offsets[i + 1] - offsets[i]);
      copy_chunk_in(gradients[i], sizes[i], num_shards, shard, slice);
    }
    gradients[i].reset();
  }
  return input;
}

// How a division by `factor` is spread over a reduction.
struct Division {
  double before = 1.0;
  comm::ReduceOp scatter_op = comm::ReduceOp::kSum;
  comm::ReduceOp all_reduce_op = comm::ReduceOp::kSum;
  double after = 1.0;
};

// FSDP2's _get_gradient_divide_factors, without multiply-then-sum, which only NCCL has. A mean is
// left to the communicator, which divides before it rounds; not over an axis of one rank, which
// calls no collective.
Division divide_in_steps(const ReduceSpec& spec, int shard_size, int replicate_size) {
  Division division;
  if (spec.dtype == at::kHalf) {
    while (std::fmod(spec.divide_factor, division.before) == 0.0 &&
           spec.divide_factor / division.before > division.before) {
      division.before *= 2.0;
    }
    division.after = spec.divide_factor / division.before;
    return division;
  }
  const bool mean_over_shards = shard_size > 1 && spec.divide_factor == shard_size;
  const bool mean_over_all = spec.divide_factor == static_cast<double>(shard_size) * replicate_size;
  if (mean_over_shards || (mean_over_all && shard_size > 1)) {
    division.scatter_op = comm::ReduceOp::kAvg;
  }
  if (!mean_over_shards && mean_over_all && replicate_size > 1) {
    division.all_reduce_op = comm::ReduceOp::kAvg;
  }
  division.after = mean_over_shards || mean_over_all ? 1.0 : spec.divide_factor;
  return division;
}

}  // namespace

int64_t padded_rows(int64_t rows, int64_t num_shards) {
  return (rows + num_shards - 1) / num_shards;
}

RowRange row_range(int64_t rows, int64_t num_shards, int64_t shard) {
  const int64_t chunk = padded_rows(rows, num_shards);
  const int64_t begin = std::min(shard * chunk, rows);
  return {begin, std::min(chunk, rows - begin)};
}

AllGatherResult foreach_all_gather(std::vector<AllGatherInput> inputs, at::Device device,
                                   const std::shared_ptr<comm::Communicator>& shard_axis,
                                   const CommStreams& streams) {
  const c10::NoGradGuard no_grad;
  AllGatherResult result;
  result.inputs = std::move(inputs);
  result.offsets.push_back(0);
  for (const AllGatherInput& input : result.inputs) {
    result.offsets.push_back(result.offsets.back() + aligned(size_bytes(input)));
  }
  if (result.inputs.empty()) {
    result.work = comm::InlineStream().run([] {});
    return result;
  }
  const int rank = shard_axis->rank();
  result.gathered = at::empty({shard_axis->size(), result.offsets.back()},
                              at::TensorOptions().dtype(at::kByte).device(device));
  // The input is this rank's slice of the output: a gather in place.
  const auto copied_in = streams.all_gather_copy_in->run([result, rank] {
    const c10::NoGradGuard no_grad;
    for (size_t i = 0; i < result.inputs.size(); ++i) {
      gathered_of(result, i).select(0, rank).copy_(result.inputs[i].tensor.reshape({-1}),
                                                   /*non_blocking=*/true);
    }
  });
  const at::Tensor gathered = result.gathered;
  result.work = streams.all_gather->run([copied_in, gathered, rank, shard_axis] {
    copied_in->wait();
    shard_axis->all_gather(gathered, gathered.select(0, rank));
  });
  return result;
}

void foreach_all_gather_copy_out(const AllGatherResult& result,
                                 const std::vector<at::Tensor>& outputs) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK(result.inputs.size() == outputs.size(), "expected one output for each input, got ",
              outputs.size(), " for ", result.inputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const at::Tensor gathered = gathered_of(result, i);
    TORCH_CHECK(outputs[i].numel() == gathered.numel() &&
                    outputs[i].scalar_type() == gathered.scalar_type(),
                "expected an output of ", gathered.numel(), " ", gathered.scalar_type(),
                " elements, got ", outputs[i].numel(), " ", outputs[i].scalar_type());
    outputs[i].view(gathered.sizes()).copy_(gathered);
  }
}

ReduceResult foreach_reduce(std::vector<at::Tensor> gradients,
                            const std::vector<std::vector<int64_t>>& sizes, const ReduceSpec& spec,
                            const std::shared_ptr<comm::Communicator>& shard_axis,
                            const std::shared_ptr<comm::Communicator>& replicate_axis,
                            const at::Tensor& partial, const CommStreams& streams) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK(!gradients.empty() && gradients.size() == sizes.size(),
              "expected sizes for each of at least one gradient, got ", sizes.size(), " for ",
              gradients.size());
  const int64_t num_shards = shard_axis->size();
  const auto options = at::TensorOptions().dtype(spec.dtype).device(spec.device);
  ReduceResult result;
  result.input = reduce_input(std::move(gradients), sizes, num_shards, options);
  result.device_output =
      num_shards > 1 ? at::empty({result.input.size(1)}, options) : result.input.select(0, 0);
  result.output = result.device_output;
  if (spec.offload_to_cpu && spec.all_reduce) {
    result.output =
        at::empty({result.input.size(1)}, options.device(at::kCPU).pinned_memory(spec.pin_memory));
  }
  const bool all_reduces = spec.all_reduce && replicate_axis->size() > 1;
  const Division division = divide_in_steps(spec, shard_axis->size(), replicate_axis->size());
  const at::Tensor input = result.input;
  const at::Tensor device_output = result.device_output;
  const at::Tensor output = result.output;
  result.reduce_scatter = streams.reduce_scatter->run([=] {
    const c10::NoGradGuard no_grad;
    if (division.before != 1.0) {
      input.div_(division.before);
    }
    if (num_shards > 1) {
      shard_axis->reduce_scatter(device_output, input, division.scatter_op);
    }
    if (partial.defined()) {
      device_output.add_(partial);
    }
  });
  // The rest runs behind it on the same stream, unless ranks of another axis take part.
  const auto& last = all_reduces ? streams.all_reduce : streams.reduce_scatter;
  result.work = last->run([=, scattered = result.reduce_scatter] {
    const c10::NoGradGuard no_grad;
    scattered->wait();
    if (all_reduces) {
      replicate_axis->all_reduce(device_output, division.all_reduce_op);
    }
    if (spec.all_reduce && division.after != 1.0) {
      device_output.div_(division.after);
    }
    if (!output.is_same(device_output)) {
      output.copy_(device_output, /*non_blocking=*/true);
    }
  });
  return result;
}

std::vector<at::Tensor> sharded_gradients(const at::Tensor& output,
                                          const std::vector<std::vector<int64_t>>& sizes,
                                          int64_t num_shards, int64_t shard) {
  const std::vector<int64_t> offsets = reduce_offsets(sizes, num_shards);
  std::vector<at::Tensor> shards;
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::vector<int64_t> shard_sizes = sizes[i];
    shard_sizes[0] = row_range(sizes[i][0], num_shards, shard).size;
    const int64_t numel = shard_sizes[0] * row_numel(sizes[i]);
    shards.push_back(output.narrow(0, offsets[i], numel).view(shard_sizes));
  }
  return shards;
}

}  // namespace narrowgauge::fsdp
