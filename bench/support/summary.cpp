// One table of what the benchmarks wrote as JSON: what was measured, beside which limit, and which goals it meets.
// Goals are those of `goals` below.
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <optional>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "report.hpp"

namespace {

using namespace pith_bench;

struct Row {
  std::string program, name, error;
  double seconds = 0;
  nlohmann::json fields;
  std::optional<double> counter(const std::string& counter_name) const {
    const auto found = fields.find(counter_name);
    return found != fields.end() && found->is_number() ? std::optional<double>(found->get<double>()) : std::nullopt;
  }
};
using Rows = std::vector<Row>;

/// What a case is measured by.
struct Measure {
  std::string text;
  std::function<std::optional<double>(const Row&, const Rows&)> of;
};

Measure counter(const std::string& name) {
  return {name, [=](const Row& row, const Rows&) { return row.counter(name); }};
}
Measure over_bytes() {
  return {"over - bytes", [](const Row& row, const Rows&) -> std::optional<double> {
            const auto over = row.counter("over"), bytes = row.counter("bytes");
            return over && bytes ? std::optional<double>(*over - *bytes) : std::nullopt;
          }};
}
/// Seconds of another case of the program, whose name is this one's with `part` replaced, and of this one.
std::optional<std::pair<double, double>> seconds_beside(const Row& row, const Rows& rows, const std::string& part,
                                                        const std::string& other) {
  const std::string name = std::regex_replace(row.name, std::regex(part), other, std::regex_constants::format_first_only);
  for (const Row& beside : rows)
    if (beside.program == row.program && beside.name == name && beside.seconds > 0 && row.seconds > 0)
      return std::pair(beside.seconds, row.seconds);
  return std::nullopt;
}
/// The time of the case with `part` of its name replaced by `other`, over this one's.
Measure faster_than(const std::string& other, const std::string& part = "^[^/]*") {
  return {"times " + other, [=](const Row& row, const Rows& rows) -> std::optional<double> {
            const auto seconds = seconds_beside(row, rows, part, other);
            return seconds ? std::optional<double>(seconds->first / seconds->second) : std::nullopt;
          }};
}
/// The time of this many tokens over that of one.
Measure of_one_token() {
  return {"of one token", [](const Row& row, const Rows& rows) -> std::optional<double> {
            const auto seconds = seconds_beside(row, rows, "tokens:[0-9]+", "tokens:1");
            return seconds ? std::optional<double>(seconds->second / seconds->first) : std::nullopt;
          }};
}
/// The time of a token among this many over that of a token among 12; `number`: how the name says how many, 12 being `twelve`.
Measure of_twelve_tokens(const std::string& number, const std::string& twelve) {
  return {"of a token among 12", [=](const Row& row, const Rows& rows) -> std::optional<double> {
            const auto seconds = seconds_beside(row, rows, number + "[0-9]+", twelve);
            std::smatch tokens;
            if (!seconds || !std::regex_search(row.name, tokens, std::regex(number + "([0-9]+)"))) return std::nullopt;
            return seconds->second / std::stod(tokens[1]) / (seconds->first / 12);
          }};
}
Measure of_reading() {
  return {"seconds / reading", [](const Row& row, const Rows&) -> std::optional<double> {
            const auto seconds = row.counter("seconds"), reading = row.counter("reading");
            return seconds && reading && *reading > 0 ? std::optional<double>(*seconds / *reading) : std::nullopt;
          }};
}

struct Goal {
  std::string program, cases;  ///< of which program, and a regular expression that all of the case's name matches
  Measure measure;
  bool at_least;
  double limit;
  bool points;  ///< the measure counts percent: what misses it, misses it by points
};

const std::vector<Goal> goals{
    {"matmul", "packed_f32/tokens:1/.*", counter("of_read"), true, .98, false},
    {"matmul", "(packed_(bf16|f16)|rounded_bf16)/tokens:1/.*", counter("of_read"), true, 1.95, false},
    {"matmul", "(packed|rounded)_int8/tokens:1/.*", counter("of_read"), true, 3.6, false},
    {"matmul", "packed_int4/tokens:1/.*", counter("of_own"), true, .9, false},
    {"matmul", "packed_int4_g128/tokens:1/.*", counter("of_own"), true, 1, false},
    {"matmul", "packed_int4(_g128)?/tokens:4/.*", of_one_token(), false, 1.3, false},
    {"matmul", "packed_int4/tokens:16/.*", counter("of_dot"), true, .35, false},
    {"matmul", "packed_int4_g128/tokens:16/.*", counter("of_dot"), true, .42, false},
    {"matmul", "packed_int4/tokens:128/.*", counter("of_peak"), true, 1.35, false},
    {"matmul", "packed_int4_g128/tokens:128/.*", counter("of_peak"), true, 1.6, false},
    {"matmul", "rounded_int8/tokens:128/.*", counter("of_dot"), true, .38, false},
    {"matmul", "rounded_bf16/tokens:(16|128)/.*", faster_than("packed_f32"), true, 1.6, false},
    {"matmul", "packed_f32/tokens:(8|16)/.*", faster_than("openblas"), true, 2, false},
    {"matmul", "packed_f32/tokens:(16|128|512)/.*", counter("of_peak"), true, .88, false},
    {"matmul", "packed_.*/tokens:(13|16|20|32)/.*", of_twelve_tokens("tokens:", "tokens:12"), false, 1, false},
    {"lora", "lora/tokens:1/.*", over_bytes(), false, 1.5, true},
    {"lora", "lora/tokens:128/.*", counter("over"), false, 5, true},
    {"lora", "rows/tokens:64/.*", counter("over_blas"), false, 8, true},
    {"lora", "rows/tokens:64/.*", counter("over"), false, 10, true},
    {"attend", "attend_f32/tokens:1/.*/dim:64/heads:32/group:4", counter("of_read"), true, .85, false},
    {"attend", "attend_bf16/tokens:1/.*/dim:64/heads:32/group:4", counter("of_read"), true, 1.15, false},
    {"attend", "attend_q8/tokens:1/.*/dim:(64|128)/heads:32/group:[14]", counter("of_read"), true, 1.2, false},
    {"attend", "attend_f32/tokens:1/.*/dim:128/.*", counter("of_read"), true, .8, false},
    {"attend", "attend_bf16/tokens:1/.*/dim:128/.*/group:1", counter("of_read"), true, 1.5, false},
    {"attend", "attend_q8_q4/tokens:1/rows:16384/.*/group:2", faster_than("attend_bf16"), true, 1.5, false},
    {"attend", "attend_q8_q4/tokens:1/rows:16384/.*/group:2", faster_than("attend_q8"), true, 1, false},
    {"attend", "attend_q8/tokens:1/.*/deviation:4/skip:10", counter("of_dense"), false, 1, false},
    {"attend", "attend_(f32|bf16)/tokens:1/rows:[0-9]{4,}/.*", counter("watching"), false, 3, true},
    {"kv_cache", "append.evict/(window|sinks)/.*", counter("us"), false, 1, false},
    {"kv_cache", "append.evict/(?!window|sinks|dense|gather).*", counter("of_attention"), false, .015, false},
    {"speculative", "verify/tokens:5", counter("times_one"), false, 1.5, false},
    {"token_merging", "nearest/.*", faster_than("eigen"), true, 2, false},
    {"load", "load/.*", counter("validating"), false, 5, true},
    {"vision", "tower_(f32|bf16)/(clip|siglip)-.*", counter("of_products"), true, .8, false},
    {"decoder", ".*/lora16", over_bytes(), false, 1.5, true},
    {"decoder", "1.1b/weights:f32/rows:f32/policy:dense/threads:1/tg@(0|16384)", counter("of_read"), true, .9, false},
    {"decoder", "1.1b/weights:bf16/rows:bf16/policy:dense/threads:1/tg@(0|4096)", counter("of_read"), true, .88, false},
    {"decoder", "1.1b/weights:int4/rows:q8/policy:dense/threads:1/tg@0", counter("of_read"), true, .9, false},
    {"decoder", "1.1b/weights:int4/rows:q8/policy:dense/threads:1/tg@0", faster_than("weights:int8", "weights:int4"), true, 1.7, false},
    {"decoder", "1.1b/weights:bf16/load", of_reading(), false, 1.3, false},
    {"decoder", ".*/weights:bf16.bf16/.*/pp[0-9]+", faster_than("weights:bf16", "weights:bf16.bf16"), true, 1.6, false},
    {"decoder", ".*/batch(13|16|20|32)", of_twelve_tokens("batch", "batch12"), false, 1, false},
};

/// Counters a reader compares, in this order.
const std::vector<std::string> shown{"of_read",    "of_own",   "of_peak",    "of_dot",      "of_dense",  "GFLOPS",
                                     "times_one",  "faster",   "over",       "bytes",       "over_blas", "of_attention",
                                     "of_prefill", "watching", "validating", "GB/s",        "tokens/s",  "MB/token",
                                     "RSS_MB",     "accepted", "per_pass",   "of_products", "of_linear", "tile_seconds"};

std::string number(double value) {
  std::ostringstream text;
  const int whole = value == 0 ? 1 : static_cast<int>(std::floor(std::log10(std::abs(value)))) + 1;
  text << std::fixed << std::setprecision(std::clamp(3 - whole, 0, 4)) << value;
  return text.str();
}

std::string duration(double seconds) {
  if (seconds <= 0) return {};
  if (seconds < 1e-3) return number(seconds * 1e6) + " us";
  return seconds < 1 ? number(seconds * 1e3) + " ms" : number(seconds) + " s";
}

std::string verdict(const Goal& goal, double value) {
  const std::string what = goal.measure.text + (goal.at_least ? " >= " : " <= ") + number(goal.limit);
  if (goal.at_least ? value >= goal.limit : value <= goal.limit) return what + ": met";
  const double miss = std::abs(value - goal.limit);
  return what + ": missed by " + (goal.points ? number(miss) + " points" : number(100 * miss / goal.limit) + " %");
}

std::string verdicts(const Row& row, const Rows& rows) {
  std::string out;
  for (const Goal& goal : goals) {
    if (goal.program != row.program || !std::regex_match(row.name, std::regex(goal.cases))) continue;
    if (const auto value = goal.measure.of(row, rows)) out += (out.empty() ? "" : "; ") + verdict(goal, *value);
  }
  return out;
}

/// Without what Google Benchmark appends about the way it was run.
std::string case_name(std::string name) {
  for (const char* mark : {"/iterations:", "/repeats:", "/min_time:", "/manual_time"}) name = name.substr(0, name.find(mark));
  return name;
}

void read(const std::filesystem::path& path, Rows& rows) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  // Google Benchmark writes a spread relative to a mean of 0 as no JSON allows.
  const auto json = nlohmann::json::parse(std::regex_replace(text, std::regex(": -?(NaN|Infinity)"), ": null"), nullptr, false);
  if (json.is_discarded() || !json.is_object() || !json.contains("benchmarks"))
    throw std::runtime_error(path.string() + ": no report of a benchmark");
  const std::string stem = path.stem().string(), program = stem.substr(0, stem.find('-'));
  for (const auto& one : json["benchmarks"]) {
    const bool failed = one.value("error_occurred", false);
    if (!failed && one.value("run_type", "") == "aggregate" && one.value("aggregate_name", "") != "median") continue;
    Row row{program, case_name(one.value("run_name", one.value("name", ""))), failed ? one.value("error_message", "failed") : "", 0, one};
    if (failed && !rows.empty() && rows.back().name == row.name && rows.back().program == program) continue;  // each repetition says so
    const std::string unit = one.value("time_unit", "ns");
    row.seconds = one.value("real_time", 0.) * (unit == "ns" ? 1e-9 : unit == "us" ? 1e-6 : unit == "ms" ? 1e-3 : 1);
    if (const auto median = row.counter("us")) row.seconds = *median * 1e-6;
    rows.push_back(std::move(row));
  }
}

void print(std::ostream& out, const Rows& rows) {
  std::vector<std::vector<std::string>> table;
  for (const Row& row : rows) {
    std::string ratios;
    for (const std::string& name : shown)
      if (const auto value = row.counter(name)) ratios += (ratios.empty() ? "" : ", ") + name + " " + number(*value);
    std::ostringstream error;
    if (const auto value = row.counter("rel_err")) error << std::setprecision(2) << *value;
    table.push_back({row.program, row.name, row.error.empty() ? duration(row.seconds) : "WRONG", row.error.empty() ? ratios : row.error,
                     error.str(), verdicts(row, rows)});
  }
  print_machine(out);
  print_table(out, {"what", "case", "time", "ratios", "rel_err", "goal"}, table);
}

constexpr const char* usage = R"(summary [--out=FILE] matmul.json attend.json decoder-1.1b.json ...

A file is named after its program; what follows a '-' tells runs of one program apart. FILE gets the table as well. An unreadable file or a
result that was found wrong makes the exit code 1; a goal that is missed does not.)";

}  // namespace

int main(int argc, char** argv) try {
  std::filesystem::path out;
  Rows rows;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help") {
      std::printf("%s\n", usage);
      return 0;
    }
    if (argument.rfind("--out=", 0) == 0 && argument.size() > 6) {
      out = argument.substr(6);
    } else if (argument.rfind("--", 0) == 0) {
      throw std::invalid_argument(argument + ": no such flag; --help lists them");
    } else {
      read(argument, rows);
    }
  }
  if (rows.empty()) throw std::invalid_argument("no report of a benchmark is named; --help says how it is called");
  print(std::cout, rows);
  if (!out.empty()) {
    std::ofstream file(out);
    print(file, rows);
    if (!file.flush()) throw std::runtime_error("cannot write " + out.string());
  }
  return std::any_of(rows.begin(), rows.end(), [](const Row& row) { return !row.error.empty(); }) ? 1 : 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "summary: %s\n", error.what());
  return 1;
}
