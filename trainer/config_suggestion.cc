#include "trainer/config_suggestion.h"

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "trainer/config_schema.h"
#include "trainer/nearest_name.h"

namespace narrowgauge::trainer {
namespace {

// Whether one of `aliases`, separated by blanks, is `name` or `path`.
bool has_alias(std::string_view aliases, std::string_view name, std::string_view path = "") {
  while (!aliases.empty()) {
    const std::string_view alias = aliases.substr(0, aliases.find(' '));
    if (alias == name || alias == path) {
      return true;
    }
    aliases.remove_prefix(std::min(aliases.size(), alias.size() + 1));
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

// The only one among the keys of all sections that is a typo away; nothing where two are alike.
const ConfigKey* key_by_name(std::string_view name) {
  constexpr size_t kShortest = 3;  // everything is near to less
  std::vector<std::string_view> names;
  for (const ConfigKey& key : config_schema()) {
    names.push_back(key.name);
  }
  const auto near = name.size() < kShortest ? std::nullopt : nearest_name(name, names);
  if (!near || std::count(names.begin(), names.end(), *near) != 1) {
    return nullptr;
  }
  return first_key([&](const ConfigKey& key) { return key.name == *near; });
}

// A typo in section and key together, which may be larger in one; half the key must be right.
const ConfigKey* key_by_path(const std::string& path, std::string_view name) {
  std::vector<std::string> paths;
  for (const ConfigKey& key : config_schema()) {
    if (edit_distance(key.name, name) <= name.size() / 2) {
      paths.push_back(key.path());
    }
  }
  const auto near = nearest_name(path, std::vector<std::string_view>(paths.begin(), paths.end()));
  return first_key([&](const ConfigKey& key) { return key.path() == near; });
}

// The key that was meant, the likeliest cause first: another trainer's name for it, a typo, the
// wrong section, both.
const ConfigKey* intended_key(std::string_view section, std::string_view name) {
  const std::string path = std::string(section) + "." + std::string(name);
  if (const ConfigKey* known = first_key([&](const ConfigKey& key) {
        return has_alias(key.also_known_as, key.section == section ? name : path, path);
      })) {
    return known;
  }
  if (const auto near = nearest_name(name, names_in(section))) {
    return find_key(section, *near);
  }
  if (const ConfigKey* elsewhere = first_key([&](const ConfigKey& key) {
        return key.name == name || has_alias(key.also_known_as, name);
      })) {
    return elsewhere;
  }
  const ConfigKey* near = key_by_name(name);
  return near != nullptr ? near : key_by_path(path, name);
}

std::string in_lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

// What people write for a choice that is spelt otherwise here.
constexpr std::pair<std::string_view, std::string_view> kOtherValues[] = {
    {"bf16", "bfloat16"},        {"fp32", "float32"},
    {"float", "float32"},        {"gpu", "cuda"},
    {"hf", "huggingface"},       {"2:4", "semi_structured"},
    {"true", "always"},          {"false", "never"},
    {"char", "bytes"},           {"q4_0", "gguf-q4_0"},
    {"q8_0", "gguf-q8_0"},       {"int4", "int4-weight-only"},
    {"adamw_8bit", "AdamW8bit"}, {"adamw8bit", "AdamW8bit"},
};

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
    if (has_alias(known.also_known_as, section)) {
      return "; did you mean " + std::string(known.name) + "?";
    }
    names.push_back(known.name);
  }
  if (const auto near = nearest_name(section, names)) {
    return "; did you mean " + std::string(*near) + "?";
  }
  // A key that stands where sections do.
  if (const ConfigKey* key = first_key([&](const ConfigKey& known) {
        return known.name == section || has_alias(known.also_known_as, section);
      })) {
    return "; did you mean " + key->path() + "? Keys stand in a section";
  }
  return "; the sections are " + join(names);
}

std::string suggest_choice(std::span<const std::string_view> choices, std::string_view text) {
  const std::string lower = in_lower_case(text);
  const auto suggestion = [](std::string_view choice) {
    return "; did you mean " + std::string(choice) + "?";
  };
  for (const auto& [other, ours] : kOtherValues) {
    if (other == lower && std::find(choices.begin(), choices.end(), ours) != choices.end()) {
      return suggestion(ours);
    }
  }
  std::vector<std::string> lower_choices;
  for (const std::string_view choice : choices) {
    lower_choices.push_back(in_lower_case(choice));
  }
  const std::vector<std::string_view> views(lower_choices.begin(), lower_choices.end());
  const auto near = nearest_name(lower, views);
  return near ? suggestion(choices[std::find(views.begin(), views.end(), *near) - views.begin()])
              : "";
}

}  // namespace narrowgauge::trainer
