#include "float8/fsdp_extension.h"

#include <memory>
#include <utility>
#include <vector>

#include "float8/float8_linear.h"

namespace narrowgauge::float8 {
namespace {

// Keeps the layer's state alive, not the layer, which owns this object through its hooks.
class Float8Extension final : public fsdp::ParamExtension {
 public:
  explicit Float8Extension(std::shared_ptr<Float8LinearState> state) : state_(std::move(state)) {}

  std::vector<at::Tensor> pre_all_gather(const at::Tensor& padded_shard) override {
    return state_->gather->pack(padded_shard);
  }
  void post_all_gather(std::vector<at::Tensor> outputs) override {
    state_->gather->unpack(outputs);
  }
  void release() override { state_->gather->release(); }

 private:
  std::shared_ptr<Float8LinearState> state_;
};

bool is_disabled(const CastConfig& cast) { return cast.scaling_type == ScalingType::kDisabled; }

}  // namespace

fsdp::ParamExtensionFactory float8_param_extension(std::optional<at::ScalarType> param_dtype,
                                                   const WeightLifetime& lifetime) {
  return [lifetime, param_dtype](
             nn::Layer& owner,
             const std::string& parameter_name) -> std::unique_ptr<fsdp::ParamExtension> {
    auto* linear = dynamic_cast<Float8Linear*>(&owner);
    if (linear == nullptr || parameter_name != "weight" || !linear->casts_its_parameter()) {
      return nullptr;
    }
    const auto state = linear->shared_state();
    if (is_disabled(state->weight.dim1()) || is_disabled(state->weight.dim0())) {
      return nullptr;
    }
    state->gather =
        std::make_unique<WeightGather>(state->weight, linear->spec.out_features,
                                       param_dtype.value_or(linear->weight.scalar_type()),
                                       state->config.enable_fsdp_float8_all_gather, lifetime);
    return std::make_unique<Float8Extension>(state);
  };
}

}  // namespace narrowgauge::float8
