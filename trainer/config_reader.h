#pragma once

#include <span>
#include <string>
#include <string_view>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// Reads a YAML file and then the overrides "section.key=value", later ones winning, and returns the
// completed configuration (see complete() in config_check.h). Nothing is guessed: an unknown or
// duplicate key, a value of the wrong type or out of range and keys that contradict each other are
// one ConfigError with the place, the key and what to write. The value of an override follows the
// same rules, but text is taken as it stands, without quotes, and a list is [a,b].
//
// A relative `path` and relative entries of data.train and data.validation mean the current
// directory; those it does not have, but the directory in the environment variable NARROWGAUGE_ROOT
// has, are found there.
TrainConfig read_config(const std::string& path, std::span<const std::string> overrides);

// The same for text that is already read; `name` stands for the path in messages.
TrainConfig read_config_text(std::string_view text, const std::string& name,
                             std::span<const std::string> overrides);

}  // namespace narrowgauge::trainer
