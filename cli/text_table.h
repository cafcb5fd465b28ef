// Columns of text for a terminal: as wide as their longest cell, numbers to the right.
#pragma once

#include <string>
#include <vector>

namespace rubato::cli {

class TextTable {
 public:
  struct Column {
    std::string title;
    bool right = false;
  };

  explicit TextTable(std::vector<Column> columns);

  // Missing cells are empty, surplus ones are dropped. What is not printable ASCII shows as '?':
  // names come from programs that may want to paint the terminal.
  void AddRow(std::vector<std::string> cells);

  bool empty() const { return rows_.empty(); }

  // Lines that end with a newline, without trailing blanks.
  std::string Render() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace rubato::cli
