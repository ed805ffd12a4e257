#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace narrowgauge::data {

// The regular files that `patterns` name, sorted by path, each once. A pattern is one of
//   a file               taken as it is, whatever its name
//   a directory          every file below it whose extension is a text kind (kTextExtensions in
//                        source_files.cc: prose, .jsonl, .parquet, program sources); others need a
//                        glob
//   a glob               * ? [...] within one path component, ** for any number of directories
// Names that begin with a dot are found only by a pattern that writes the dot. Searching a
// directory or ** does not descend into symbolic links, so a loop of links ends; a link to a file
// is taken. An existing path is never read as a glob, so a[1].txt can be named.
// Throws std::runtime_error that names the first pattern without a match.
std::vector<std::string> expand_paths(const std::vector<std::string>& patterns);

// What identifies the content of a file without reading it.
struct SourceFile {
  std::string path;  // absolute
  uint64_t size_bytes = 0;
  int64_t modified_ns = 0;  // since the epoch
};

// Throws std::runtime_error with the path when there is no readable regular file.
SourceFile describe_file(const std::string& path);

}  // namespace narrowgauge::data
