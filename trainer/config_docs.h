#pragma once

#include <string>

namespace narrowgauge::trainer {

// docs/CONFIG.md, whole: every section and key with its values, default, unit and meaning. It is
// also what `narrowgauge help config` prints.
std::string config_docs();

}  // namespace narrowgauge::trainer
