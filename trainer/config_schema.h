#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// Kinds of values. Each points at its place in a TrainConfig and says which values it takes.
struct IntegerKey {
  int64_t& (*field)(TrainConfig&);
  int64_t min = 0;
  int64_t max = std::numeric_limits<int64_t>::max();
};

struct NumberKey {
  double& (*field)(TrainConfig&);
  double min = 0.0;
  double max = std::numeric_limits<double>::infinity();
  bool min_excluded = false;
  bool max_excluded = false;
};

struct BooleanKey {
  bool& (*field)(TrainConfig&);
};

struct TextKey {
  std::string& (*field)(TrainConfig&);
  std::vector<std::string_view> choices = {};  // empty: any text
  // Beside the choices: an integer of at least this, which the field holds as text.
  std::optional<int64_t> or_integer_from = std::nullopt;
};

struct ListKey {
  std::vector<std::string>& (*field)(TrainConfig&);
};

// One key of the configuration. Its default is the member's value in a TrainConfig{}.
struct ConfigKey {
  std::string_view section;
  std::string_view name;
  std::variant<IntegerKey, NumberKey, BooleanKey, TextKey, ListKey> value;
  std::string_view unit;  // may be empty
  std::string_view doc;   // one line, no full stop
  // What other trainers call it ("freq", "job.dump_folder"), separated by blanks; only error
  // messages know these.
  std::string_view also_known_as = "";
  // Part of the model's shape, which model.initial_load_path brings with it.
  bool is_model_shape = false;

  std::string path() const { return std::string(section) + "." + std::string(name); }
};

struct ConfigSection {
  std::string_view name;
  std::string_view doc;
  std::string_view also_known_as = "";  // what other trainers call it, separated by blanks
};

// In the order in which they are documented and written. A later feature adds its section and its
// keys here and its struct in config.h; nothing else lists them.
std::span<const ConfigSection> config_sections();
std::span<const ConfigKey> config_schema();

// nullptr where there is none.
const ConfigKey* find_key(std::string_view section, std::string_view name);

// Whether `text` is one of the key's choices or integers.
bool accepts(const TextKey& key, std::string_view text);

// What the key takes, in words that follow "expected": "an integer of at least 1", "one of a, b".
std::string describe_values(const ConfigKey& key);

}  // namespace narrowgauge::trainer
