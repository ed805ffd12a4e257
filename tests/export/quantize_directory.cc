// Rounds the linears of a Hugging Face directory to nearest, for the tests of exports:
//   quantize_directory FROM TO SCHEME [group_size=N] [bits=N] [eps=X] [asymmetric] [lm_head]
//       [down_proj=SCHEME]
// Writes TO as `narrowgauge export` reads it, and TO/values.safetensors with what every weight
// stands for, in the dtype of FROM, under its Hugging Face name.
#include <filesystem>
#include <iostream>
#include <string>

#include "checkpoint/huggingface_directory.h"
#include "export/export_model.h"
#include "quantization/quantized_model.h"

namespace narrowgauge {
namespace {

namespace fs = std::filesystem;

struct Request {
  fs::path from;
  fs::path to;
  std::string scheme;
  quantization::SchemeOptions options;
  bool with_head = false;
  std::string down_proj = "";  // the scheme of these alone; empty: as the others
};

Request parse(int argc, char** argv) {
  TORCH_CHECK(argc >= 4, "usage: quantize_directory FROM TO SCHEME [OPTION ...]");
  Request request{argv[1], argv[2], argv[3], {}};
  for (int i = 4; i < argc; ++i) {
    const std::string option = argv[i];
    if (option.starts_with("group_size=")) {
      request.options.group_size = std::stol(option.substr(11));
    } else if (option.starts_with("bits=")) {
      request.options.bits = std::stoi(option.substr(5));
    } else if (option.starts_with("eps=")) {
      request.options.eps = std::stod(option.substr(4));
    } else if (option.starts_with("down_proj=")) {
      request.down_proj = option.substr(10);
    } else if (option == "asymmetric") {
      request.options.mapping = quantization::MappingType::kAsymmetric;
    } else {
      TORCH_CHECK(option == "lm_head", "unknown option ", option);
      request.with_head = true;
    }
  }
  return request;
}

void run(const Request& request) {
  const auto source = checkpoint::HuggingFaceDirectory::open(request.from);
  const nn::TransformerConfig& shape = source.config().transformer;
  const at::ScalarType dtype = source.config().dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const auto default_scheme = quantization::scheme_by_name(request.scheme, request.options);
  quantization::QuantizedModel model;
  std::vector<std::pair<std::string, at::Tensor>> values;
  for (const auto& spec : checkpoint::parameter_specs(shape)) {
    const at::Tensor whole = source.parameter(spec.name, dtype);
    for (const auto& piece : checkpoint::huggingface_pieces(shape, spec)) {
      const at::Tensor rows = whole.slice(0, piece.row_begin, piece.row_end).contiguous();
      const std::string module = exports::module_of(piece.name);
      const bool quantized = rows.dim() == 2 && module != "model.embed_tokens" &&
                             (module != "lm_head" || request.with_head);
      if (!quantized) {
        model.plain[piece.name] = rows;
        values.emplace_back(piece.name, rows);
        continue;
      }
      const auto scheme = module.ends_with("down_proj") && !request.down_proj.empty()
                              ? quantization::scheme_by_name(request.down_proj)
                              : default_scheme;
      const auto tensor = quantization::quantize(rows, scheme.weight);
      values.emplace_back(piece.name, quantization::dequantize(tensor, dtype));
      model.weights[module] = {tensor, scheme, dtype};
    }
  }
  fs::create_directories(request.to);
  for (const auto& entry : fs::directory_iterator(request.from)) {
    if (entry.path().extension() != ".safetensors") {
      fs::copy(entry.path(), request.to / entry.path().filename());
    }
  }
  quantization::write_quantized_model(request.to, model);
  checkpoint::write_safetensors(request.to / "values.safetensors", values, {{"format", "pt"}});
}

}  // namespace
}  // namespace narrowgauge

int main(int argc, char** argv) {
  try {
    narrowgauge::run(narrowgauge::parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
