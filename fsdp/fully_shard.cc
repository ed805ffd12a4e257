#include "fsdp/fully_shard.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "fsdp/collectives.h"
#include "fsdp/fsdp_param.h"
#include "fsdp/fsdp_param_group.h"
#include "fsdp/fsdp_state.h"

namespace narrowgauge::fsdp {
namespace {

using ParamOfTensor = std::unordered_map<const at::TensorImpl*, FSDPParam*>;

ParamOfTensor params_by_unsharded_tensor(const nn::Layer& root) {
  ParamOfTensor params;
  for (const auto& state : FSDPState::find_all(root)) {
    for (const auto& param : state->group().params()) {
      params[param->unsharded_param().unsafeGetTensorImpl()] = param.get();
    }
  }
  return params;
}

// Names from the root; a tied parameter once, under its first name.
std::vector<std::pair<std::string, FSDPParam*>> params_in_model_order(const nn::Layer& root) {
  const ParamOfTensor params = params_by_unsharded_tensor(root);
  std::unordered_set<const FSDPParam*> seen;
  std::vector<std::pair<std::string, FSDPParam*>> ordered;
  for (const auto& parameter : root.named_parameters()) {
    const auto param = params.find(parameter.value().unsafeGetTensorImpl());
    TORCH_CHECK(param != params.end(), "expected every parameter to be sharded, got '",
                parameter.key(), "', which is not; call fully_shard on the root last");
    if (seen.insert(param->second).second) {
      ordered.emplace_back(parameter.key(), param->second);
    }
  }
  return ordered;
}

// An original parameter with all slots that hold it.
struct Found {
  std::string fqn;
  at::Tensor tensor;
  std::vector<FSDPParam::Owner> owners;
};

// Parameters of `layer` and below, without those of layers that have a group of their own.
void find_parameters(nn::Layer& layer, const std::string& prefix, std::vector<Found>& found) {
  for (const auto& parameter : layer.named_parameters(/*recurse=*/false)) {
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
      find_parameters(*child, prefix + name + ".", found);
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

void check_all_found(nn::Layer& layer, const std::vector<Found>& found) {
  const ParamOfTensor grouped = params_by_unsharded_tensor(layer);
  std::unordered_set<const at::TensorImpl*> known;
  for (const Found& parameter : found) {
    known.insert(parameter.tensor.unsafeGetTensorImpl());
  }
  for (const auto& parameter : layer.named_parameters()) {
    const at::TensorImpl* tensor = parameter.value().unsafeGetTensorImpl();
    TORCH_CHECK(known.count(tensor) > 0 || grouped.count(tensor) > 0,
                "expected every module to be an nn::Layer, got '", parameter.key(),
                "' below one that is not; derive it from nn::Layer");
  }
}

}  // namespace

void fully_shard(nn::Layer& layer, const comm::DeviceMesh& mesh, const FullyShardOptions& options) {
  TORCH_CHECK(!FSDPState::find(layer), "expected a layer that is not sharded yet, got ",
              layer.name(), " twice; call fully_shard once for each layer, bottom-up");
  std::vector<Found> found;
  find_parameters(layer, "", found);
  check_not_shared_with_other_groups(layer, found);
  check_all_found(layer, found);
  std::vector<std::unique_ptr<FSDPParam>> params;
  for (Found& parameter : found) {
    const FSDPParam::Owner& owner = parameter.owners.front();
    auto extension =
        options.make_extension ? options.make_extension(*owner.layer, owner.name) : nullptr;
    params.push_back(std::make_unique<FSDPParam>(parameter.fqn, parameter.owners, parameter.tensor,
                                                 mesh, options.mp_policy.param_dtype,
                                                 std::move(extension)));
    // The whole parameter dies here, before the next one is cut.
    parameter.tensor.reset();
  }
  auto group = std::make_unique<FSDPParamGroup>(std::move(params), mesh, options);
  FSDPState::attach(std::make_shared<FSDPState>(std::move(group), options), layer);
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

void set_requires_gradient_sync(nn::Layer& root, bool enabled) {
  for (const auto& state : FSDPState::find_all(root)) {
    state->group().set_requires_gradient_sync(enabled);
  }
}

GatheredParameters::GatheredParameters(nn::Layer& root) : root_(root) {
  const auto state = FSDPState::find(root);
  TORCH_CHECK(state, "expected a sharded root, got ", root.name(), "; call fully_shard on it");
  FSDPContext& context = state->context(root);
  for (FSDPState* each : context.states) {
    each->group().unshard();
  }
  ++context.gathered_scopes;
}

GatheredParameters::~GatheredParameters() {
  FSDPContext& context = FSDPState::find(root_)->context(root_);
  if (--context.gathered_scopes == 0) {
    for (FSDPState* each : context.states) {
      each->group().reshard();
    }
  }
}

}  // namespace narrowgauge::fsdp
