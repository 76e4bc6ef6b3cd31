// Shapes as equations over named sizes. Knows nothing of torch.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace erlangen {

using Sizes = std::map<std::string, int64_t>;

// A sum of products of sizes, "2 * (k_heads + v_heads) * k_dim"; "//" divides whole numbers.
class Expression {
 public:
  /* implicit */ Expression(const char* text);

  // The names in it, each once.
  const std::vector<std::string>& names() const { return names_; }
  // Its value; every name must be among the sizes.
  int64_t at(const Sizes& sizes) const;

 private:
  struct Token {
    char kind;      // 'n': a number, 's': a size, else the operator: '+', '*', '/'
    int64_t value;  // of a number, or the index of a name
  };

  std::vector<Token> postfix_;
  std::vector<std::string> names_;
};

// One equation: an expression and its value.
using Equation = std::pair<const Expression*, int64_t>;

// The sizes with which every equation holds, those of `known` that stand in them included; nullopt
// if there are none. Names that nothing determines stay out: there are sizes for them, but not one
// alone.
std::optional<Sizes> solve(std::vector<Equation> equations, const Sizes& known);

}  // namespace erlangen
