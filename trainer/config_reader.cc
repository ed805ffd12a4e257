#include "trainer/config_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "trainer/config_check.h"
#include "trainer/config_schema.h"
#include "trainer/config_suggestion.h"
#include "trainer/config_value.h"
#include "trainer/config_yaml.h"

namespace narrowgauge::trainer {
namespace {

using Kind = ConfigNode::Kind;

// Writes a node into the field of a key. Throws std::string, what was wrong: "expected ..., got
// ...".
class Assign {
 public:
  Assign(const ConfigKey& key, TrainConfig& config, const ConfigNode& node)
      : key_(key), config_(config), node_(node) {}

  void operator()(const IntegerKey& key) const {
    const int64_t value = require_value(parse_integer(number_text()));
    if (value < key.min || value > key.max) {
      throw mismatch();
    }
    key.field(config_) = value;
  }

  void operator()(const NumberKey& key) const {
    const double value = require_value(parse_number(number_text()));
    const bool above = key.min_excluded ? value > key.min : value >= key.min;
    const bool below = key.max_excluded ? value < key.max : value <= key.max;
    if (!above || !below) {
      throw mismatch();
    }
    key.field(config_) = value;
  }

  void operator()(const BooleanKey& key) const {
    key.field(config_) = require_value(parse_boolean(number_text()));
  }

  void operator()(const TextKey& key) const {
    const std::string& text = text_of(node_);
    if (!accepts(key, text)) {
      throw mismatch(suggest_choice(key.choices, text));
    }
    key.field(config_) = text;
  }

  void operator()(const ListKey& key) const {
    if (node_.kind != Kind::kList) {
      throw mismatch(node_.kind == Kind::kScalar ? "; write [" + format_text(node_.text) + "]"
                                                 : "");
    }
    std::vector<std::string> items;
    for (const ConfigNode& item : node_.items) {
      items.push_back(text_of(item));
    }
    key.field(config_) = std::move(items);
  }

 private:
  std::string mismatch(const std::string& remedy = "") const {
    return mismatch(describe_values(key_), node_, remedy);
  }

  static std::string mismatch(const std::string& expected, const ConfigNode& node,
                              const std::string& remedy) {
    const std::string got = node.kind == Kind::kNothing ? "nothing"
                            : node.kind == Kind::kList  ? "a list"
                            : node.kind == Kind::kMap   ? "a map"
                                                        : in_quotes(node.text);
    return "expected " + expected + ", got " + got + remedy;
  }

  template <typename T>
  T require_value(const Parsed<T>& parsed) const {
    if (!parsed.value) {
      throw mismatch(parsed.remedy);
    }
    return *parsed.value;
  }

  const std::string& number_text() const {
    if (node_.kind != Kind::kScalar) {
      throw mismatch();
    }
    if (node_.is_quoted) {
      throw mismatch("; remove the quotes");
    }
    return node_.text;
  }

  // Text of a TextKey or of an element of a list.
  const std::string& text_of(const ConfigNode& node) const {
    if (node.kind != Kind::kScalar) {
      const bool is_element = &node != &node_;
      throw mismatch(is_element ? "text in the list" : describe_values(key_), node,
                     node.kind == Kind::kNothing ? "; write \"\" for empty text" : "");
    }
    if (const auto offset = find_invalid_byte(node.text)) {
      throw "expected UTF-8 text without control characters, got " + in_quotes(node.text);
    }
    return node.text;
  }

  const ConfigKey& key_;
  TrainConfig& config_;
  const ConfigNode& node_;
};

std::string text_of_name(const ConfigNode& node, const std::string& place) {
  if (node.kind != Kind::kScalar) {
    throw ConfigError(place + "expected a name, got " +
                      (node.kind == Kind::kNothing ? "nothing" : "a list or a map"));
  }
  return node.text;
}

// One reading of a file and its overrides.
class Reader {
 public:
  void read_file(const ConfigNode& root, const std::string& name) {
    if (root.kind == Kind::kNothing) {
      return;  // an empty file
    }
    if (root.kind != Kind::kMap) {
      throw ConfigError(place_of(root, name) + "expected sections such as model: {dim: 384}, got " +
                        (root.kind == Kind::kList ? "a list" : in_quotes(root.text)));
    }
    std::map<std::string, int> lines;
    for (const auto& [key, value] : root.entries) {
      const std::string section = text_of_name(key, place_of(key, name));
      const auto [first, is_new] = lines.emplace(section, key.line);
      if (!is_new) {
        throw ConfigError(place_of(key, name) + "duplicate section " + section +
                          "; it begins at line " + std::to_string(first->second) + " already");
      }
      read_section(section, key, value, name);
    }
  }

  void read_override(const std::string& argument) {
    const std::string place = "override " + in_quotes(argument) + ": ";
    const size_t equals = argument.find('=');
    const size_t dot = argument.find('.');
    if (equals == std::string::npos || dot == std::string::npos || dot > equals) {
      throw ConfigError(place + "expected section.key=value");
    }
    const std::string section = argument.substr(0, dot);
    const std::string name = argument.substr(dot + 1, equals - dot - 1);
    const ConfigKey* key = find_key(section, name);
    if (key == nullptr) {
      throw ConfigError(place + "unknown key " + section + "." + name + suggest_key(section, name));
    }
    ConfigNode value = {.kind = Kind::kScalar, .text = argument.substr(equals + 1)};
    if (std::holds_alternative<ListKey>(key->value)) {
      value = parse_yaml(value.text, "override " + in_quotes(argument));
    } else if (value.text.empty() && !std::holds_alternative<TextKey>(key->value)) {
      value.kind = Kind::kNothing;
    }
    assign(*key, value, place);
  }

  TrainConfig finish(const std::string& name) {
    if (!config_.model.initial_load_path.empty()) {
      for (const auto& [key, place] : places_) {
        if (key->is_model_shape) {
          throw ConfigError(place + key->path() + ": expected no key of the shape beside " +
                            "model.initial_load_path, whose config.json decides it; remove it");
        }
      }
    }
    complete(config_);
    if (const auto problem = find_problem(config_)) {
      std::string place = name + ": ";
      for (const auto& [key, given] : places_) {
        place = key->path() == problem->key ? given : place;
      }
      throw ConfigError(place + problem->key + ": " + problem->text);
    }
    return config_;
  }

 private:
  void read_section(const std::string& section, const ConfigNode& at, const ConfigNode& keys,
                    const std::string& name) {
    const auto sections = config_sections();
    const auto is_named = [&](const ConfigSection& known) { return known.name == section; };
    if (std::none_of(sections.begin(), sections.end(), is_named)) {
      throw ConfigError(place_of(at, name) + "unknown section " + section +
                        suggest_section(section));
    }
    if (keys.kind == Kind::kNothing) {
      return;  // a section whose keys are all commented out
    }
    if (keys.kind != Kind::kMap) {
      throw ConfigError(place_of(keys, name) + section + ": expected keys such as {" +
                        example_key(section) + "}, got " +
                        (keys.kind == Kind::kList ? "a list" : in_quotes(keys.text)));
    }
    std::map<std::string, int> lines;
    for (const auto& [key_node, value] : keys.entries) {
      const std::string place = place_of(key_node, name);
      const std::string key_name = text_of_name(key_node, place);
      const auto [first, is_new] = lines.emplace(key_name, key_node.line);
      if (!is_new) {
        throw ConfigError(place + "duplicate key " + section + "." + key_name +
                          "; it is set at line " + std::to_string(first->second) + " already");
      }
      const ConfigKey* key = find_key(section, key_name);
      if (key == nullptr) {
        throw ConfigError(place + "unknown key " + section + "." + key_name +
                          (key_name.find(':') != std::string::npos
                               ? "; YAML wants a blank after the colon"
                               : suggest_key(section, key_name)));
      }
      // yaml-cpp places an absent value at the next token, far away.
      assign(*key, value, value.kind == Kind::kNothing ? place : place_of(value, name));
    }
  }

  static std::string example_key(const std::string& section) {
    const auto keys = config_schema();
    const auto first = std::find_if(keys.begin(), keys.end(),
                                    [&](const ConfigKey& key) { return key.section == section; });
    return std::string(first->name) + ": ...";
  }

  void assign(const ConfigKey& key, const ConfigNode& value, const std::string& place) {
    try {
      std::visit(Assign(key, config_, value), key.value);
    } catch (const std::string& what) {
      throw ConfigError(place + key.path() + ": " + what);
    }
    places_[&key] = place;
  }

  TrainConfig config_;
  std::map<const ConfigKey*, std::string> places_;  // of the keys that were given
};

std::string read_bounded(const std::string& path) {
  constexpr std::streamsize kMoreThanEnough = 512L * 1024;  // parse_yaml refuses it
  std::error_code ignored;
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path, ignored)) {
    throw ConfigError(path + ": expected a readable YAML file, got " +
                      (file ? "a directory" : std::strerror(errno)));
  }
  std::string text(kMoreThanEnough, '\0');
  file.read(text.data(), kMoreThanEnough);
  if (file.bad()) {
    throw ConfigError(path + ": expected a readable YAML file, got " + std::strerror(errno));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

// `path` below the repository where the current directory has no `fixed`, which begins the path,
// and the repository has; so its configurations run from any directory.
std::string locate(const std::string& path, const std::filesystem::path& fixed) {
  namespace fs = std::filesystem;
  const char* root = std::getenv("NARROWGAUGE_ROOT");
  if (root == nullptr || *root == '\0' || fixed.empty() || fixed.is_absolute()) {
    return path;
  }
  std::error_code ignored;
  const bool is_there = !fs::exists(fixed, ignored) && fs::exists(root / fixed, ignored);
  return is_there ? (root / fs::path(path)).string() : path;
}

void locate_sources(std::vector<std::string>& sources) {
  for (std::string& source : sources) {
    // What stands before the first component with a wildcard must exist.
    const size_t wildcard = source.find_first_of("*?[");
    std::filesystem::path fixed = source;
    if (wildcard != std::string::npos) {
      fixed = std::filesystem::path(source.substr(0, wildcard)).parent_path();
    }
    source = locate(source, fixed);
  }
}

}  // namespace

TrainConfig read_config(const std::string& path, std::span<const std::string> overrides) {
  const std::string found = locate(path, path);
  return read_config_text(read_bounded(found), found, overrides);
}

TrainConfig read_config_text(std::string_view text, const std::string& name,
                             std::span<const std::string> overrides) {
  Reader reader;
  reader.read_file(parse_yaml(text, name), name);
  for (const std::string& argument : overrides) {
    reader.read_override(argument);
  }
  TrainConfig config = reader.finish(name);
  locate_sources(config.data.train);
  locate_sources(config.data.validation);
  return config;
}

}  // namespace narrowgauge::trainer
