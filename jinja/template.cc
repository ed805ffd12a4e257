#include "jinja/template.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "jinja/builtins.h"
#include "jinja/value.h"

namespace narrowgauge::jinja {
namespace {

using Kind = Expression::Kind;

// A hostile template ends within seconds and a few gigabytes.
constexpr int64_t kMaxSteps = 5'000'000;
constexpr size_t kMaxBytes = size_t{1} << 25;  // of a value, and of the text
constexpr int64_t kStepsOfATurn = 8;           // of a loop, which makes its variable "loop"
constexpr int64_t kBytesMadeAStep = 64;
constexpr int64_t kBytesCopiedAStep = 1024;
constexpr int kMaxDepth = 300;    // of expressions that wait for another
constexpr int kMaxNesting = 200;  // of lists and mappings: copies of them are recursive

// What a value takes in memory, about.
size_t weigh(const Json& json, int depth = 0) {
  if (depth > kMaxNesting) throw std::runtime_error("a value is nested too deeply");
  if (json.is_string()) return json.get_ref<const std::string&>().size();
  if (!json.is_structured()) return 0;
  size_t bytes = 0;
  for (const auto& element : json) bytes += 32 + weigh(element, depth + 1);
  return bytes;
}

bool marks_generation(const Block& block) {
  return std::any_of(block.begin(), block.end(), [](const Statement& statement) {
    const bool in_branch =
        std::any_of(statement.branches.begin(), statement.branches.end(),
                    [](const auto& branch) { return marks_generation(branch.second); });
    return statement.kind == Statement::Kind::kGeneration || in_branch ||
           marks_generation(statement.body) || marks_generation(statement.otherwise);
  });
}

class Renderer {
 public:
  Renderer(const std::string& name, const Json& variables) : name_(name) {
    scopes_.emplace_back();
    for (const auto& [key, value] : variables.items()) scopes_.back()[key] = {value};
  }

  Rendering run(const Block& block) {
    try {
      render(block);
    } catch (const std::exception& error) {  // of JSON's types too
      throw std::runtime_error(name_ + ":" + std::to_string(line_) + ": " + error.what());
    }
    return std::move(result_);
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  void count_step(int line) {
    line_ = line;
    count_steps(1);
    if (result_.text.size() > kMaxBytes) throw std::runtime_error("the text is too long");
  }

  void count_steps(int64_t number) {
    num_steps_ += number;
    if (num_steps_ > kMaxSteps) throw std::runtime_error("the template takes too long");
  }

  void count_bytes(const Json& json, int64_t bytes_a_step) {
    const size_t bytes = weigh(json);
    if (bytes > kMaxBytes) throw std::runtime_error("a value is too large");
    count_steps(static_cast<int64_t>(bytes) / bytes_a_step);
  }

  Flow render(const Block& block) {
    for (const Statement& statement : block) {
      const Flow flow = render(statement);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow render(const Statement& statement) {
    count_step(statement.line);
    switch (statement.kind) {
      case Statement::Kind::kText:
        result_.text += statement.text;
        return Flow::kNext;
      case Statement::Kind::kOutput:
        result_.text += to_text(evaluate(*statement.value));
        return Flow::kNext;
      case Statement::Kind::kIf:
        for (const auto& [condition, body] : statement.branches) {
          if (!condition || is_true(evaluate(*condition))) return render(body);
        }
        return Flow::kNext;
      case Statement::Kind::kFor:
        return render_loop(statement);
      case Statement::Kind::kSet:
        assign(statement);
        return Flow::kNext;
      case Statement::Kind::kGeneration: {
        const size_t begin = result_.text.size();
        const Flow flow = render(statement.body);
        result_.generation.push_back({begin, result_.text.size()});
        return flow;
      }
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  void assign(const Statement& statement) {
    Value value = evaluate(*statement.value);
    count_bytes(value.json, kBytesMadeAStep);  // it is kept
    const std::string& name = statement.names[0];
    if (statement.attribute.empty()) {
      scopes_.back()[name] = std::move(value);
      return;
    }
    Value* target = find(name);
    if (target == nullptr || !target->json.is_object()) {
      throw std::runtime_error("expected a namespace in 'set " + name + "." + statement.attribute +
                               "'");
    }
    target->json[statement.attribute] = element_of(value);
  }

  Value* find(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(name);
      if (found != scope->end()) return &found->second;
    }
    return nullptr;
  }

  void bind(const std::vector<std::string>& names, const Json& element) {
    if (names.size() == 1) {
      scopes_.back()[names[0]] = {element};
      return;
    }
    if (!element.is_array() || element.size() != names.size()) {
      throw std::runtime_error("expected " + std::to_string(names.size()) +
                               " values for each turn of the loop");
    }
    for (size_t i = 0; i < names.size(); ++i) scopes_.back()[names[i]] = {element[i]};
  }

  std::vector<Json> elements_of(const Statement& loop) {
    const Value value = evaluate(*loop.value);
    if (!value.is_defined) return {};
    if (!value.json.is_structured()) {
      throw std::runtime_error("cannot loop over " + type_name(value));
    }
    std::vector<Json> elements;
    for (const auto& element : value.json.items()) {
      Json candidate = value.json.is_object() ? Json(element.key()) : element.value();
      bool is_kept = true;
      if (loop.filter) {
        scopes_.emplace_back();
        bind(loop.names, candidate);
        is_kept = is_true(evaluate(*loop.filter));
        scopes_.pop_back();
      }
      if (is_kept) elements.push_back(std::move(candidate));
    }
    return elements;
  }

  static Json loop_variable(const std::vector<Json>& elements, size_t index) {
    const size_t left = elements.size() - index;
    Json loop = {{"index", index + 1},   {"index0", index},           {"first", index == 0},
                 {"last", left == 1},    {"length", elements.size()}, {"revindex", left},
                 {"revindex0", left - 1}};
    if (index > 0) loop["previtem"] = elements[index - 1];
    if (left > 1) loop["nextitem"] = elements[index + 1];
    return loop;
  }

  Flow render_loop(const Statement& loop) {
    const std::vector<Json> elements = elements_of(loop);
    if (elements.empty()) return render(loop.otherwise);
    for (size_t i = 0; i < elements.size(); ++i) {
      line_ = loop.line;
      count_steps(kStepsOfATurn);
      scopes_.emplace_back();
      bind(loop.names, elements[i]);
      scopes_.back()["loop"] = {loop_variable(elements, i)};
      const Flow flow = render(loop.body);
      scopes_.pop_back();
      if (flow == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  Value evaluate(const Expression& expression) {
    if (depth_ >= kMaxDepth) throw std::runtime_error("the expression is nested too deeply");
    ++depth_;  // after an error nothing is evaluated any more
    count_step(expression.line);
    Value value = evaluate_now(expression);
    count_bytes(value.json, is_place(expression) ? kBytesCopiedAStep : kBytesMadeAStep);
    --depth_;
    return value;
  }

  static bool is_place(const Expression& expression) {
    return expression.kind == Kind::kName || expression.kind == Kind::kAttribute ||
           expression.kind == Kind::kItem;
  }

  // Where a value that has a name lies, so that what is around it need not be copied: of
  // messages[0].role the role alone. Null for any other, and for what is not there.
  const Json* locate(const Expression& expression) {
    if (expression.kind == Kind::kName) {
      const Value* value = find(expression.name);
      return value != nullptr && value->is_defined ? &value->json : nullptr;
    }
    if (!is_place(expression)) return nullptr;
    const Json* object = locate(*expression.operands[0]);
    if (object == nullptr) return nullptr;
    if (expression.kind == Kind::kAttribute) {
      const auto found = object->is_object() ? object->find(expression.name) : object->end();
      return found == object->end() ? nullptr : &*found;
    }
    // Other indices may cost steps, and are rare.
    const Expression& index = *expression.operands[1];
    if (index.kind != Kind::kLiteral) return nullptr;
    if (object->is_object() && index.literal.is_string()) {
      const auto found = object->find(index.literal.get_ref<const std::string&>());
      return found == object->end() ? nullptr : &*found;
    }
    if (object->is_array() && index.literal.is_number_unsigned() &&
        index.literal.get<size_t>() < object->size()) {
      return &(*object)[index.literal.get<size_t>()];
    }
    return nullptr;
  }

  Value part(const Expression& expression, size_t index) {
    const bool is_there =
        index < expression.operands.size() && expression.operands[index] != nullptr;
    return is_there ? evaluate(*expression.operands[index]) : undefined();
  }

  Value evaluate_now(const Expression& expression) {
    if (const Json* found = locate(expression)) return {*found};
    switch (expression.kind) {
      case Kind::kLiteral:
        return {expression.literal};
      case Kind::kName:
        return lookup(expression.name);
      case Kind::kList: {
        Json list = Json::array();
        for (const auto& operand : expression.operands) {
          list.push_back(element_of(evaluate(*operand)));
        }
        return {list};
      }
      case Kind::kDict: {
        Json object = Json::object();
        for (size_t i = 0; i + 1 < expression.operands.size(); i += 2) {
          object[to_text(part(expression, i))] = element_of(part(expression, i + 1));
        }
        return {object};
      }
      case Kind::kNot:
        return {Json(!is_true(part(expression, 0)))};
      case Kind::kNegate:
        return operate("-", {Json(0)}, part(expression, 0));
      case Kind::kBinary:
        return evaluate_binary(expression);
      case Kind::kConditional:
        return part(expression, is_true(part(expression, 1)) ? 0 : 2);
      case Kind::kAttribute:
        return item(part(expression, 0), {Json(expression.name)});
      case Kind::kItem:
        return item(part(expression, 0), part(expression, 1));
      case Kind::kSlice:
        return slice(part(expression, 0), part(expression, 1), part(expression, 2),
                     part(expression, 3));
      case Kind::kCall:
        return call(expression);
      case Kind::kFilter:
        return apply_filter(expression.name, part(expression, 0), arguments_of(expression));
      case Kind::kTest:
        return evaluate_test(expression);
    }
    return undefined();
  }

  Value lookup(const std::string& name) {
    if (const Value* value = find(name)) return *value;
    // "strftime_now is defined" asks for it.
    return is_function(name) ? Value{Json(name)} : undefined();
  }

  Value evaluate_binary(const Expression& expression) {
    Value left = part(expression, 0);
    if (expression.name == "and") return is_true(left) ? part(expression, 1) : left;
    if (expression.name == "or") return is_true(left) ? left : part(expression, 1);
    return operate(expression.name, left, part(expression, 1));
  }

  Value evaluate_test(const Expression& expression) {
    return {Json(apply_test(expression.name, part(expression, 0), arguments_of(expression)))};
  }

  // operands[0] is the value or the callee.
  Arguments arguments_of(const Expression& expression) {
    Arguments arguments;
    for (size_t i = 1; i < expression.operands.size(); ++i) {
      arguments.values.push_back(part(expression, i));
    }
    for (const auto& [name, value] : expression.keywords) {
      arguments.named.emplace_back(name, evaluate(*value));
    }
    return arguments;
  }

  Value call(const Expression& expression) {
    const Expression& callee = *expression.operands[0];
    if (callee.kind == Kind::kAttribute) {
      const Value object = part(callee, 0);
      return call_method(object, callee.name, arguments_of(expression));
    }
    if (callee.kind != Kind::kName) throw std::runtime_error("expected the name of a function");
    return call_function(callee.name, arguments_of(expression));
  }

  const std::string& name_;
  std::vector<std::map<std::string, Value>> scopes_;
  Rendering result_;
  int line_ = 1;
  int depth_ = 0;
  int64_t num_steps_ = 0;
};

}  // namespace

Template::Template(const std::string& source, std::string name)
    : name_(std::move(name)), block_(parse(source, name_)) {
  has_generation_ = marks_generation(block_);
}

Rendering Template::render(const Json& variables) const {
  return Renderer(name_, variables).run(block_);
}

}  // namespace narrowgauge::jinja
