#include "nn/embedding_lookup.h"

#include <ATen/Parallel.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "nn/kernel_dispatch.h"
#include "nn/kernels/embedding_lookup.h"

namespace narrowgauge::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

void check_arguments(const at::Tensor& weight, const at::Tensor& ids) {
  TORCH_CHECK(weight.dim() == 2, "expected a table of shape [num_embeddings, dim], got ",
              weight.sizes());
  TORCH_CHECK(ids.scalar_type() == at::kLong, "expected int64 ids, got ", ids.scalar_type());
}

// ids: contiguous on the CPU.
void check_ids(const at::Tensor& ids, int64_t num_embeddings) {
  const auto* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    TORCH_CHECK(id[i] >= 0 && id[i] < num_embeddings, "expected ids in [0, ", num_embeddings,
                "), got ", id[i], " at position ", i,
                "; is the vocabulary smaller than the tokenizer's?");
  }
}

// Positions of equal ids side by side, in their order (a counting sort).
struct Occurrences {
  std::vector<int64_t> first;  // [num_embeddings + 1]: where the positions of an id begin
  std::vector<int64_t> order;  // [number of ids]
};

Occurrences group_by_id(const at::Tensor& ids, int64_t num_embeddings) {
  const auto* id = ids.const_data_ptr<int64_t>();
  const int64_t count = ids.numel();
  Occurrences result;
  result.first.assign(static_cast<size_t>(num_embeddings) + 1, 0);
  result.order.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    ++result.first[static_cast<size_t>(id[i]) + 1];
  }
  for (size_t row = 1; row < result.first.size(); ++row) {
    result.first[row] += result.first[row - 1];
  }
  std::vector<int64_t> next = result.first;
  for (int64_t i = 0; i < count; ++i) {
    result.order[static_cast<size_t>(next[static_cast<size_t>(id[i])]++)] = i;
  }
  return result;
}

struct EmbeddingLookup : torch::autograd::Function<EmbeddingLookup> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight,
                            const at::Tensor& ids) {
    RECORD_FUNCTION("narrowgauge::nn::EmbeddingLookup", c10::ArrayRef<const c10::IValue>());
    context->save_for_backward({ids});
    context->saved_data["num_embeddings"] = weight.size(0);
    return at::embedding(weight, ids);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; embedding_lookup is "
                "differentiable once");
    const at::Tensor ids = context->get_saved_variables()[0];
    const int64_t num_embeddings = context->saved_data["num_embeddings"].toInt();
    const at::Tensor rows = grads[0].contiguous();
    const int64_t dim = rows.size(-1);
    const at::Tensor grad = at::zeros({num_embeddings, dim}, rows.options());
    const Occurrences found = group_by_id(ids, num_embeddings);
    with_element_type(rows, [&](auto element) {
      using T = decltype(element);
      at::parallel_for(0, num_embeddings, grain_rows(dim), [&](int64_t begin, int64_t end) {
        std::vector<float> scratch(static_cast<size_t>(dim));
        for (int64_t row = begin; row < end; ++row) {
          const int64_t first = found.first[static_cast<size_t>(row)];
          const int64_t count = found.first[static_cast<size_t>(row) + 1] - first;
          if (count > 0) {
            kernels::sum_rows(const_pointer<T>(rows), found.order.data() + first, count, dim,
                              scratch.data(), mutable_pointer<T>(grad) + row * dim);
          }
        }
      });
    });
    return {grad, at::Tensor()};
  }
};

}  // namespace

at::Tensor embedding_lookup(const at::Tensor& weight, const at::Tensor& ids) {
  check_arguments(weight, ids);
  if (!weight.is_cpu() || !has_kernel(weight)) {
    return at::embedding(weight, ids);
  }
  const at::Tensor packed = ids.contiguous();
  check_ids(packed, weight.size(0));
  return EmbeddingLookup::apply(weight, packed);
}

}  // namespace narrowgauge::nn
