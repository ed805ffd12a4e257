#include "trainer/config_writer.h"

#include "trainer/config_schema.h"
#include "trainer/config_value.h"

namespace narrowgauge::trainer {
namespace {

struct ValueAsYaml {
  TrainConfig& config;

  std::string operator()(const IntegerKey& key) const { return std::to_string(key.field(config)); }
  std::string operator()(const NumberKey& key) const { return format_number(key.field(config)); }
  std::string operator()(const BooleanKey& key) const {
    return key.field(config) ? "true" : "false";
  }
  std::string operator()(const TextKey& key) const {
    const std::string& text = key.field(config);
    return key.or_integer_from && parse_integer(text).value ? text : format_text(text);
  }
  std::string operator()(const ListKey& key) const {
    std::string text;
    for (const std::string& item : key.field(config)) {
      text += (text.empty() ? "" : ", ") + format_text(item);
    }
    return "[" + text + "]";
  }
};

}  // namespace

std::string format_value(const ConfigKey& key, const TrainConfig& config) {
  TrainConfig copy = config;  // the schema's fields are references into a config that may change
  return std::visit(ValueAsYaml{copy}, key.value);
}

std::string to_yaml(const TrainConfig& config) {
  TrainConfig copy = config;
  const bool shape_is_elsewhere = !config.model.initial_load_path.empty();
  std::string text;
  for (const ConfigSection& section : config_sections()) {
    text += std::string(section.name) + ":\n";
    for (const ConfigKey& key : config_schema()) {
      if (key.section == section.name && !(key.is_model_shape && shape_is_elsewhere)) {
        text +=
            "  " + std::string(key.name) + ": " + std::visit(ValueAsYaml{copy}, key.value) + "\n";
      }
    }
  }
  return text;
}

}  // namespace narrowgauge::trainer
