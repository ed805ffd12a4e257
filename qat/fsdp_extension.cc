#include "qat/fsdp_extension.h"

#include <ATen/ops/zeros.h>

#include <memory>
#include <utility>
#include <vector>

#include "qat/fake_quantize.h"
#include "qat/fake_quantized_linear.h"
#include "quantization/quantized_tensor.h"

namespace narrowgauge::qat {
namespace {

constexpr int64_t kBitsPerWord = 64;

// [shards, padded rows, ...] -> [rows, ...] without the padding behind the last
// shard's rows.
at::Tensor without_padding(const at::Tensor& gathered, int64_t rows) {
  return gathered.flatten(0, 1).narrow(0, 0, rows);
}

// Keeps the layer's state alive, not the layer, which owns this object through
// its hooks.
class FakeQuantizeExtension final : public fsdp::ParamExtension {
 public:
  FakeQuantizeExtension(std::shared_ptr<FakeQuantizedLinearState> state, const at::Tensor& weight,
                        at::ScalarType param_dtype, bool offloaded)
      : state_(std::move(state)),
        rows_(weight.size(0)),
        words_((weight.size(1) + kBitsPerWord - 1) / kBitsPerWord),
        param_dtype_(param_dtype),
        wants_clipped_(weight.requires_grad() && quantization::can_clip(state_->scheme.weight)),
        offloaded_(offloaded) {}

  std::vector<at::Tensor> pre_all_gather(const at::Tensor& padded_shard) override {
    gathering_enabled_ = state_->enabled;
    if (!gathering_enabled_ || !is_by_row()) {
      cast_ = {};
      return {padded_shard.to(param_dtype_)};
    }
    if (!holds_cast_of(padded_shard)) {
      cast_ = fake_quantize_with_clipped(padded_shard, state_->scheme.weight, param_dtype_,
                                         wants_clipped_);
      shard_data_ = padded_shard.const_data_ptr();
      shard_version_ = static_cast<int64_t>(padded_shard._version());
    }
    if (!wants_clipped_) {
      return {cast_.values};
    }
    if (!cast_.clipped.defined()) {
      // All ranks gather alike.
      cast_.clipped =
          at::zeros({padded_shard.size(0), words_}, padded_shard.options().dtype(at::kLong));
    }
    return {cast_.values, cast_.clipped};
  }

  void post_all_gather(std::vector<at::Tensor> outputs) override {
    state_->is_gathered = true;
    state_->gathered_enabled = gathering_enabled_;
    state_->values = without_padding(outputs.at(0), rows_);
    state_->clipped = outputs.size() > 1 ? without_padding(outputs[1], rows_) : at::Tensor();
    if (gathering_enabled_ && !is_by_row()) {
      FakeQuantized whole = fake_quantize_with_clipped(state_->values, state_->scheme.weight,
                                                       param_dtype_, wants_clipped_);
      state_->values = std::move(whole.values);
      state_->clipped = std::move(whole.clipped);
    }
  }

  void release() override {
    state_->values.reset();
    state_->clipped.reset();
  }

 private:
  bool is_by_row() const {
    const quantization::QuantizationSpec& spec = state_->scheme.weight;
    return spec.granularity != quantization::Granularity::kPerTensor &&
           spec.grid != quantization::Grid::kNvfp4;
  }

  // An offloaded shard comes as a copy, whose version says nothing.
  bool holds_cast_of(const at::Tensor& padded_shard) const {
    return cast_.values.defined() && !offloaded_ && padded_shard.const_data_ptr() == shard_data_ &&
           static_cast<int64_t>(padded_shard._version()) == shard_version_;
  }

  std::shared_ptr<FakeQuantizedLinearState> state_;
  const int64_t rows_;
  const int64_t words_;
  const at::ScalarType param_dtype_;
  const bool wants_clipped_;
  const bool offloaded_;
  bool gathering_enabled_ = false;
  FakeQuantized cast_;  // of this rank's shard
  const void* shard_data_ = nullptr;
  int64_t shard_version_ = 0;
};

}  // namespace

fsdp::ParamExtensionFactory fake_quantize_extension(std::optional<c10::ScalarType> param_dtype,
                                                    bool offloaded) {
  return [param_dtype, offloaded](
             nn::Layer& owner,
             const std::string& parameter_name) -> std::unique_ptr<fsdp::ParamExtension> {
    auto* linear = dynamic_cast<FakeQuantizedLinear*>(&owner);
    if (linear == nullptr || parameter_name != "weight" || !linear->reads_weight_alone()) {
      return nullptr;
    }
    return std::make_unique<FakeQuantizeExtension>(
        linear->shared_state(), linear->weight, param_dtype.value_or(linear->weight.scalar_type()),
        offloaded);
  };
}

}  // namespace narrowgauge::qat
