#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::jinja {

using Json = nlohmann::ordered_json;

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    kLiteral,      // literal
    kName,         // name
    kList,         // operands
    kDict,         // operands: key, value, key, value...
    kNot,          // operands[0]
    kNegate,       // operands[0]
    kBinary,       // name is the operator, operands [2]; "and", "or", "in", "not in" among them
    kConditional,  // operands: value, condition, other value (may be null: undefined)
    kAttribute,    // operands[0], name
    kItem,         // operands: object, index
    kSlice,        // operands: object, start, stop, step; the last three may be null
    kCall,         // operands: callee, arguments...; keywords
    kFilter,       // name, operands: value, arguments...; keywords
    kTest,         // the same
  };
  Kind kind = Kind::kLiteral;
  int line = 1;
  std::string name;
  Json literal;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
};

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum class Kind {
    kText,        // text
    kOutput,      // value
    kIf,          // branches in order; an empty condition is else
    kFor,         // names, value, filter (may be null), body, otherwise
    kSet,         // names[0], value; attribute, if not empty, of a namespace
    kGeneration,  // body
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text;
  std::string attribute;
  std::vector<std::string> names;
  ExpressionPtr value;
  ExpressionPtr filter;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  Block body;
  Block otherwise;
};

// Throws std::runtime_error that begins with `name`:line for what is no template, or uses what is
// not supported, which it names.
Block parse(const std::string& source, const std::string& name);

}  // namespace narrowgauge::jinja
