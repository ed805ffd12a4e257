#include "fsdp/collectives.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>

namespace narrowgauge::fsdp {
namespace {

// Every tensor begins at a multiple of this, so that its bytes can be viewed in its dtype.
constexpr int64_t kAlignmentBytes = 16;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
}

// Elements of one row of a tensor of these sizes.
int64_t row_numel(const std::vector<int64_t>& sizes) {
  return c10::multiply_integers(sizes.begin() + 1, sizes.end());
}

at::ScalarType common_dtype(const std::vector<at::Tensor>& gradients) {
  const auto first = std::find_if(gradients.begin(), gradients.end(),
                                  [](const at::Tensor& gradient) { return gradient.defined(); });
  TORCH_CHECK(first != gradients.end(), "expected at least one gradient to reduce, got none");
  return first->scalar_type();
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
  destination.narrow(0, numel, destination.numel() - numel).zero_();
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

void foreach_all_gather(const std::vector<at::Tensor>& inputs,
                        const std::vector<at::Tensor>& outputs, comm::Communicator& shard_axis) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK(inputs.size() == outputs.size(), "expected one output for each input, got ",
              outputs.size(), " for ", inputs.size());
  if (inputs.empty()) {
    return;
  }
  const int64_t size = shard_axis.size();
  std::vector<int64_t> offsets{0};  // of each tensor in a rank's slice, in bytes; then the end
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK(outputs[i].numel() == size * inputs[i].numel(), "expected an output of ", size,
                " x ", inputs[i].numel(), " elements, got ", outputs[i].numel());
    const int64_t bytes = inputs[i].numel() * static_cast<int64_t>(outputs[i].element_size());
    offsets.push_back(offsets.back() + aligned(bytes));
  }
  const at::Tensor gathered =
      at::empty({size, offsets.back()}, inputs[0].options().dtype(at::kByte));
  // All ranks' bytes of tensor i, in its dtype: [size, n_i].
  const auto gathered_of = [&](size_t i) {
    const int64_t bytes = inputs[i].numel() * static_cast<int64_t>(outputs[i].element_size());
    return gathered.narrow(1, offsets[i], bytes).view(outputs[i].scalar_type());
  };
  // The input is this rank's slice of the output: a gather in place.
  for (size_t i = 0; i < inputs.size(); ++i) {
    gathered_of(i).select(0, shard_axis.rank()).copy_(inputs[i].reshape({-1}));
  }
  shard_axis.all_gather(gathered, gathered.select(0, shard_axis.rank()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    outputs[i].view({size, inputs[i].numel()}).copy_(gathered_of(i));
  }
}

std::vector<at::Tensor> foreach_reduce(std::vector<at::Tensor> gradients,
                                       const std::vector<std::vector<int64_t>>& sizes,
                                       std::optional<at::ScalarType> reduce_dtype,
                                       double divide_factor, comm::Communicator& shard_axis,
                                       comm::Communicator& replicate_axis) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK(gradients.size() == sizes.size(), "expected sizes for each gradient, got ",
              sizes.size(), " for ", gradients.size());
  if (gradients.empty()) {
    return {};
  }
  const int64_t num_shards = shard_axis.size();
  std::vector<int64_t> offsets{0};  // of each gradient in a rank's slice, in elements; then the end
  for (const auto& gradient_sizes : sizes) {
    offsets.push_back(offsets.back() +
                      padded_rows(gradient_sizes[0], num_shards) * row_numel(gradient_sizes));
  }
  const auto options =
      at::TensorOptions().dtype(reduce_dtype.value_or(common_dtype(gradients))).device(at::kCPU);
  at::Tensor input = at::empty({num_shards, offsets.back()}, options);
  for (size_t i = 0; i < gradients.size(); ++i) {
    for (int64_t shard = 0; shard < num_shards; ++shard) {
      const at::Tensor slice =
          input.select(0, shard).narrow(0, offsets[i], offsets[i + 1] - offsets[i]);
      copy_chunk_in(gradients[i], sizes[i], num_shards, shard, slice);
    }
    gradients[i].reset();
  }
  at::Tensor output = input.select(0, 0);
  if (num_shards > 1) {
    output = at::empty({offsets.back()}, options);
    shard_axis.reduce_scatter(output, input, comm::ReduceOp::kSum);
    input.reset();
  }
  if (replicate_axis.size() > 1) {
    replicate_axis.all_reduce(output, comm::ReduceOp::kSum);
  }
  if (divide_factor != 1.0) {
    output.div_(divide_factor);
  }
  std::vector<at::Tensor> shards;
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::vector<int64_t> shard_sizes = sizes[i];
    shard_sizes[0] = row_range(sizes[i][0], num_shards, shard_axis.rank()).size;
    const int64_t numel = shard_sizes[0] * row_numel(sizes[i]);
    shards.push_back(output.narrow(0, offsets[i], numel).view(shard_sizes));
  }
  return shards;
}

}  // namespace narrowgauge::fsdp
