#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include <pith/io/detail/module_numbers.hpp>
#include <pith/io/detail/name_index.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>

#include "io/temp_folder.hpp"
#include "io/tiny_adapter.hpp"
#include "support/catch.hpp"

using namespace pith;
using pith::detail::ModuleNumbers, pith::detail::NameIndex, pith::detail::max_pattern_steps;
using pith_test::TempFolder, pith_test::TinyAdapter;

namespace {

/// Components of few letters, so that much matches.
std::string random_path(std::mt19937& rng, std::size_t most) {
  std::string out;
  for (std::size_t n = 1 + rng() % most, i = 0; i < n; ++i) {
    if (i > 0) out += '.';
    for (std::size_t letters = 1 + rng() % 2; letters > 0; --letters) out += "ab_"[rng() % 3];
  }
  return out;
}

bool by_components(const std::string& path, const std::string& name, bool at_end) {
  const std::string padded = "." + path + ".", wanted = "." + name + ".";
  return at_end ? padded.ends_with(wanted) : padded.find(wanted) != std::string::npos;
}

}  // namespace

TEST_CASE("NameIndex finds what comparing each name finds", "[io]") {
  std::mt19937 rng(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> names;
    for (int i = 0; i < 12; ++i) names.push_back(random_path(rng, 3));
    const NameIndex index(names);
    const std::string path = random_path(rng, 6);
    CAPTURE(path, names);
    std::size_t steps = 100000;
    const auto any = [&](const auto& matches) { return std::any_of(names.begin(), names.end(), matches); };
    CHECK(index.contains(path) == any([&](const std::string& name) { return name == path; }));
    CHECK(index.ends(path, steps) == any([&](const std::string& name) { return by_components(path, name, true); }));
    CHECK(index.within(path, steps) == any([&](const std::string& name) { return by_components(path, name, false); }));
    for (const std::string& name : names) {
      bool ending = false, within = false;
      index.each_ending(path, steps, [&](const std::string& found) { ending = ending || found == name; });
      index.each_within(path, steps, [&](const std::string& found) { within = within || found == name; });
      CHECK(ending == path.ends_with(name));
      CHECK(within == by_components(path, name, false));
    }
  }
}

TEST_CASE("ModuleNumbers: the first key whose expression matches the end of a path, as Python's re reads it", "[io]") {
  std::mt19937 rng(7);
  for (int round = 0; round < 300; ++round) {
    ModuleNumbers<Index> numbers;
    std::vector<std::regex> expressions;
    for (Index i = 0; i < 8; ++i) {
      std::string key = random_path(rng, 3);
      const auto kind = rng() % 5;
      if (kind < 2)
        for (std::size_t at = key.find('.'); at != std::string::npos; at = key.find('.', at + 2)) key.replace(at, 1, "\\.");
      if (kind == 1) key = "^" + key;
      if (kind == 3) key = "(" + key + "|b)";
      numbers.add(key, "here", i);
      expressions.emplace_back("(.*\\.)?(" + key + ")$");
    }
    const std::string path = random_path(rng, 4);
    CAPTURE(path);
    Index expected = -1;
    for (Index i = 0; i < 8 && expected < 0; ++i) {
      std::smatch match;
      if (std::regex_search(path, match, expressions[static_cast<std::size_t>(i)], std::regex_constants::match_continuous)) expected = i;
    }
    std::size_t steps = 100000;
    CHECK(numbers.of(path, -1, steps) == expected);
  }
}

TEST_CASE("peft folder: thousands of names and modules cost steps for what matches, not for each pair", "[io]") {
  TinyAdapter adapter;
  adapter.tensors.clear();
  adapter.config["target_modules"] = {"q_proj"};
  std::vector<std::string> saved{"lm_head"};
  for (int i = 0; i < 8190; ++i) saved.push_back("saved_" + std::to_string(i));
  adapter.config["modules_to_save"] = saved;
  adapter.put("base_model.model.lm_head.weight", 1, 1);
  for (int i = 0; i < 2000; ++i) {
    const std::string module = "model.layers." + std::to_string(i) + ".self_attn.q_proj";
    adapter.lora(module, 1, 1 + i % 2, 1);
    std::string key = "^model\\.layers\\." + std::to_string(i) + "\\.self_attn\\.q_proj";
    if (i % 2 == 0) adapter.config["rank_pattern"][key] = 1;
    adapter.config["alpha_pattern"][i % 3 == 0 ? module : key] = i;
  }
  const TempFolder folder;
  adapter.write(folder);
  const PeftFolder opened(folder.path());
  CHECK(opened.modules().size() == 2001);
  CHECK(opened.load("model.layers.1234.self_attn.q_proj").gain[0] == 1234);
  CHECK(opened.load("model.layers.1233.self_attn.q_proj").gain[0] == 1233.0f / 2);
  CHECK(max_pattern_steps - opened.steps_left() < std::size_t{1} << 21);  // 1000 a module; one a pair would be 2^24
}

TEST_CASE("peft folder: its names and expressions have one budget", "[io]") {
  const auto spent = [](int modules) {
    TinyAdapter adapter;
    adapter.tensors.clear();
    adapter.config["target_modules"] = ".*(a|b|c|d|.)*.*.*proj";
    adapter.config["alpha_pattern"] = {{"(x|y)*z", 1}};
    for (int i = 10; i < 10 + modules; ++i) adapter.lora("model." + std::string(100, 'a') + std::to_string(i) + "proj", 1, 2, 1);
    const TempFolder folder;
    adapter.write(folder);
    return max_pattern_steps - PeftFolder(folder.path()).steps_left();
  };
  const std::size_t one = spent(1);
  CHECK(one > 1000);
  CHECK(spent(20) == 20 * one);  // every module goes on where the one before it ended

  const PeftConfig config = parse_peft_config(R"({"peft_type":"LORA","target_modules":".*(a|b)*proj","modules_to_save":["b"]})");
  std::size_t few = 60;
  CHECK_THROWS_AS(config.targets.match("model.aaaaaaaaaaaaaaaaaaaaaaaaaaaaproj", few), FormatError);
  std::size_t steps = 100;
  ModuleNumbers<Index> numbers;
  numbers.add("q_proj", "here", 1);
  CHECK(numbers.of("model.q_proj", 0, steps) == 1);
  CHECK(steps < 100);
  steps = 3;
  CHECK_THROWS_AS(numbers.of("model.q_proj", 0, steps), FormatError);
}
