#pragma once

#include <string>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// The resolved configuration as YAML, defaults included, one key a line, in the order of the
// schema. read_config_text reads it back to an equal configuration. With model.initial_load_path
// the keys of the shape are left out: its config.json decides them.
std::string to_yaml(const TrainConfig& config);

// The value of one key as it stands in the YAML file.
struct ConfigKey;
std::string format_value(const ConfigKey& key, const TrainConfig& config);

}  // namespace narrowgauge::trainer
