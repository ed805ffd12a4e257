#include "trainer/config_yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>

#include "trainer/config.h"
#include "trainer/config_value.h"

namespace narrowgauge::trainer {
namespace {

using Kind = ConfigNode::Kind;

constexpr size_t kMaxBytes = 256 * 1024;
constexpr size_t kMaxDepth = 3;  // file, section, list

// Builds the tree from yaml-cpp's events: its own YAML::Node drops duplicate keys and the
// difference between "1" and 1, and expands aliases without bound.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string_view name) : name_(name) {}

  ConfigNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (num_documents_++ > 0) {
      fail(mark, "expected one document, got a second one; remove the line ---");
    }
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    add(node(Kind::kNothing, mark));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark, 1); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    ConfigNode scalar = node(Kind::kScalar, mark);
    scalar.text = value;
    scalar.is_quoted = tag == "!";
    add(std::move(scalar));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Kind::kList, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Kind::kMap, mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  // A list or map that is not complete yet; `children` of a map are key, value, key, value.
  struct Open {
    ConfigNode node;
    std::vector<ConfigNode> children;
  };

  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& what) const {
    throw ConfigError(place_of(node(Kind::kNothing, mark), name_) + what);
  }

  static ConfigNode node(Kind kind, const YAML::Mark& mark) {
    return {.kind = kind, .line = mark.line + 1, .column = mark.column + 1};
  }

  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) const {
    if (anchor != 0) {
      fail(mark, "expected a value, got an anchor (&) or an alias (*); write the value out");
    }
  }

  // "?" marks a plain scalar or a collection, "!" a quoted scalar.
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (!tag.empty() && tag != "?" && tag != "!") {
      fail(mark, "expected a plain value, got the tag " + in_quotes(tag) + "; remove it");
    }
  }

  void open(Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    if (open_.size() == kMaxDepth) {
      fail(mark, "expected no more than a list in a section, got deeper nesting");
    }
    open_.push_back({node(kind, mark), {}});
  }

  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    if (done.node.kind == Kind::kList) {
      done.node.items = std::move(done.children);
    } else {
      for (size_t i = 0; i + 1 < done.children.size(); i += 2) {
        done.node.entries.emplace_back(std::move(done.children[i]),
                                       std::move(done.children[i + 1]));
      }
    }
    add(std::move(done.node));
  }

  void add(ConfigNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
    } else {
      open_.back().children.push_back(std::move(node));
    }
  }

  std::string name_;
  int num_documents_ = 0;
  ConfigNode root_;
  std::vector<Open> open_;
};

void check_bytes(std::string_view text, std::string_view name) {
  if (text.size() > kMaxBytes) {
    throw ConfigError(std::string(name) + ": expected at most " + std::to_string(kMaxBytes) +
                      " bytes, got more; is this a configuration?");
  }
  if (const auto offset = find_invalid_byte(text)) {
    const std::string_view before = text.substr(0, *offset);
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    const ConfigNode place = {
        .line = static_cast<int>(std::count(before.begin(), before.end(), '\n')) + 1,
        .column = static_cast<int>(*offset - line_start) + 1};
    throw ConfigError(place_of(place, name) +
                      "expected UTF-8 text without control characters, got byte " +
                      std::to_string(static_cast<unsigned char>(text[*offset])));
  }
}

}  // namespace

std::string place_of(const ConfigNode& node, std::string_view name) {
  return std::string(name) + ":" + std::to_string(node.line) + ":" + std::to_string(node.column) +
         ": ";
}

ConfigNode parse_yaml(std::string_view text, std::string_view name) {
  check_bytes(text, name);
  std::istringstream stream{std::string(text)};
  TreeBuilder builder(name);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    const ConfigNode place = {.line = error.mark.line + 1, .column = error.mark.column + 1};
    const bool is_alias = error.msg == YAML::ErrorMsg::UNKNOWN_ANCHOR ||
                          error.msg == YAML::ErrorMsg::ALIAS_NOT_FOUND ||
                          error.msg == YAML::ErrorMsg::CHAR_IN_ALIAS;
    throw ConfigError(place_of(place, name) + "expected YAML, got an error: " + error.msg +
                      (is_alias ? "; put text that begins with * in quotes" : ""));
  }
  return builder.take_root();
}

}  // namespace narrowgauge::trainer
