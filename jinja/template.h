#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "jinja/syntax.h"

namespace narrowgauge::jinja {

struct Rendering {
  struct Span {
    size_t begin = 0;
    size_t end = 0;
  };
  std::string text;
  std::vector<Span> generation;  // bytes of text inside "{% generation %}" blocks
};

// A Jinja template as transformers renders chat templates (trim_blocks, lstrip_blocks, no
// autoescape, its tojson): what those of the usual model families use. Whatever else it meets is an
// error that names it, when it is parsed or, for a filter, a test or a function, when it is
// reached; never a silent difference. Templates come with downloaded models: rendering ends after a
// bounded number of steps. Immutable: any number of threads may render.
class Template {
 public:
  // name: for messages, the file. Throws std::runtime_error that begins with name:line.
  Template(const std::string& source, std::string name);

  // variables: an object. Throws std::runtime_error that begins with name:line, for what the
  // template's raise_exception says as well.
  Rendering render(const Json& variables) const;

  // Whether the template marks what the model generates.
  bool has_generation() const { return has_generation_; }

 private:
  std::string name_;
  Block block_;
  bool has_generation_ = false;
};

}  // namespace narrowgauge::jinja
