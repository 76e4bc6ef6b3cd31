#include "routing/equations.h"

#include <algorithm>
#include <cctype>
#include <utility>

namespace erlangen {

namespace {

int rank_of(char op) { return op == '+' ? 1 : op == '(' ? 0 : 2; }

}  // namespace

// Operators wait on a stack until one that binds less comes, or a bracket closes.
Expression::Expression(const char* text) {
  std::vector<char> waiting;
  const auto take = [&] {
    postfix_.push_back({waiting.back(), 0});
    waiting.pop_back();
  };
  const auto word_end = [](const char* c) {
    while (std::isalnum(static_cast<unsigned char>(*c)) || *c == '_') ++c;
    return c;
  };
  for (const char* c = text; *c;) {
    const char* end = word_end(c);
    if (end != c) {
      const std::string word(c, end);
      if (std::isdigit(static_cast<unsigned char>(*c))) {
        postfix_.push_back({'n', std::stoll(word)});
      } else {
        const auto found = std::find(names_.begin(), names_.end(), word);
        postfix_.push_back({'s', found - names_.begin()});
        if (found == names_.end()) names_.push_back(word);
      }
      c = end;
      continue;
    }
    const char op = *c;
    c += op == '/' ? 2 : 1;
    if (op == ' ') continue;
    if (op == '(') {
      waiting.push_back(op);
    } else if (op == ')') {
      while (waiting.back() != '(') take();
      waiting.pop_back();
    } else {
      while (!waiting.empty() && rank_of(waiting.back()) >= rank_of(op)) take();
      waiting.push_back(op);
    }
  }
  while (!waiting.empty()) take();
}

int64_t Expression::at(const Sizes& sizes) const {
  std::vector<int64_t> stack;
  for (const Token& token : postfix_) {
    if (token.kind == 'n') {
      stack.push_back(token.value);
    } else if (token.kind == 's') {
      stack.push_back(sizes.at(names_[token.value]));
    } else {
      const int64_t right = stack.back();
      stack.pop_back();
      int64_t& left = stack.back();
      left = token.kind == '+' ? left + right : token.kind == '*' ? left * right : left / right;
    }
  }
  return stack.back();
}

namespace {

// An open size that is a factor of the expression; nullptr if there is none.
const std::string* open_factor(const Expression& expression, const Sizes& sizes) {
  for (const std::string& name : expression.names()) {
    if (sizes.count(name)) continue;
    Sizes ones = sizes;
    for (const std::string& other : expression.names()) ones.emplace(other, 1);
    ones[name] = 0;
    if (expression.at(ones) == 0) return &name;
  }
  return nullptr;
}

// Whether there are sizes for what is still open. A factor of a value is one of its divisors, so
// that these are all there is to try.
bool is_solvable(const std::vector<Equation>& open, const Sizes& sizes) {
  for (const auto& [expression, value] : open) {
    const std::string* factor = open_factor(*expression, sizes);
    if (!factor) continue;
    const auto solves = [&](int64_t divisor) {
      Sizes more = sizes;
      more[*factor] = divisor;
      return solve(open, more).has_value();
    };
    for (int64_t i = 1; i * i <= value; ++i) {
      if (value % i == 0 && (solves(i) || solves(value / i))) return true;
    }
    return false;
  }
  return true;
}

}  // namespace

std::optional<Sizes> solve(std::vector<Equation> equations, const Sizes& known) {
  Sizes sizes;
  for (const auto& [expression, value] : equations) {
    for (const std::string& name : expression->names()) {
      const auto found = known.find(name);
      if (found != known.end()) sizes.insert(*found);
    }
  }
  while (!equations.empty()) {
    std::vector<Equation> left;
    for (const auto& [expression, value] : equations) {
      std::vector<std::string> unknown;
      for (const std::string& name : expression->names()) {
        if (!sizes.count(name)) unknown.push_back(name);
      }
      if (unknown.size() > 1) {
        left.emplace_back(expression, value);
        continue;
      }
      if (unknown.empty()) {
        if (expression->at(sizes) != value) return std::nullopt;
        continue;
      }
      int64_t& size = sizes[unknown.front()];
      size = 0;
      const int64_t at_zero = expression->at(sizes);
      size = 1;
      const int64_t slope = expression->at(sizes) - at_zero;  // every size stands in it once
      if ((value - at_zero) % slope != 0 || value - at_zero < slope) return std::nullopt;
      size = (value - at_zero) / slope;
    }
    if (left.size() == equations.size()) break;
    equations = std::move(left);
  }
  const auto size_or_1 = [&](const char* name) {
    const auto found = sizes.find(name);
    return found == sizes.end() ? 1 : found->second;
  };
  // A key's head serves whole heads of queries.
  if (size_or_1("heads") % size_or_1("kv_heads") != 0) return std::nullopt;
  if (!is_solvable(equations, sizes)) return std::nullopt;
  return sizes;
}

}  // namespace erlangen
