#include "trainer/export_source.h"

#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include "checkpoint/huggingface_directory.h"
#include "comm/self_communicator.h"
#include "export/fine_grained_fp8_layout.h"
#include "float8/cast.h"
#include "float8/select_linears.h"
#include "lora/adapters.h"
#include "nn/transformer.h"
#include "qat/convert.h"
#include "qat/prepare.h"
#include "quantization/quantized_model.h"
#include "trainer/config_reader.h"
#include "trainer/dtype.h"
#include "trainer/export_run.h"
#include "trainer/float8_conversion.h"
#include "trainer/lora_conversion.h"
#include "trainer/model_shape.h"
#include "trainer/qat_conversion.h"
#include "trainer/run_checkpoint.h"
#include "trainer/run_directory.h"
#include "trainer/run_tokenizer.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSquare = 128;

// Rows of one of our parameters: what one Hugging Face tensor holds.
struct Piece {
  std::string parameter;
  int64_t row_begin;
  int64_t row_end;
};

std::map<std::string, Piece> pieces_by_name(const nn::TransformerConfig& config) {
  std::map<std::string, Piece> pieces;
  for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config)) {
    for (const auto& piece : checkpoint::huggingface_pieces(config, spec)) {
      pieces[piece.name] = {spec.name, piece.row_begin, piece.row_end};
    }
  }
  return pieces;
}

// Gives tensors by Hugging Face's names out of parameters by ours; the last parameter is kept, as
// q, k and v follow each other.
exports::TensorReader by_piece(const nn::TransformerConfig& config,
                               std::function<at::Tensor(const std::string&)> parameter) {
  auto last = std::make_shared<std::pair<std::string, at::Tensor>>();
  return [pieces = pieces_by_name(config), parameter = std::move(parameter),
          last](const std::string& name) {
    const Piece& piece = pieces.at(name);
    if (last->first != piece.parameter) {
      *last = {piece.parameter, parameter(piece.parameter)};
    }
    return last->second.slice(0, piece.row_begin, piece.row_end);
  };
}

std::shared_ptr<const data::Tokenizer> tokenizer_in(const fs::path& directory) {
  for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json", "encoder.json"}) {
    if (fs::exists(directory / name)) {
      return data::load_tokenizer(data::guess_tokenizer(directory));
    }
  }
  return nullptr;
}

TrainConfig run_config(const fs::path& path) {
  TrainConfig config = read_config(path / "config.yaml", {});
  config.job.run_dir = path;  // the run may have been moved
  fill_model_shape(config.model, RunDirectory::attach(config));
  return config;
}

// What training makes of the plain model, by our names.
struct Conversions {
  std::vector<qat::PreparedLayer> prepared;
  std::vector<std::string> adapted;  // linears whose adapters are to be merged
};

Conversions conversions_of(const TrainConfig& config) {
  const auto model =
      std::make_shared<nn::Transformer>(config.model, at::TensorOptions().device(at::kMeta));
  prepare_qat(config, *model);
  std::vector<std::string> adapted = add_adapters(config, *model).linears;
  return {qat::prepared_layers(*model), std::move(adapted)};
}

// Adapters are merged in the dtype of forward where forward quantized what it merged, else in fp32.
lora::FullParameter merged(const TrainConfig& config, const Conversions& conversions,
                           lora::FullParameter parameter) {
  if (conversions.adapted.empty()) {
    return parameter;
  }
  const at::ScalarType dtype = conversions.prepared.empty()
                                   ? at::kFloat
                                   : parse_dtype(config.training.mixed_precision_param);
  return lora::merged_parameters(parameter, conversions.adapted, lora_spec(config), dtype);
}

void take_weights(std::shared_ptr<const quantization::QuantizedModel> stored,
                  const std::string& origin, exports::ExportModel& model) {
  // The description may speak of plain weights alone.
  if (!stored->weights.empty()) {
    model.dtype = stored->weights.begin()->second.dtype;
  }
  for (const auto& [module, weight] : stored->weights) {
    if (weight.dtype != model.dtype) {
      throw std::runtime_error(origin + ": expected one dtype of forward, got " +
                               c10::toString(weight.dtype) + " for " + module + " and " +
                               c10::toString(model.dtype) + " for others");
    }
    model.schemes[module] = weight.scheme;
  }
  const auto find = [origin](const auto& tensors, const std::string& name) -> const auto& {
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
      throw std::runtime_error(origin + ": has no tensor '" + name + "'");
    }
    return found->second;
  };
  model.plain = [=](const std::string& name) { return find(stored->plain, name); };
  model.quantized = [=](const std::string& module) { return find(stored->weights, module).tensor; };
}

ExportSource open_run(const fs::path& path, int64_t step, bool take_quantized) {
  const TrainConfig config = run_config(path);
  const RunDirectory run = RunDirectory::attach(config);
  comm::SelfCommunicator world;
  const auto folder = find_checkpoint(run.checkpoints(), step, world);
  if (!folder) {
    throw std::runtime_error("no checkpoint in " + run.checkpoints().string() +
                             "; train it with checkpoint.enable=true first");
  }
  ExportSource source;
  source.origin = *folder;
  source.tokenizer = load_run_tokenizer(config, run);
  source.model.config = described_model(run, config.model, source.tokenizer.get());
  source.model.dtype = parse_dtype(config.training.mixed_precision_param);
  const Conversions conversions = conversions_of(config);
  const auto parameter = merged(config, conversions, full_parameter_reader(*folder, config.model));
  if (take_quantized && !conversions.prepared.empty()) {
    take_weights(
        std::make_shared<quantization::QuantizedModel>(qat::convert(
            config.model, conversions.prepared, source.model.dtype, source.model.dtype, parameter)),
        folder->string(), source.model);
  } else {
    source.model.plain = by_piece(config.model, parameter);
  }
  return source;
}

ExportSource open_quantized(const fs::path& path) {
  ExportSource source;
  source.origin = path;
  source.tokenizer = tokenizer_in(path);
  source.model.config = checkpoint::read_huggingface_config(path);
  source.model.dtype = parse_dtype(source.model.config.dtype);
  take_weights(
      std::make_shared<quantization::QuantizedModel>(quantization::read_quantized_model(path)),
      path.string(), source.model);
  return source;
}

ExportSource open_huggingface(const fs::path& path) {
  auto directory = std::make_shared<checkpoint::HuggingFaceDirectory>(
      checkpoint::HuggingFaceDirectory::open(path));
  directory->validate();
  ExportSource source;
  source.origin = path;
  source.tokenizer = tokenizer_in(path);
  source.model.config = directory->config();
  source.model.dtype = parse_dtype(directory->config().dtype);
  source.model.plain =
      by_piece(directory->config().transformer,
               [directory](const std::string& name) { return directory->parameter(name); });
  return source;
}

}  // namespace

ExportSource open_export_source(const fs::path& path, int64_t step, bool take_quantized) {
  if (fs::exists(path / "config.yaml")) {
    return open_run(path, step, take_quantized);
  }
  if (fs::exists(path / quantization::kQuantizedModelFile)) {
    return open_quantized(path);
  }
  return open_huggingface(path);
}

void quantize_blockwise(ExportSource& source, const fs::path& path) {
  if (!fs::exists(path / "config.yaml")) {
    throw std::runtime_error(path.string() +
                             ": expected a run for fine-grained-fp8, which holds the weights of "
                             "float8.recipe_name=blockwise");
  }
  const TrainConfig config = run_config(path);
  if (config.float8.recipe_name != "blockwise") {
    throw std::runtime_error(path.string() +
                             ": fine-grained-fp8 holds weights with a scale for each 128 x 128, "
                             "which float8.recipe_name=blockwise trains; this run has " +
                             config.float8.recipe_name);
  }
  const nn::TransformerConfig& shape = source.model.config.transformer;
  nn::Transformer model(shape, at::TensorOptions().device(at::kMeta).dtype(source.model.dtype));
  const float8::Float8LinearConfig linear = float8_linear_config(config.float8);
  std::map<std::string, bool> converted;  // by our name
  for (const auto& decision : float8::select_linears(model, linear, config.float8.filter_fqns)) {
    converted[decision.fqn + ".weight"] = decision.converted;
  }
  for (const auto& [name, piece] : pieces_by_name(shape)) {
    if (!converted[piece.parameter]) {
      continue;
    }
    if (piece.row_begin % kSquare != 0) {
      throw std::runtime_error(name + " shares squares of 128 x 128 with its neighbour in " +
                               piece.parameter + " (it begins at row " +
                               std::to_string(piece.row_begin) +
                               "), so its codes cannot be told apart from the other's scales; "
                               "choose head and feed-forward sizes in multiples of 128");
    }
    source.model.schemes[exports::module_of(name)] = exports::blockwise_fp8_scheme();
  }
  source.model.quantized = [plain = source.model.plain, dtype = source.model.dtype,
                            spec = linear.cast_config_weight.spec](const std::string& module) {
    const at::Tensor weight = plain(module + ".weight").to(dtype);
    const auto cast = float8::hp_tensor_to_float8_dynamic(weight, spec, 1);
    quantization::QuantizedTensor result;
    result.codes = cast.data.contiguous();
    result.scale = cast.inverse_scale.contiguous();
    result.spec = exports::blockwise_fp8_scheme().weight;
    return result;
  };
}

}  // namespace narrowgauge::trainer
