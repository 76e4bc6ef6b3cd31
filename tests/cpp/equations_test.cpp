// Shapes as equations over named sizes, and the conventions' own: every one can be read and solved.
#include "routing/equations.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "routing/conventions.h"

namespace erlangen {
namespace {

TEST(Equations, ValuesOfExpressions) {
  const Sizes sizes = {{"a", 5}, {"b", 7}, {"_c2", 11}};
  EXPECT_EQ(Expression("3").at({}), 3);
  EXPECT_EQ(Expression("a").at(sizes), 5);
  EXPECT_EQ(Expression("2 * a + 3 * b * _c2 + 1").at(sizes), 242);
  EXPECT_EQ(Expression("2 * (a + b) * _c2").at(sizes), 264);
  EXPECT_EQ(Expression("(a + 2 * b) * _c2").at(sizes), 209);
  EXPECT_EQ(Expression("_c2 // a + b // 2 * 3").at(sizes), 11);  // from the left
  EXPECT_EQ(Expression("a + b + a").names(), (std::vector<std::string>{"a", "b"}));
}

std::optional<Sizes> solved(const std::vector<std::pair<const char*, int64_t>>& equations,
                            const Sizes& known = {}) {
  std::vector<Expression> expressions;
  for (const auto& [text, value] : equations) expressions.emplace_back(text);
  std::vector<Equation> given;
  for (size_t i = 0; i < equations.size(); ++i) {
    given.emplace_back(&expressions[i], equations[i].second);
  }
  return solve(given, known);
}

TEST(Equations, SolvedOneUnknownAfterTheOther) {
  // The last equation gives what the first needs.
  EXPECT_EQ(solved({{"2 * a + b", 10}, {"c * a", 12}, {"b", 4}}),
            (Sizes{{"a", 3}, {"b", 4}, {"c", 4}}));
  EXPECT_EQ(solved({{"a * b", 12}}, {{"a", 3}, {"unused", 5}}), (Sizes{{"a", 3}, {"b", 4}}));
  EXPECT_EQ(solved({{"a * b", 12}, {"c", 2}}), (Sizes{{"c", 2}}));  // the others stay open
}

TEST(Equations, WithoutASolution) {
  EXPECT_FALSE(solved({{"a", 3}, {"a", 4}}));
  EXPECT_FALSE(solved({{"2 * a", 5}}));
  EXPECT_FALSE(solved({{"a + 3", 3}}));  // sizes are positive
  EXPECT_FALSE(solved({{"3", 4}}));
  EXPECT_FALSE(solved({{"heads * d", 12}, {"kv_heads * d", 8}, {"d", 4}}));  // 3 for 2
  EXPECT_TRUE(solved({{"heads * d", 16}, {"kv_heads * d", 8}, {"d", 4}}));
}

// A name for each part, and shapes that the part's own sizes give.
TEST(Equations, EveryConventionSolvesItsOwnShapes) {
  ASSERT_FALSE(conventions().empty());
  for (const Convention& convention : conventions()) {
    ASSERT_FALSE(convention.spellings.empty()) << convention.what;
    for (const std::string& spelling : convention.spellings) {
      const auto spaces = std::count(spelling.begin(), spelling.end(), ' ');
      EXPECT_EQ(spaces + 1u, convention.parts.size()) << convention.what << ": " << spelling;
    }
    std::vector<const Parts*> ways = {&convention.parts};
    for (const Parts& parts : convention.variants) ways.push_back(&parts);
    for (const Parts* parts : ways) {
      EXPECT_EQ(parts->size(), convention.parts.size()) << convention.what;
      Sizes sizes;
      int64_t next = 3;
      std::vector<Equation> equations;
      for (const Part& part : *parts) {
        for (const Expression& size : part.shape) {
          for (const std::string& name : size.names()) {
            if (sizes.emplace(name, next).second) next += 2;
          }
        }
      }
      for (const char* heads : {"heads", "v_heads"}) {  // multiples of those of the keys
        if (sizes.count(heads)) sizes[heads] *= sizes.count("kv_heads") ? sizes["kv_heads"] : 1;
      }
      for (const Part& part : *parts) {
        for (const Expression& size : part.shape) equations.emplace_back(&size, size.at(sizes));
      }
      const auto again = solve(equations, sizes);
      ASSERT_TRUE(again) << convention.what;
      EXPECT_EQ(*again, sizes) << convention.what;
      equations.front().second += 1;
      EXPECT_FALSE(solve(equations, sizes)) << convention.what;
    }
  }
}

}  // namespace
}  // namespace erlangen
