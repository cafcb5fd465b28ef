#include "cli/text_table.h"

#include <gtest/gtest.h>

namespace rubato::cli {
namespace {

TEST(TextTable, AlignsColumns) {
  TextTable table({{"NAME"}, {"N", true}, {"LAST"}});
  table.AddRow({"a", "100", "x"});
  table.AddRow({"longer", "7"});
  EXPECT_EQ(table.Render(),
            "NAME      N  LAST\n"
            "a       100  x\n"
            "longer    7\n");
}

TEST(TextTable, NamesCannotPaintTheTerminal) {
  TextTable table({{"NAME"}});
  table.AddRow({"\x1b[2Jgone\n"});
  const std::string text = table.Render();
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(text, "NAME\n?[2Jgone?\n");
}

}  // namespace
}  // namespace rubato::cli
