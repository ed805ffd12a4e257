// The grammar and its precedences are those of Jinja 3.1's parser.py.
#include "jinja/syntax.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string_view>

#include "jinja/lexer.h"

namespace narrowgauge::jinja {
namespace {

using Kind = Expression::Kind;
using TokenKind = Token::Kind;

constexpr int kMaxDepth = 100;           // of nested expressions and blocks
constexpr int kMaxExpressions = 20'000;  // of a template: freeing a chain of them takes stack

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name)
      : tokens_(std::move(tokens)), name_(name) {}

  Block run() {
    Block block = parse_block({});
    if (token().kind != TokenKind::kEnd) fail("unexpected '" + token().text + "'");
    return block;
  }

 private:
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxDepth) parser_.fail("nested too deeply");
    }
    ~Nesting() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  const Token& token() const { return tokens_[at_]; }
  const Token& next_token() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(name_ + ":" + std::to_string(token().line) + ": " + what);
  }

  Token take() {
    Token taken = token();
    if (taken.kind != TokenKind::kEnd) ++at_;
    return taken;
  }

  bool accept_operator(std::string_view op) { return token().is_operator(op) && (take(), true); }
  bool accept_name(std::string_view name) { return token().is_name(name) && (take(), true); }

  Token expect(TokenKind kind, const char* what) {
    if (token().kind != kind)
      fail(std::string("expected ") + what + ", got '" + token().text + "'");
    return take();
  }

  void expect_operator(std::string_view op) {
    if (!accept_operator(op)) {
      fail("expected '" + std::string(op) + "', got '" + token().text + "'");
    }
  }

  ExpressionPtr make(Kind kind) {
    if (++num_expressions_ > kMaxExpressions) fail("the template is too large");
    auto expression = std::make_unique<Expression>();
    expression->kind = kind;
    expression->line = token().line;
    return expression;
  }

  // Statements up to a block that begins with one of `ends`, whose "{%" is taken and whose name is
  // not.
  Block parse_block(const std::vector<std::string_view>& ends) {
    const Nesting nesting(*this);
    Block block;
    while (token().kind != TokenKind::kEnd) {
      if (token().kind == TokenKind::kText) {
        Statement text = statement(Statement::Kind::kText);
        text.text = take().text;
        block.push_back(std::move(text));
      } else if (token().kind == TokenKind::kOutputBegin) {
        take();
        Statement output = statement(Statement::Kind::kOutput);
        output.value = parse_expression();
        expect(TokenKind::kOutputEnd, "'}}'");
        block.push_back(std::move(output));
      } else {
        expect(TokenKind::kBlockBegin, "'{%'");
        const auto is_here = [this](std::string_view name) { return token().is_name(name); };
        if (std::any_of(ends.begin(), ends.end(), is_here)) return block;
        block.push_back(parse_statement());
      }
    }
    if (!ends.empty()) fail("expected '{% " + std::string(ends.back()) + " %}' before the end");
    return block;
  }

  Statement statement(Statement::Kind kind) const {
    Statement made;
    made.kind = kind;
    made.line = token().line;
    return made;
  }

  void end_statement(std::string_view name) {
    if (!accept_name(name)) fail("expected '" + std::string(name) + "'");
    expect(TokenKind::kBlockEnd, "'%}'");
  }

  Statement parse_statement() {
    const std::string name = expect(TokenKind::kName, "the name of a block").text;
    if (name == "if") return parse_if();
    if (name == "for") return parse_for();
    if (name == "set") return parse_set();
    if (name == "generation") {
      Statement made = statement(Statement::Kind::kGeneration);
      expect(TokenKind::kBlockEnd, "'%}'");
      made.body = parse_block({"endgeneration"});
      end_statement("endgeneration");
      return made;
    }
    if (name == "break" || name == "continue") {
      if (num_loops_ == 0) fail("'" + name + "' stands outside a loop");
      Statement made =
          statement(name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue);
      expect(TokenKind::kBlockEnd, "'%}'");
      return made;
    }
    fail("the block '" + name + "' is not supported; if, for, set, generation, break and " +
         "continue are");
  }

  Statement parse_if() {
    Statement made = statement(Statement::Kind::kIf);
    bool is_else = false;
    do {
      ExpressionPtr condition = is_else ? nullptr : parse_expression();
      expect(TokenKind::kBlockEnd, "'%}'");
      Block body = is_else ? parse_block({"endif"}) : parse_block({"elif", "else", "endif"});
      made.branches.emplace_back(std::move(condition), std::move(body));
      is_else = token().is_name("else");
    } while (accept_name("elif") || accept_name("else"));
    end_statement("endif");
    return made;
  }

  Statement parse_for() {
    Statement made = statement(Statement::Kind::kFor);
    do {
      made.names.push_back(expect(TokenKind::kName, "a variable").text);
    } while (accept_operator(","));
    if (!accept_name("in")) fail("expected 'in', got '" + token().text + "'");
    made.value = parse_or();
    if (accept_name("if")) made.filter = parse_expression();
    if (token().is_name("recursive")) fail("a recursive loop is not supported");
    expect(TokenKind::kBlockEnd, "'%}'");
    ++num_loops_;
    made.body = parse_block({"else", "endfor"});
    --num_loops_;
    if (accept_name("else")) {
      expect(TokenKind::kBlockEnd, "'%}'");
      made.otherwise = parse_block({"endfor"});
    }
    end_statement("endfor");
    return made;
  }

  Statement parse_set() {
    Statement made = statement(Statement::Kind::kSet);
    made.names.push_back(expect(TokenKind::kName, "a variable").text);
    if (accept_operator(".")) made.attribute = expect(TokenKind::kName, "an attribute").text;
    if (!token().is_operator("=")) {
      fail("expected '=' behind 'set', got '" + token().text +
           "'; a set block and several variables at once are not supported");
    }
    take();
    made.value = parse_tuple();
    expect(TokenKind::kBlockEnd, "'%}'");
    return made;
  }

  // "a, b" without parentheses is a list here.
  ExpressionPtr parse_tuple() {
    ExpressionPtr first = parse_expression();
    if (!token().is_operator(",")) return first;
    ExpressionPtr list = make(Kind::kList);
    list->operands.push_back(std::move(first));
    while (accept_operator(",")) list->operands.push_back(parse_expression());
    return list;
  }

  ExpressionPtr parse_expression() {
    const Nesting nesting(*this);
    ExpressionPtr value = parse_or();
    while (accept_name("if")) {
      ExpressionPtr conditional = make(Kind::kConditional);
      conditional->operands.push_back(std::move(value));
      conditional->operands.push_back(parse_or());
      conditional->operands.push_back(accept_name("else") ? parse_expression() : nullptr);
      value = std::move(conditional);
    }
    return value;
  }

  ExpressionPtr binary(std::string op, ExpressionPtr left, ExpressionPtr right) {
    ExpressionPtr made = make(Kind::kBinary);
    made->name = std::move(op);
    made->operands.push_back(std::move(left));
    made->operands.push_back(std::move(right));
    return made;
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (accept_name("or")) left = binary("or", std::move(left), parse_and());
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (accept_name("and")) left = binary("and", std::move(left), parse_not());
    return left;
  }

  ExpressionPtr parse_not() {
    const Nesting nesting(*this);
    if (!accept_name("not")) return parse_comparison();
    ExpressionPtr made = make(Kind::kNot);
    made->operands.push_back(parse_not());
    return made;
  }

  // The comparison at hand, taken; empty where there is none.
  std::string take_comparison() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (accept_operator(op)) return std::string(op);
    }
    if (accept_name("in")) return "in";
    if (token().is_name("not") && next_token().is_name("in")) {
      take();
      take();
      return "not in";
    }
    return "";
  }

  ExpressionPtr parse_comparison() {
    ExpressionPtr left = parse_sum();
    const std::string op = take_comparison();
    if (op.empty()) return left;
    ExpressionPtr made = binary(op, std::move(left), parse_sum());
    if (!take_comparison().empty()) fail("a chain of comparisons is not supported; join with and");
    return made;
  }

  // One operator of `ops`, taken; empty where there is none.
  std::string take_operator(std::initializer_list<std::string_view> ops) {
    for (const std::string_view op : ops) {
      if (accept_operator(op)) return std::string(op);
    }
    return "";
  }

  ExpressionPtr parse_sum() {
    ExpressionPtr left = parse_concatenation();
    for (std::string op; !(op = take_operator({"+", "-"})).empty();) {
      left = binary(op, std::move(left), parse_concatenation());
    }
    return left;
  }

  ExpressionPtr parse_concatenation() {
    ExpressionPtr left = parse_product();
    while (accept_operator("~")) left = binary("~", std::move(left), parse_product());
    return left;
  }

  ExpressionPtr parse_product() {
    ExpressionPtr left = parse_unary();
    for (std::string op; !(op = take_operator({"*", "//", "/", "%"})).empty();) {
      left = binary(op, std::move(left), parse_unary());
    }
    return left;
  }

  ExpressionPtr parse_unary() {
    const Nesting nesting(*this);
    if (accept_operator("-")) {
      ExpressionPtr made = make(Kind::kNegate);
      made->operands.push_back(parse_unary());
      return made;
    }
    return parse_filters(parse_postfix(parse_primary()));
  }

  ExpressionPtr parse_primary() {
    switch (token().kind) {
      case TokenKind::kString: {
        ExpressionPtr made = make(Kind::kLiteral);
        std::string text;
        while (token().kind == TokenKind::kString) text += take().text;
        made->literal = text;
        return made;
      }
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return parse_number();
      case TokenKind::kName:
        return parse_name();
      default:
        break;
    }
    if (accept_operator("(")) {
      ExpressionPtr inner = parse_tuple();
      expect_operator(")");
      return inner;
    }
    if (token().is_operator("[")) return parse_list();
    if (token().is_operator("{")) return parse_dict();
    fail("expected a value, got '" + token().text + "'");
  }

  ExpressionPtr parse_number() {
    ExpressionPtr made = make(Kind::kLiteral);
    const bool is_integer = token().kind == TokenKind::kInteger;
    try {
      made->literal = is_integer ? Json(std::stoll(token().text)) : Json(std::stod(token().text));
    } catch (const std::out_of_range&) {
      fail("the number " + token().text + " is too large");
    }
    take();
    return made;
  }

  ExpressionPtr parse_name() {
    const std::string name = token().text;
    const bool is_true = name == "true" || name == "True";
    const bool is_none = name == "none" || name == "None";
    if (is_true || is_none || name == "false" || name == "False") {
      ExpressionPtr made = make(Kind::kLiteral);
      made->literal = is_none ? Json(nullptr) : Json(is_true);
      take();
      return made;
    }
    ExpressionPtr made = make(Kind::kName);
    made->name = take().text;
    return made;
  }

  ExpressionPtr parse_list() {
    ExpressionPtr made = make(Kind::kList);
    expect_operator("[");
    while (!accept_operator("]")) {
      made->operands.push_back(parse_expression());
      if (!accept_operator(",") && !token().is_operator("]")) fail("expected ',' or ']'");
    }
    return made;
  }

  ExpressionPtr parse_dict() {
    ExpressionPtr made = make(Kind::kDict);
    expect_operator("{");
    while (!accept_operator("}")) {
      made->operands.push_back(parse_expression());
      expect_operator(":");
      made->operands.push_back(parse_expression());
      if (!accept_operator(",") && !token().is_operator("}")) fail("expected ',' or '}'");
    }
    return made;
  }

  ExpressionPtr parse_postfix(ExpressionPtr value) {
    while (true) {
      if (accept_operator(".")) {
        ExpressionPtr made = make(Kind::kAttribute);
        made->name = expect(TokenKind::kName, "an attribute").text;
        made->operands.push_back(std::move(value));
        value = std::move(made);
      } else if (accept_operator("[")) {
        value = parse_subscript(std::move(value));
      } else if (token().is_operator("(")) {
        ExpressionPtr made = make(Kind::kCall);
        made->operands.push_back(std::move(value));
        parse_arguments(*made);
        value = std::move(made);
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_subscript(ExpressionPtr value) {
    ExpressionPtr made = make(Kind::kItem);
    made->operands.push_back(std::move(value));
    const auto part = [this]() -> ExpressionPtr {
      return token().is_operator(":") || token().is_operator("]") ? nullptr : parse_expression();
    };
    made->operands.push_back(part());
    while (accept_operator(":")) {
      made->kind = Kind::kSlice;
      made->operands.push_back(part());
    }
    expect_operator("]");
    if (made->kind == Kind::kItem && !made->operands[1]) fail("expected an index in '[]'");
    if (made->operands.size() > 4) fail("expected a slice of at most three parts");
    if (made->kind == Kind::kSlice) made->operands.resize(4);
    return made;
  }

  void parse_arguments(Expression& call) {
    expect_operator("(");
    while (!accept_operator(")")) {
      if (token().kind == TokenKind::kName && next_token().is_operator("=")) {
        const std::string name = take().text;
        take();
        call.keywords.emplace_back(name, parse_expression());
      } else {
        call.operands.push_back(parse_expression());
      }
      if (!accept_operator(",") && !token().is_operator(")")) fail("expected ',' or ')'");
    }
  }

  ExpressionPtr parse_filters(ExpressionPtr value) {
    while (true) {
      if (accept_operator("|")) {
        ExpressionPtr made = make(Kind::kFilter);
        made->name = expect(TokenKind::kName, "a filter").text;
        made->operands.push_back(std::move(value));
        if (token().is_operator("(")) parse_arguments(*made);
        value = parse_postfix(std::move(made));
      } else if (accept_name("is")) {
        value = parse_test(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_test(ExpressionPtr value) {
    ExpressionPtr made = make(Kind::kTest);
    const bool is_not = accept_name("not");
    made->name = expect(TokenKind::kName, "a test").text;
    made->operands.push_back(std::move(value));
    const bool has_operand =
        token().kind == TokenKind::kString || token().kind == TokenKind::kInteger;
    if (token().is_operator("(")) {
      parse_arguments(*made);
    } else if (has_operand) {
      made->operands.push_back(parse_primary());
    }
    if (!is_not) return made;
    ExpressionPtr negated = make(Kind::kNot);
    negated->operands.push_back(std::move(made));
    return negated;
  }

  std::vector<Token> tokens_;
  const std::string& name_;
  size_t at_ = 0;
  int depth_ = 0;
  int num_loops_ = 0;
  int num_expressions_ = 0;
};

}  // namespace

Block parse(const std::string& source, const std::string& name) {
  return Parser(tokenize(source, name), name).run();
}

}  // namespace narrowgauge::jinja
