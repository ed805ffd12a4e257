#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace narrowgauge::trainer {

// What a configuration file holds before anything is known about its keys.
struct ConfigNode {
  enum class Kind { kNothing, kScalar, kList, kMap };

  Kind kind = Kind::kNothing;
  int line = 0;  // from 1
  int column = 0;
  std::string text = {};  // scalars; escapes decoded
  bool is_quoted = false;
  std::vector<ConfigNode> items = {};                           // lists
  std::vector<std::pair<ConfigNode, ConfigNode>> entries = {};  // maps, as written, duplicates kept
};

// "name:line:column: "
std::string place_of(const ConfigNode& node, std::string_view name);

// Parses one YAML document of bounded size (256 KiB) and depth (a list in a section). Anchors,
// aliases and tags are refused: nothing expands, nothing is reinterpreted. Duplicate keys are kept
// for the reader to name. Throws ConfigError "name:line:column: ...".
ConfigNode parse_yaml(std::string_view text, std::string_view name);

}  // namespace narrowgauge::trainer
