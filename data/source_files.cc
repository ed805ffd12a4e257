#include "data/source_files.h"

#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

namespace narrowgauge::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 41> kTextExtensions = {
    ".parquet", ".txt", ".text", ".md",  ".rst", ".tex", ".org", ".jsonl", ".py",    ".pyi", ".c",
    ".h",       ".cc",  ".cpp",  ".cxx", ".hpp", ".hh",  ".cu",  ".cuh",   ".java",  ".kt",  ".js",
    ".jsx",     ".ts",  ".tsx",  ".go",  ".rs",  ".rb",  ".php", ".swift", ".scala", ".sh",  ".lua",
    ".jl",      ".sql", ".pl",   ".ex",  ".hs",  ".ml",  ".cs",  ".r"};

bool is_text_name(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return std::find(kTextExtensions.begin(), kTextExtensions.end(), extension) !=
         kTextExtensions.end();
}

bool is_hidden(const fs::path& path) { return path.filename().native().front() == '.'; }

bool is_regular(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// Entries of a directory; one that cannot be read is an error, not an absence of files.
std::vector<fs::directory_entry> list(const fs::path& directory) {
  std::error_code error;
  fs::directory_iterator entries(directory.empty() ? fs::path(".") : directory, error);
  if (error) {
    throw std::runtime_error("expected a readable directory, got '" + directory.string() +
                             "': " + error.message() + "; change its permissions or leave it out");
  }
  return {fs::begin(entries), fs::end(entries)};
}

bool is_real_directory(const fs::directory_entry& entry) {
  std::error_code ignored;
  return entry.is_directory(ignored) && !entry.is_symlink(ignored);
}

void add_text_files_below(const fs::path& directory, std::vector<std::string>& found) {
  for (const auto& entry : list(directory)) {
    if (is_hidden(entry.path())) continue;
    if (is_real_directory(entry)) {
      add_text_files_below(entry.path(), found);
    } else if (is_regular(entry.path()) && is_text_name(entry.path())) {
      found.push_back(entry.path().string());
    }
  }
}

bool is_glob(std::string_view component) {
  return component.find_first_of("*?[") != std::string_view::npos;
}

// Matches components[first..] below `base` and adds the regular files.
void add_matches(const fs::path& base, const std::vector<std::string>& components, size_t first,
                 std::vector<std::string>& found) {
  if (first == components.size()) {
    if (is_regular(base)) found.push_back(base.string());
    return;
  }
  const std::string& component = components[first];
  const bool is_last = first + 1 == components.size();
  std::error_code ignored;
  const bool is_directory = base.empty() || fs::is_directory(base, ignored);
  if (!is_directory) return;
  if (component == "**") {
    if (!is_last) add_matches(base, components, first + 1, found);
    for (const auto& entry : list(base)) {
      const fs::path below = base / entry.path().filename();
      if (is_hidden(below)) continue;
      if (is_real_directory(entry)) {
        add_matches(below, components, first, found);
      } else if (is_last && is_regular(below)) {
        found.push_back(below.string());
      }
    }
    return;
  }
  if (!is_glob(component)) {
    const fs::path below = base / component;
    if (fs::exists(below, ignored)) add_matches(below, components, first + 1, found);
    return;
  }
  for (const auto& entry : list(base)) {
    const std::string name = entry.path().filename().string();
    if (fnmatch(component.c_str(), name.c_str(), FNM_PERIOD) == 0) {
      add_matches(base / name, components, first + 1, found);
    }
  }
}

void add_glob(const std::string& pattern, std::vector<std::string>& found) {
  const fs::path path(pattern);
  std::vector<std::string> components;
  for (const auto& part : path.relative_path()) {
    // "**/**" means "**" and would visit every file once a path through the tree.
    if (part == "**" && !components.empty() && components.back() == "**") continue;
    if (!part.empty()) components.push_back(part.string());
  }
  add_matches(path.root_path(), components, 0, found);
}

}  // namespace

std::vector<std::string> expand_paths(const std::vector<std::string>& patterns) {
  std::vector<std::string> found;
  for (const auto& pattern : patterns) {
    const size_t before = found.size();
    std::error_code ignored;
    if (fs::is_directory(pattern, ignored)) {
      add_text_files_below(pattern, found);
      if (found.size() == before) {
        throw std::runtime_error(
            "expected text files in directory '" + pattern +
            "', found none (.txt, .md, .jsonl, .parquet, program sources); name other "
            "files with a glob such as '" +
            (fs::path(pattern) / "**" / "*.log").string() + "'");
      }
    } else if (is_regular(pattern)) {
      found.push_back(pattern);
    } else if (is_glob(pattern)) {
      add_glob(pattern, found);
    }
    if (found.size() == before) {
      throw std::runtime_error("expected a file, a directory or a glob that matches files, got '" +
                               pattern + "', which matches nothing; relative paths start from '" +
                               fs::current_path().string() + "'");
    }
  }
  // By absolute path: the order of the data must not depend on how a path was spelled.
  std::map<std::string, std::string> by_absolute_path;
  for (const auto& path : found) {
    const fs::path normal = fs::path(path).lexically_normal();
    by_absolute_path.emplace(fs::absolute(normal).lexically_normal().string(), normal.string());
  }
  std::vector<std::string> paths;
  for (auto& [absolute, path] : by_absolute_path) paths.push_back(std::move(path));
  return paths;
}

SourceFile describe_file(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || ::access(path.c_str(), R_OK) != 0) {
    throw std::runtime_error("expected a readable file, got '" + path +
                             "': " + std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    throw std::runtime_error("expected a regular file, got '" + path +
                             "'; write the stream to a file first");
  }
  return {fs::absolute(path).lexically_normal().string(), static_cast<uint64_t>(status.st_size),
          status.st_mtim.tv_sec * int64_t{1'000'000'000} + status.st_mtim.tv_nsec};
}

}  // namespace narrowgauge::data
