#include "fsdp/fully_shard.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "fsdp/collectives.h"
#include "fsdp/fsdp_param.h"
#include "fsdp/fsdp_param_group.h"
#include "fsdp/fsdp_state.h"

namespace narrowgauge::fsdp {
namespace {

bool contains(const std::vector<at::Tensor>& tensors, const at::Tensor& tensor) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const at::Tensor& other) { return other.is_same(tensor); });
}

// An original parameter with all slots that hold it.
struct Found {
  std::string fqn;
  at::Tensor tensor;
  std::vector<FSDPParam::Owner> owners;
};

struct Parameters {
  std::vector<Found> found;
  std::vector<FSDPParam::Owner> ignored;
};

// Parameters of `layer` and below, without ignored ones and those of layers that have a group of
// their own.
void find_parameters(nn::Layer& layer, const std::string& prefix,
                     const std::vector<at::Tensor>& ignored, Parameters& parameters) {
  std::vector<Found>& found = parameters.found;
  for (const auto& parameter : layer.named_parameters(/*recurse=*/false)) {
    if (contains(ignored, parameter.value())) {
      parameters.ignored.push_back({&layer, parameter.key()});
      continue;
    }
    auto known = std::find_if(found.begin(), found.end(), [&](const Found& other) {
      return other.tensor.is_same(parameter.value());
    });
    if (known == found.end()) {
      found.push_back({prefix + parameter.key(), parameter.value(), {}});
      known = found.end() - 1;
    }
    known->owners.push_back({&layer, parameter.key()});
  }
  for (const auto& [name, child] : layer.child_layers()) {
    if (!FSDPState::find(*child)) {
      find_parameters(*child, prefix + name + ".", ignored, parameters);
    }
  }
}

// Tied parameters of different groups would silently part: each group would train its own.
void check_not_shared_with_other_groups(const nn::Layer& layer, const std::vector<Found>& found) {
  for (const auto& state : FSDPState::find_all(layer)) {
    for (const auto& param : state->group().params()) {
      for (const Found& parameter : found) {
        TORCH_CHECK(!param->is_original(parameter.tensor),
                    "expected tied parameters in one group, "
                    "got '",
                    parameter.fqn, "' tied to '", param->fqn(),
                    "' of a layer that is sharded on its own; do not shard that layer apart");
      }
    }
  }
}

void check_all_found(nn::Layer& layer, const Parameters& parameters) {
  std::unordered_set<const at::TensorImpl*> known;
  for (const auto& state : FSDPState::find_all(layer)) {
    for (const auto& param : state->group().params()) {
      known.insert(param->unsharded_param().unsafeGetTensorImpl());
    }
    state->add_ignored_to(known);
  }
  for (const Found& parameter : parameters.found) {
    known.insert(parameter.tensor.unsafeGetTensorImpl());
  }
  for (const FSDPParam::Owner& owner : parameters.ignored) {
    known.insert(owner.tensor().unsafeGetTensorImpl());
  }
  for (const auto& parameter : layer.named_parameters()) {
    TORCH_CHECK(known.count(parameter.value().unsafeGetTensorImpl()) > 0,
                "expected every module to be an nn::Layer, got '", parameter.key(),
                "' below one that is not; derive it from nn::Layer");
  }
}

// n neighbours hold one copy between them.
void check_post_forward_size(const FullyShardOptions& options, const comm::DeviceMesh& mesh,
                             bool has_extension) {
  const int* n =
      options.reshard_after_forward ? std::get_if<int>(&*options.reshard_after_forward) : nullptr;
  if (n == nullptr) {
    return;
  }
  const int size = mesh.shard_axis().size();
  TORCH_CHECK(*n >= 1 && size % *n == 0,
              "expected reshard_after_forward to divide the shard axis of ", size, " ranks, got ",
              *n);
  TORCH_CHECK(!has_extension || *n == 1 || *n == size,
              "expected reshard_after_forward true or false for parameters with an extension, got ",
              *n);
}

}  // namespace

void fully_shard(nn::Layer& layer, const comm::DeviceMesh& mesh, const FullyShardOptions& options) {
  fully_shard(std::vector<nn::Layer*>{&layer}, mesh, options);
}

void fully_shard(const std::vector<nn::Layer*>& layers, const comm::DeviceMesh& mesh,
                 const FullyShardOptions& options) {
  TORCH_CHECK(!layers.empty(), "expected at least one layer to shard, got none");
  Parameters parameters;
  for (nn::Layer* layer : layers) {
    TORCH_CHECK(!FSDPState::find(*layer), "expected a layer that is not sharded yet, got ",
                layer->name(), " twice; call fully_shard once for each layer, bottom-up");
    find_parameters(*layer, "", options.ignored_params, parameters);
  }
  for (nn::Layer* layer : layers) {
    check_not_shared_with_other_groups(*layer, parameters.found);
    check_all_found(*layer, parameters);
  }
  std::vector<std::unique_ptr<FSDPParam>> params;
  bool has_extension = false;
  for (Found& parameter : parameters.found) {
    const FSDPParam::Owner& owner = parameter.owners.front();
    auto extension =
        options.make_extension ? options.make_extension(*owner.layer, owner.name) : nullptr;
    has_extension = has_extension || extension != nullptr;
    params.push_back(std::make_unique<FSDPParam>(parameter.fqn, parameter.owners, parameter.tensor,
                                                 mesh, options, std::move(extension)));
    // The whole parameter dies here, before the next one is cut.
    parameter.tensor.reset();
  }
  check_post_forward_size(options, mesh, has_extension);
  auto group = std::make_unique<FSDPParamGroup>(std::move(params), mesh, options);
  FSDPState::attach(
      std::make_shared<FSDPState>(std::move(group), options, std::move(parameters.ignored)),
      layers);
}

void materialize(nn::Layer& root, const at::Device& device, const ShardInitializer& initialize) {
  const c10::NoGradGuard no_grad;
  for (const auto& [fqn, param] : params_in_model_order(root)) {
    if (param->is_meta()) {
      param->materialize(device);
    }
    initialize(fqn, param->sharded_param().detach(), param->row_begin());
    param->mark_changed();
  }
}

std::vector<ShardedParameter> sharded_parameters(nn::Layer& root) {
  std::vector<ShardedParameter> parameters;
  for (const auto& [fqn, param] : params_in_model_order(root)) {
    parameters.push_back({fqn, param->sharded_param(), param->global_sizes(), param->row_begin()});
  }
  return parameters;
}

at::Tensor full_parameter(const ShardedParameter& parameter, const comm::DeviceMesh& mesh) {
  const c10::NoGradGuard no_grad;
  const int64_t rows = parameter.global_sizes[0];
  const int64_t num_shards = mesh.shard_axis().size();
  if (num_shards == 1) {
    return parameter.local.detach().clone();
  }
  std::vector<int64_t> sizes = parameter.global_sizes;
  sizes[0] = padded_rows(rows, num_shards);
  const at::Tensor padded = at::zeros(sizes, parameter.local.options());
  padded.narrow(0, 0, parameter.local.size(0)).copy_(parameter.local);
  sizes[0] *= num_shards;
  const at::Tensor gathered = at::empty(sizes, parameter.local.options());
  mesh.shard_axis().all_gather(gathered, padded);
  return gathered.narrow(0, 0, rows);
}

}  // namespace narrowgauge::fsdp
