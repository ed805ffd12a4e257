#include "trainer/config_docs.h"

#include "trainer/config_schema.h"
#include "trainer/config_writer.h"

namespace narrowgauge::trainer {
namespace {

constexpr const char* kIntroduction = R"(# Configuration

A run is described by one YAML file of sections and keys, and by overrides `section.key=value`
after it on the command line. `narrowgauge validate FILE [OVERRIDE ...]` checks both and prints the
resolved configuration. Unknown and duplicate keys, values of another type and values out of range
are errors.

Numbers are decimal (`1000`, `3.0e-4`), booleans are `true` and `false`; anchors, aliases and tags
are refused. In an override, text is taken as it stands and a list is written
`data.train=[a.txt,b.txt]`.

This page is generated from the schema: `./narrowgauge help config > docs/CONFIG.md`.
)";

// Empty where the default is no value: the key is required.
std::string default_value(const ConfigKey& key, const TrainConfig& defaults) {
  const std::string value = format_value(key, defaults);
  const auto* integer = std::get_if<IntegerKey>(&key.value);
  const bool is_required = integer != nullptr && std::stoll(value) < integer->min;
  return is_required || value == "\"\"" ? "" : "`" + value + "`";
}

std::string row(const ConfigKey& key, const TrainConfig& defaults) {
  return "| `" + std::string(key.name) + "` | " + default_value(key, defaults) + " | " +
         describe_values(key) + " | " + std::string(key.unit) + " | " + std::string(key.doc) +
         " |\n";
}

}  // namespace

std::string config_docs() {
  const TrainConfig defaults;
  std::string page = kIntroduction;
  for (const ConfigSection& section : config_sections()) {
    page += "\n## " + std::string(section.name) + "\n\n" + std::string(section.doc) + "\n\n" +
            "| key | default | value | unit | meaning |\n|---|---|---|---|---|\n";
    for (const ConfigKey& key : config_schema()) {
      page += key.section == section.name ? row(key, defaults) : "";
    }
  }
  return page;
}

}  // namespace narrowgauge::trainer
