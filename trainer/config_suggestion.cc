#include "trainer/config_suggestion.h"

#include <algorithm>
#include <vector>

#include "trainer/config_schema.h"
#include "trainer/nearest_name.h"

namespace narrowgauge::trainer {
namespace {

bool is_known_as(const ConfigKey& key, std::string_view section, std::string_view name) {
  const std::string path = std::string(section) + "." + std::string(name);
  std::string_view rest = key.also_known_as;
  while (!rest.empty()) {
    const std::string_view alias = rest.substr(0, rest.find(' '));
    if (alias == path || alias == name) {
      return true;
    }
    rest.remove_prefix(std::min(rest.size(), alias.size() + 1));
  }
  return false;
}

std::vector<std::string_view> names_in(std::string_view section) {
  std::vector<std::string_view> names;
  for (const ConfigKey& key : config_schema()) {
    if (key.section == section) {
      names.push_back(key.name);
    }
  }
  return names;
}

template <typename Predicate>
const ConfigKey* first_key(const Predicate& predicate) {
  const auto keys = config_schema();
  const auto found = std::find_if(keys.begin(), keys.end(), predicate);
  return found == keys.end() ? nullptr : &*found;
}

// The key that was meant, the likeliest cause first: another trainer's name in the right section, a
// typo, the wrong section, a typo in the section.
const ConfigKey* intended_key(std::string_view section, std::string_view name) {
  if (const ConfigKey* known = first_key([&](const ConfigKey& key) {
        return key.section == section && is_known_as(key, section, name);
      })) {
    return known;
  }
  if (const auto near = nearest_name(name, names_in(section))) {
    return find_key(section, *near);
  }
  if (const ConfigKey* elsewhere = first_key([&](const ConfigKey& key) {
        return key.name == name || is_known_as(key, section, name);
      })) {
    return elsewhere;
  }
  std::vector<std::string> paths;
  for (const ConfigKey& key : config_schema()) {
    paths.push_back(key.path());
  }
  const std::string path = std::string(section) + "." + std::string(name);
  const auto near = nearest_name(path, std::vector<std::string_view>(paths.begin(), paths.end()));
  return first_key([&](const ConfigKey& key) { return key.path() == near; });
}

}  // namespace

std::string suggest_key(std::string_view section, std::string_view name) {
  if (const ConfigKey* key = intended_key(section, name)) {
    return "; did you mean " + key->path() + "?";
  }
  const auto siblings = names_in(section);
  return siblings.empty() ? suggest_section(section)
                          : "; " + std::string(section) + " has " + join(siblings);
}

std::string suggest_section(std::string_view section) {
  std::vector<std::string_view> names;
  for (const ConfigSection& known : config_sections()) {
    names.push_back(known.name);
  }
  if (const auto near = nearest_name(section, names)) {
    return "; did you mean " + std::string(*near) + "?";
  }
  return "; the sections are " + join(names);
}

}  // namespace narrowgauge::trainer
