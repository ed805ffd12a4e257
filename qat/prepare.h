#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nn/layer.h"
#include "qat/prepared_layer.h"
#include "quantization/scheme.h"

namespace narrowgauge::qat {

// What becomes of the layers whose name matches.
struct ModuleRule {
  std::string pattern;  // a name, a glob of whole names, or "re:" and a regular expression of them
  std::optional<quantization::Scheme> scheme;  // nothing: they stay as they are
};

// "PATTERN=SCHEME key=value ..." (see quantization::parse_scheme) or "PATTERN=none":
// "layers.0.*=none", "re:.*down_proj=int8-weight-only". Throws c10::Error quoting the text.
ModuleRule parse_module_rule(std::string_view text);

struct PrepareConfig {
  // Of every Linear but the head (kHead) that no rule names; nothing: only rules apply.
  std::optional<quantization::Scheme> scheme;
  // The first that matches decides. The head and embeddings are prepared only by rules.
  std::vector<ModuleRule> rules;
  bool tied_embeddings = false;  // the head reads the embedding's table
  // Linears get ranges that train: see learned_range_linear.h. Embeddings keep those of their rows.
  bool learned_ranges = false;
};
inline constexpr std::string_view kHead = "lm_head";

// What became of one Linear or Embedding.
struct LayerDecision {
  std::string fqn;
  int64_t rows = 0;  // of its weight
  int64_t cols = 0;
  std::optional<quantization::Scheme> scheme;
  std::string reason;  // why there is none
};

// Swaps Linears and Embeddings below `root` for their fake-quantized forms; parameters stay the
// same tensors under the same names. Before fully_shard. Returns a decision a layer, in the order
// of registration. Throws c10::Error for a rule that matches no layer, for one whose groups do not
// divide the layer (where only the default applies, the layer stays as it is), for an embedding
// that the head shares, and for a range that can not be learned.
std::vector<LayerDecision> prepare(nn::Layer& root, const PrepareConfig& config);

// Plain layers again, with the weights that were trained. Returns how many were swapped. Throws
// c10::Error for one with adapters or learned ranges, of which weights alone are not the whole.
int64_t convert_to_plain(nn::Layer& root);

// All fake-quantized layers below `root`; between steps.
void set_fake_quant_enabled(nn::Layer& root, bool enabled);

// Every fake-quantized layer below `root`.
std::vector<PreparedLayer> prepared_layers(nn::Layer& root);

// A line for each kind of layer (names that differ in numbers alone), for people:
// "layers.*.mlp.down_proj  1024 -> 384  x 6  int4 symmetric per group of 32, inputs int8 ...".
std::vector<std::string> describe(const std::vector<LayerDecision>& decisions);

}  // namespace narrowgauge::qat
