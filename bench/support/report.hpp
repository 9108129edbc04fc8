#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "machine.hpp"

namespace pith_bench {

inline std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

/// The machine, a bullet for each of its facts.
inline void print_machine(std::ostream& out) {
  for (const auto& [key, value] : machine()) out << "* " << key << ": " << value << '\n';
  out << '\n';
}

/// A Markdown table with columns as wide as what they hold, columns of numbers to the right.
inline void print_table(std::ostream& out, const std::vector<std::string>& columns, const std::vector<std::vector<std::string>>& rows) {
  const auto shown = [](const std::string& text) {  // a character counts once, however many bytes it has
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xC0u) != 0x80; }));
  };
  std::vector<std::size_t> width;
  std::vector<bool> right;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    width.push_back(std::max<std::size_t>(3, shown(columns[c])));
    for (const auto& row : rows) width[c] = std::max(width[c], shown(row[c]));
    right.push_back(std::all_of(rows.begin(), rows.end(),
                                [&](const auto& row) { return row[c].find_first_not_of("0123456789.-+e") == std::string::npos; }));
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    for (std::size_t c = 0; c < cells.size(); ++c) {
      const std::string space(width[c] - shown(cells[c]), ' ');
      out << "| " << (right[c] ? space + cells[c] : cells[c] + space) << ' ';
    }
    out << "|\n";
  };
  line(columns);
  for (std::size_t c = 0; c < columns.size(); ++c) out << '|' << std::string(width[c] + 1, '-') << (right[c] ? ':' : '-');
  out << "|\n";
  for (const auto& row : rows) line(row);
}

/// A number as tables show it; files hold all of it.
struct Number {
  double value = 0;
  int digits = 0;  ///< behind the point; -1: two that count
};
using Cell = std::variant<std::string, Number>;

/// One case: what was measured under which name. A column that a row lacks stays empty.
struct ReportRow {
  std::string name;    ///< as Google Benchmark would write it: case/argument:value
  double seconds = 0;  ///< of one repetition of the case
  std::vector<std::pair<std::string, Cell>> cells = {};
};

/// The rows of a program without Google Benchmark, as Markdown, CSV or that library's JSON.
class Report {
 public:
  /// No row has a column besides these.
  explicit Report(std::vector<std::string> columns) : columns_(std::move(columns)) {}
  void add(ReportRow row) { rows_.push_back(std::move(row)); }

  void write(std::ostream& out, const std::string& format) const {
    if (format == "json") return write_json(out);
    if (format == "csv") {
      print_csv_line(out, columns_);
      for (const ReportRow& row : rows_) print_csv_line(out, texts(row, true));
      return;
    }
    std::vector<std::vector<std::string>> table;
    for (const ReportRow& row : rows_) table.push_back(texts(row, false));
    print_machine(out);
    print_table(out, columns_, table);
  }

 private:
  std::vector<std::string> texts(const ReportRow& row, bool whole) const {
    std::vector<std::string> out(columns_.size());
    for (const auto& [column, cell] : row.cells) {
      std::string& text = out[static_cast<std::size_t>(std::find(columns_.begin(), columns_.end(), column) - columns_.begin())];
      const Number* const number = std::get_if<Number>(&cell);
      if (number == nullptr) {
        text = std::get<std::string>(cell);
      } else if (whole || number->digits < 0) {
        std::ostringstream scientific;
        scientific << std::setprecision(whole ? 9 : 2) << number->value;
        text = scientific.str();
      } else {
        text = fixed(number->value, number->digits);
      }
    }
    return out;
  }

  static void print_csv_line(std::ostream& out, const std::vector<std::string>& cells) {
    for (std::size_t c = 0; c < cells.size(); ++c) out << (c == 0 ? "" : ",") << cells[c];
    out << '\n';
  }

  void write_json(std::ostream& out) const {
    nlohmann::ordered_json all;
    for (const auto& [key, value] : machine()) all["context"][key] = value;
    all["benchmarks"] = nlohmann::ordered_json::array();
    for (const ReportRow& row : rows_) {
      nlohmann::ordered_json one{{"name", row.name}, {"run_name", row.name}, {"run_type", "iteration"}};
      one["real_time"] = row.seconds * 1e3;
      one["time_unit"] = "ms";
      for (const auto& [column, cell] : row.cells)
        std::visit(
            [&, &key = column](const auto& value) {
              if constexpr (std::is_same_v<std::decay_t<decltype(value)>, Number>) {
                one[key] = value.value;
              } else {
                one[key] = value;
              }
            },
            cell);
      all["benchmarks"].push_back(std::move(one));
    }
    out << all.dump(1) << '\n';
  }

  std::vector<std::string> columns_;
  std::vector<ReportRow> rows_;
};

}  // namespace pith_bench
