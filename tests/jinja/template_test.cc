// What transformers cannot say: errors, and templates made to do harm. Texts are compared with
// transformers' in template_transformers_test.py.
#include "jinja/template.h"

#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

namespace narrowgauge::jinja {
namespace {

std::string repeat(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

std::string render(const std::string& source, const Json& variables = Json::object()) {
  return Template(source, "test").render(variables).text;
}

// Of parsing or rendering; "" where there is none.
std::string error_of(const std::string& source, const Json& variables = Json::object()) {
  try {
    render(source, variables);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(Template, ErrorsNameTheLineAndTheMatter) {
  EXPECT_EQ(error_of("a\n{{ x | sort }}").find("test:2: the filter 'sort' is not supported"), 0);
  EXPECT_EQ(error_of("{% macro f() %}").find("test:1: the block 'macro' is not supported"), 0);
  EXPECT_EQ(error_of("\n\n{{ 'x"), "test:3: expected the end of a string");
  EXPECT_EQ(error_of("{% if true %}x"), "test:1: expected '{% endif %}' before the end");
  EXPECT_EQ(error_of("{{ raise_exception('no') }}"), "test:1: the template refuses: no");
  EXPECT_EQ(error_of("{{ 1 // 0 }}"), "test:1: division by zero");
  EXPECT_EQ(error_of("{{ a.b.c }}"), "test:1: expected a value with fields, got undefined");
  EXPECT_NE(error_of("{{ [x] }}").find("got undefined"), std::string::npos);
  EXPECT_NE(error_of("{{ 99999999999999999999 }}").find("too large"), std::string::npos);
  EXPECT_NE(error_of("{{ 9223372036854775807 + 1 }}").find("overflows"), std::string::npos);
}

TEST(Template, RendersAgainAndElsewhere) {
  const Template chat("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "test");
  std::string other;
  std::thread thread([&] { other = chat.render(Json::object()).text; });
  EXPECT_EQ(chat.render(Json::object()).text, "1");
  thread.join();
  EXPECT_EQ(other, "1");
  EXPECT_EQ(chat.render(Json::object()).text, "1");
}

TEST(Template, LoopsWithoutEndEnd) {
  const auto started = std::chrono::steady_clock::now();
  const std::string loop = "{% for i in range(100000) %}";
  EXPECT_NE(error_of(loop + loop + "{% endfor %}{% endfor %}").find("takes too long"),
            std::string::npos);
  EXPECT_NE(
      error_of(loop + "{{ m }}{% endfor %}", {{"m", std::string(1 << 20, 'x')}}).find("too long"),
      std::string::npos);
  EXPECT_NE(error_of("{{ range(1000000000) }}").find("at most 100000"), std::string::npos);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
  EXPECT_LT(seconds.count(), 60);
}

TEST(Template, ValuesThatGrowWithoutEndAreRefused) {
  const auto grown = [](const std::string& begin, const std::string& step) {
    return error_of("{% set ns = namespace(x=" + begin + ") %}{% for i in range(100) %}" +
                    "{% set ns.x = " + step + " %}{% endfor %}");
  };
  EXPECT_NE(grown("'ab'", "ns.x ~ ns.x"), "");
  EXPECT_NE(grown("'ab'", "ns.x + ns.x"), "");
  EXPECT_NE(grown("[1]", "ns.x + ns.x"), "");
  EXPECT_NE(grown("[1]", "[ns.x, ns.x]"), "");
  EXPECT_NE(grown("'aaaa'", "ns.x.replace('a', ns.x)"), "");
  EXPECT_NE(grown("'aaaa'", "[ns.x, ns.x, ns.x] | join(ns.x)"), "");
  EXPECT_NE(grown("{'a': 1}", "{'a': ns.x, 'b': ns.x}"), "");
  EXPECT_NE(error_of("{{ [1] | tojson(indent=1000000000) }}"), "");
  // Many at the limit, one after another.
  std::string many = "{% set a = m ~ m %}";
  for (int i = 0; i < 500; ++i) many += "{% set a" + std::to_string(i) + " = a %}";
  EXPECT_NE(error_of(many, {{"m", std::string(1 << 24, 'x')}}), "");
}

TEST(Template, NestingIsBounded) {
  constexpr int kMany = 50'000;
  EXPECT_NE(error_of("{{ " + repeat("(", kMany) + "1" + repeat(")", kMany) + " }}"), "");
  EXPECT_NE(error_of("{{ " + repeat("[", kMany)), "");
  EXPECT_NE(error_of("{{ " + repeat("not ", kMany) + "1 }}"), "");
  EXPECT_NE(error_of("{{ " + repeat("-", kMany) + "1 }}"), "");
  EXPECT_NE(error_of("{{ 1" + repeat(" + 1", kMany) + " }}"), "");
  EXPECT_NE(error_of("{{ 1" + repeat(" + 1", 5000) + " }}"), "");  // a tree of 5000 is freed
  EXPECT_NE(error_of("{{ x" + repeat(".x", kMany) + " }}"), "");
  EXPECT_NE(error_of("{{ x" + repeat(" | trim", kMany) + " }}"), "");
  EXPECT_NE(error_of(repeat("{% if true %}", kMany)), "");
  EXPECT_NE(error_of(repeat("{% for i in x %}", kMany)), "");
  EXPECT_NE(error_of("{{ 1" + repeat(" if 1 else 1", kMany) + " }}"), "");
  EXPECT_EQ(render("{{ 1" + repeat(" + 1", 200) + " }}"), "201");
}

TEST(Template, EveryByteIsText) {
  std::string bytes;
  for (int byte = 1; byte < 256; ++byte) bytes += static_cast<char>(byte);
  for (const std::string& tag : {"{{ " + bytes + " }}", "{% " + bytes + " %}", "{# " + bytes}) {
    EXPECT_NE(error_of(tag), "");
  }
  EXPECT_EQ(render("{{ m }}", {{"m", bytes}}), bytes);
  EXPECT_EQ(render(std::string("a\0b", 3)), std::string("a\0b", 3));
}

}  // namespace
}  // namespace narrowgauge::jinja
