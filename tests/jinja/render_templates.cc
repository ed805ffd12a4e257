// Renders templates for template_transformers_test.py: a line of {"template", "variables"} in, a
// line of {"text", "generation"} or {"error"} out.
#include <iostream>
#include <string>

#include "jinja/template.h"

using narrowgauge::jinja::Json;

namespace {

Json answer(const Json& question) {
  Json result = Json::object();
  try {
    const narrowgauge::jinja::Template chat(question.at("template").get<std::string>(), "template");
    const narrowgauge::jinja::Rendering rendering = chat.render(question.at("variables"));
    result["text"] = rendering.text;
    result["generation"] = Json::array();
    for (const auto& span : rendering.generation) {
      result["generation"].push_back(rendering.text.substr(span.begin, span.end - span.begin));
    }
  } catch (const std::runtime_error& error) {
    result["error"] = error.what();
  }
  return result;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(Json::parse(line)).dump(-1, ' ', false, Json::error_handler_t::replace)
              << std::endl;
  }
}
