#include "trainer/distillation.h"

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <functional>
#include <string>
#include <utility>

#include "checkpoint/huggingface_directory.h"
#include "fsdp/fully_shard.h"
#include "nn/linear_distillation.h"
#include "trainer/dtype.h"

namespace narrowgauge::trainer {
namespace {

// Hands over what the teacher's head reads and its weight, while its forward has gathered it.
class HeadReader final : public nn::TrainingLoss {
 public:
  using Use = std::function<void(const nn::TeacherHead& head)>;
  void set_use(Use use) { use_ = std::move(use); }

  at::Tensor of_hidden(const at::Tensor& x, const at::Tensor& weight, const Batch&) override {
    use_({x, weight});
    return x;
  }
  at::Tensor of_logits(const at::Tensor&, const Batch&) override {
    TORCH_CHECK(false, "expected a teacher without conversions");
  }

 private:
  Use use_;
};

class DistillationLoss final : public nn::TrainingLoss {
 public:
  DistillationLoss(std::shared_ptr<nn::Transformer> teacher, const nn::DistillationOptions& options)
      : teacher_(std::move(teacher)), options_(options) {
    teacher_->set_training_loss(reader_);
  }

  at::Tensor of_hidden(const at::Tensor& x, const at::Tensor& weight, const Batch& batch) override {
    if (!c10::GradMode::is_enabled()) {
      return cross_entropy_.of_hidden(x, weight, batch);
    }
    return with_teacher(batch, [&](const nn::TeacherHead& teacher) {
      return nn::linear_distillation_sum(x, weight, teacher, batch.targets, options_, batch.scale,
                                         nn::kIgnoredTarget);
    });
  }

  at::Tensor of_logits(const at::Tensor& logits, const Batch& batch) override {
    if (!c10::GradMode::is_enabled()) {
      return cross_entropy_.of_logits(logits, batch);
    }
    return with_teacher(batch, [&](const nn::TeacherHead& teacher) {
      return nn::distillation_sum(logits, teacher, batch.targets, options_, batch.scale,
                                  nn::kIgnoredTarget);
    });
  }

 private:
  // `loss` runs with gradients inside the teacher's forward, which has none.
  at::Tensor with_teacher(const Batch& batch,
                          const std::function<at::Tensor(const nn::TeacherHead&)>& loss) {
    at::Tensor result;
    reader_->set_use([&](const nn::TeacherHead& teacher) {
      const c10::AutoGradMode with_gradients(true);
      result = loss(teacher);
    });
    const c10::NoGradGuard no_grad;
    teacher_->loss_sum(batch.tokens, batch.targets, 1.0, batch.cu_seqlens);
    return result;
  }

  std::shared_ptr<nn::Transformer> teacher_;
  std::shared_ptr<HeadReader> reader_ = std::make_shared<HeadReader>();
  const nn::DistillationOptions options_;
  nn::CrossEntropyLoss cross_entropy_;
};

std::shared_ptr<nn::Transformer> load_teacher(const TrainConfig& config,
                                              const comm::DeviceMesh& mesh, at::Device device) {
  const auto dtype = parse_dtype(config.training.mixed_precision_param);
  auto teacher = std::make_shared<nn::Transformer>(
      config.model, at::TensorOptions().device(at::kMeta).dtype(dtype));
  for (const auto& parameter : teacher->parameters()) {
    parameter.set_requires_grad(false);
  }
  fsdp::FullyShardOptions options;
  if (config.training.enable_cpu_offload) {
    options.offload_policy = fsdp::CPUOffloadPolicy{};
  }
  for (const auto& block : teacher->layers) {
    fsdp::fully_shard(*block, mesh, options);
  }
  fsdp::fully_shard(*teacher, mesh, options);
  const auto directory = checkpoint::HuggingFaceDirectory::open(config.model.initial_load_path);
  fsdp::materialize(*teacher, device,
                    [&](const std::string& fqn, const at::Tensor& shard, int64_t row_begin) {
                      shard.copy_(directory.rows(fqn, row_begin, row_begin + shard.size(0)));
                    });
  return teacher;
}

}  // namespace

std::shared_ptr<nn::Transformer> distill(const TrainConfig& config, const comm::DeviceMesh& mesh,
                                         at::Device device, nn::Transformer& model) {
  if (config.distillation.weight == 0) {
    return nullptr;
  }
  auto teacher = load_teacher(config, mesh, device);
  model.set_training_loss(std::make_shared<DistillationLoss>(
      teacher,
      nn::DistillationOptions{config.distillation.weight, config.distillation.temperature}));
  if (mesh.world().rank() == 0) {
    std::fprintf(stderr, "distillation from %s: weight %g, temperature %g\n",
                 config.model.initial_load_path.c_str(), config.distillation.weight,
                 config.distillation.temperature);
  }
  return teacher;
}

}  // namespace narrowgauge::trainer
