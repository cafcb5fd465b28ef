#include "cli/text_table.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace rubato::cli {

TextTable::TextTable(std::vector<Column> columns) : columns_(std::move(columns)) {}

void TextTable::AddRow(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  for (std::string& cell : cells) cell = base::Printable(cell);
  rows_.push_back(std::move(cells));
}

std::string TextTable::Render() const {
  std::vector<size_t> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    size_t width = columns_[i].title.size();
    for (const std::vector<std::string>& row : rows_) width = std::max(width, row[i].size());
    widths.push_back(width);
  }
  std::string text;
  const auto append_cell = [&](size_t i, const std::string& cell) {
    const std::string blanks(widths[i] - cell.size(), ' ');
    if (i != 0) text += "  ";
    text += columns_[i].right ? blanks + cell : cell + blanks;
  };
  const auto end_line = [&text] {
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  };
  for (size_t i = 0; i < columns_.size(); ++i) append_cell(i, columns_[i].title);
  end_line();
  for (const std::vector<std::string>& row : rows_) {
    for (size_t i = 0; i < columns_.size(); ++i) append_cell(i, row[i]);
    end_line();
  }
  return text;
}

}  // namespace rubato::cli
