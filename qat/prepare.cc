#include "qat/prepare.h"

#include <c10/util/Exception.h>
#include <fnmatch.h>

#include <algorithm>
#include <functional>
#include <regex>
#include <utility>

#include "nn/embedding.h"
#include "nn/linear.h"
#include "qat/fake_quantized_embedding.h"
#include "qat/fake_quantized_linear.h"
#include "qat/learned_range_linear.h"

namespace narrowgauge::qat {
namespace {

using quantization::Scheme;

constexpr std::string_view kRegex = "re:";

// Calls body(parent, name, child, fqn) for every layer below `layer`, children
// after their parent.
using Visitor =
    std::function<void(nn::Layer& parent, const std::string& name,
                       const std::shared_ptr<nn::Layer>& child, const std::string& fqn)>;
void visit(nn::Layer& layer, const std::string& prefix, const Visitor& body) {
  for (const auto& [name, child] : layer.child_layers()) {
    const std::string fqn = prefix + name;
    body(layer, name, child, fqn);
    visit(*child, fqn + ".", body);
  }
}

bool matches(const std::string& pattern, const std::string& fqn) {
  if (std::string_view(pattern).starts_with(kRegex)) {
    return std::regex_match(fqn, std::regex(pattern.substr(kRegex.size())));
  }
  return fnmatch(pattern.c_str(), fqn.c_str(), 0) == 0;
}

// Which rules have matched some layer.
class Rules {
 public:
  explicit Rules(const PrepareConfig& config)
      : config_(config), used_(config.rules.size(), false) {}

  const ModuleRule* find(const std::string& fqn) {
    for (size_t i = 0; i < config_.rules.size(); ++i) {
      if (matches(config_.rules[i].pattern, fqn)) {
        used_[i] = true;
        return &config_.rules[i];
      }
    }
    return nullptr;
  }

  void check_all_used() const {
    for (size_t i = 0; i < used_.size(); ++i) {
      TORCH_CHECK(used_[i], "expected a Linear or Embedding that ", config_.rules[i].pattern,
                  " matches and no earlier rule does; names are those of the "
                  "model's parameters "
                  "without .weight");
    }
  }

 private:
  const PrepareConfig& config_;
  std::vector<bool> used_;
};

// Why the scheme can not hold a weight of `cols`; empty if it can.
std::string obstacle(const Scheme& scheme, int64_t cols) {
  try {
    quantization::group_columns(scheme.weight, cols);
    if (scheme.activation) {
      quantization::group_columns(*scheme.activation, cols);
    }
    return "";
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

void decide(const ModuleRule* rule, const PrepareConfig& config, bool by_default,
            LayerDecision& decision) {
  if (rule != nullptr) {
    decision.scheme = rule->scheme;
    decision.reason = rule->scheme ? "" : "rule " + rule->pattern;
    if (rule->scheme) {
      const std::string problem = obstacle(*rule->scheme, decision.cols);
      TORCH_CHECK(problem.empty(), decision.fqn, ": ", problem);
    }
    return;
  }
  if (!by_default || !config.scheme) {
    decision.reason = "prepared by a rule only";
    return;
  }
  decision.reason = obstacle(*config.scheme, decision.cols);
  if (decision.reason.empty()) {
    decision.scheme = config.scheme;
  }
}

std::shared_ptr<nn::Layer> fake_quantized(const nn::Linear& linear, const LayerDecision& decision,
                                          bool learned_range) {
  if (!learned_range) {
    return std::make_shared<FakeQuantizedLinear>(linear, *decision.scheme);
  }
  const std::string problem = learned_range_obstacle(decision.scheme->weight);
  TORCH_CHECK(problem.empty(), "expected a scheme whose ranges can be learned for ", decision.fqn,
              ", got ", decision.scheme->name, ": ", problem);
  return std::make_shared<LearnedRangeLinear>(linear, *decision.scheme);
}

// "layers.11.mlp" -> "layers.*.mlp".
std::string without_numbers(const std::string& fqn) {
  return std::regex_replace(fqn, std::regex(R"((^|\.)[0-9]+(?=\.|$))"), "$1*");
}

std::string outcome(const LayerDecision& decision) {
  if (!decision.scheme) {
    return "as it is (" + decision.reason + ")";
  }
  std::string text = quantization::describe(decision.scheme->weight);
  if (decision.scheme->activation) {
    text += ", inputs " + quantization::describe(*decision.scheme->activation);
  }
  return text;
}

}  // namespace

ModuleRule parse_module_rule(std::string_view text) {
  const size_t equals = text.find('=');
  TORCH_CHECK(equals != std::string_view::npos && equals > 0, "expected PATTERN=SCHEME, got ",
              text);
  ModuleRule rule{std::string(text.substr(0, equals)), std::nullopt};
  const std::string_view scheme = text.substr(equals + 1);
  if (scheme != "none") {
    rule.scheme = quantization::parse_scheme(scheme);
  }
  try {
    matches(rule.pattern, "");
  } catch (const std::regex_error& error) {
    TORCH_CHECK(false, "expected a regular expression after re:, got ", rule.pattern, ": ",
                error.what());
  }
  return rule;
}

std::vector<LayerDecision> prepare(nn::Layer& root, const PrepareConfig& config) {
  Rules rules(config);
  std::vector<LayerDecision> decisions;
  std::vector<std::function<void()>> swaps;  // after every decision: all or nothing
  visit(root, "",
        [&](nn::Layer& parent, const std::string& name, const std::shared_ptr<nn::Layer>& child,
            const std::string& fqn) {
          const auto linear = std::dynamic_pointer_cast<nn::Linear>(child);
          const auto embedding = std::dynamic_pointer_cast<nn::Embedding>(child);
          if (!linear && !embedding) {
            return;
          }
          const at::Tensor& weight = linear ? linear->weight : embedding->weight;
          LayerDecision decision{fqn, weight.size(0), weight.size(1), std::nullopt, ""};
          decide(rules.find(fqn), config, linear && fqn != kHead, decision);
          decisions.push_back(decision);
          if (!decision.scheme) {
            return;
          }
          TORCH_CHECK(linear || !config.tied_embeddings, "expected ", fqn,
                      " to stay as it is, since the head shares its table and "
                      "would not be quantized; "
                      "give the model a head of its own");
          const auto swapped =
              linear ? fake_quantized(*linear, decision, config.learned_ranges)
                     : std::make_shared<FakeQuantizedEmbedding>(*embedding, *decision.scheme);
          swaps.emplace_back([&parent, name, swapped] { parent.replace_child(name, swapped); });
        });
  rules.check_all_used();
  for (const auto& swap : swaps) {
    swap();
  }
  return decisions;
}

int64_t convert_to_plain(nn::Layer& root) {
  std::vector<std::function<void()>> swaps;
  visit(root, "",
        [&](nn::Layer& parent, const std::string& name, const std::shared_ptr<nn::Layer>& child,
            const std::string& fqn) {
          std::shared_ptr<nn::Layer> plain;
          if (const auto linear = std::dynamic_pointer_cast<FakeQuantizedLinear>(child)) {
            TORCH_CHECK(linear->reads_weight_alone(),
                        "expected no adapters and no learned ranges, got some on ", fqn,
                        "; merge them, or convert to codes");
            plain = std::make_shared<nn::Linear>(static_cast<const nn::Linear&>(*linear));
          } else if (const auto table = std::dynamic_pointer_cast<FakeQuantizedEmbedding>(child)) {
            plain = std::make_shared<nn::Embedding>(static_cast<const nn::Embedding&>(*table));
          }
          if (plain) {
            swaps.emplace_back([&parent, name, plain] { parent.replace_child(name, plain); });
          }
        });
  for (const auto& swap : swaps) {
    swap();
  }
  return static_cast<int64_t>(swaps.size());
}

void set_fake_quant_enabled(nn::Layer& root, bool enabled) {
  visit(root, "",
        [enabled](nn::Layer&, const std::string&, const std::shared_ptr<nn::Layer>& child,
                  const std::string&) {
          if (const auto linear = std::dynamic_pointer_cast<FakeQuantizedLinear>(child)) {
            linear->set_fake_quant_enabled(enabled);
          } else if (const auto table = std::dynamic_pointer_cast<FakeQuantizedEmbedding>(child)) {
            table->set_fake_quant_enabled(enabled);
          }
        });
}

std::vector<PreparedLayer> prepared_layers(nn::Layer& root) {
  std::vector<PreparedLayer> layers;
  visit(root, "",
        [&](nn::Layer&, const std::string&, const std::shared_ptr<nn::Layer>& child,
            const std::string& fqn) {
          if (const auto linear = std::dynamic_pointer_cast<FakeQuantizedLinear>(child)) {
            const bool learns = std::dynamic_pointer_cast<LearnedRangeLinear>(child) != nullptr;
            layers.push_back({fqn, linear->scheme(), learns});
          } else if (const auto table = std::dynamic_pointer_cast<FakeQuantizedEmbedding>(child)) {
            layers.push_back({fqn, table->scheme()});
          }
        });
  return layers;
}

std::vector<std::string> describe(const std::vector<LayerDecision>& decisions) {
  struct Kind {
    std::string name;
    std::string outcome;
    int64_t count;
  };
  std::vector<Kind> kinds;
  for (const LayerDecision& decision : decisions) {
    const std::string name = without_numbers(decision.fqn) + "  " + std::to_string(decision.cols) +
                             " -> " + std::to_string(decision.rows);
    const std::string result = outcome(decision);
    const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& kind) {
      return kind.name == name && kind.outcome == result;
    });
    if (same != kinds.end()) {
      ++same->count;
    } else {
      kinds.push_back({name, result, 1});
    }
  }
  std::vector<std::string> lines;
  for (const Kind& kind : kinds) {
    lines.push_back(kind.name + "  x " + std::to_string(kind.count) + "  " + kind.outcome);
  }
  return lines;
}

}  // namespace narrowgauge::qat
