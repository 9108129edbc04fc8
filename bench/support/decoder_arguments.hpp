#pragma once

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <pith/kv/catalogue.hpp>
#include <pith/model/config.hpp>

namespace pith_bench {

/// A command line that asks for nothing there is.
struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct PolicyChoice {
  std::string name;
  pith::Index budget;
  bool bounded() const { return name != "dense"; }
  std::string text() const { return bounded() ? name + ":" + std::to_string(budget) : name; }
};

/// What bench/decoder is asked to measure.
struct DecoderArguments {
  std::string model = "135m";
  pith::DecoderConfig config;
  std::vector<std::string> weights{"f32", "bf16"}, rows{"f32"}, factors{"f32"};
  std::vector<PolicyChoice> policies;
  std::vector<pith::Index> contexts{0, 1024, 4096, 16384}, bounded_contexts{1024, 16384, 100000}, threads, ranks, batches, prompts{512},
      skips{0};
  pith::Index tokens = 32, spread = 1;
  bool scouts = false;
  std::string format = "md";
  std::filesystem::path out, folder;
  bool own = false;  ///< `folder` holds the checkpoint to measure
  bool help = false;
};

constexpr std::string_view decoder_usage = R"(A whole decoder of any Llama shape, with random weights or your own checkpoint.

  --shape=135m|1.1b       SmolLM-135M's shape, or 16 layers of 2048                            [135m]
  --layers= --hidden= --ffn= --heads= --kv-heads= --head-dim= --vocab= --tied=yes|no  override it
  --weights=f32,bf16,f16  as the file stores them; int8, int4: rounded while loading; int8+int15,
                          bf16+bf16: under Compute::int15 and Compute::bf16. own: your
                          checkpoint as it is, own+bf16 under Compute::bf16; own-int8,
                          own-int8+int15, own-int4: rounded                                    [f32,bf16]
  --rows=f32,bf16,f16,q8,q8+q4,q4  as the cache stores keys and values: q8+q4 8-bit keys, rotated 4-bit values [f32]
  --policies=NAME[:ROWS]  of the policy catalogue, ROWS a head                                 [dense,sinks,h2o]
  --budget=ROWS           of policies that name none                                           [1024]
  --context=N,...         tokens before the measured ones, for dense                           [0,1024,4096,16384]
  --bounded-context=N,... the same for policies with a budget                                  [1024,16384,100000]
  --skip=N,...            thousandths of a softmax whose rows decoding may leave unread; 0: it reads all [0]
  --scouts=yes|no         then of keys as well, by 8-bit codes beside f32, bf16 and f16 rows   [no]
  --spread=N              what the keys of such tokens are multiplied by: so much more logits spread [1]
  --threads=N,...                                                                              [1, and 2 where there are]
  --lora=RANK,...         decoding with LoRA on every projection, in turns with none           [not measured]
  --factors=f32,bf16      as LoRA keeps A and B                                                [f32]
  --batch=N,...           sessions decoded together, in turns with one alone                   [not measured]
  --tokens=N              decoded in each case                                                 [32]
  --prompt=N,...          tokens of the prompt; 0: none is measured                            [512]
  --folder=DIR            a checkpoint to measure as it is, or where to write the random one for a while
  --format=md|csv|json    of FILE, or of what is printed where there is none                   [md]
  --out=FILE              the table is printed as well
)";

/// One flag's value; says what is wrong with it.
class FlagValue {
 public:
  FlagValue(std::string name, std::string text) : name_(std::move(name)), text_(std::move(text)) {}

  [[noreturn]] void refuse(const std::string& expected) const {
    throw ArgumentError("--" + name_ + "=" + text_ + ": expected " + expected);
  }
  const std::string& text() const {
    if (text_.empty()) refuse("a value");
    return text_;
  }
  pith::Index number(pith::Index least) const { return number(text_, least); }
  std::vector<pith::Index> numbers(pith::Index least, pith::Index most = most_number) const {
    std::vector<pith::Index> out;
    for (const std::string& part : parts()) out.push_back(number(part, least, most));
    return out;
  }
  const std::string& one_of(const std::vector<std::string>& known) const {
    check(text_, known);
    return text_;
  }
  std::vector<std::string> some_of(const std::vector<std::string>& known) const {
    for (const std::string& part : parts()) check(part, known);
    return parts();
  }
  std::vector<PolicyChoice> policies() const {
    std::vector<std::string> known;
    for (const auto& entry : pith::policy_catalogue<float>()) known.emplace_back(entry.name);
    std::vector<PolicyChoice> out;
    for (const std::string& part : parts()) {
      const std::size_t colon = std::min(part.find(':'), part.size());
      check(part.substr(0, colon), known);
      out.push_back({part.substr(0, colon), colon == part.size() ? 0 : number(part.substr(colon + 1), 1)});
    }
    return out;
  }

 private:
  static constexpr pith::Index most_number = std::numeric_limits<pith::Position>::max() / 2;
  pith::Index number(const std::string& text, pith::Index least, pith::Index most = most_number) const {
    pith::Index value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most)
      refuse("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
    return value;
  }
  std::vector<std::string> parts() const {
    std::vector<std::string> out;
    std::istringstream in(text());
    for (std::string part; std::getline(in, part, ',');) out.push_back(part);
    return out;
  }
  void check(const std::string& part, const std::vector<std::string>& known) const {
    if (std::find(known.begin(), known.end(), part) != known.end()) return;
    std::string list;
    for (const std::string& name : known) list += (list.empty() ? "" : ", ") + name;
    refuse(list);
  }

  std::string name_, text_;
};

inline pith::DecoderConfig decoder_shape(const std::string& name) {
  pith::DecoderConfig c;
  const bool small = name == "135m";
  c.vocab_size = small ? 49152 : 32000;
  c.hidden_size = small ? 576 : 2048;
  c.intermediate_size = small ? 1536 : 8192;
  c.num_hidden_layers = small ? 30 : 16;
  c.num_attention_heads = small ? 9 : 32;
  c.num_key_value_heads = small ? 3 : 8;
  c.head_dim = 64;
  c.norm_eps = 1e-5;
  c.tie_word_embeddings = small;
  c.max_position_embeddings = 131072;
  return c;
}

/// --weights takes the names of `random` for random checkpoints, of `own` for others, which begin with what is taken where none is given.
///
/// Throws   ArgumentError with one sentence
inline DecoderArguments parse_decoder_arguments(int argc, char** argv, const std::vector<std::string>& random,
                                                const std::vector<std::string>& own) {
  DecoderArguments a;
  pith::Index budget = 1024;
  std::optional<FlagValue> weights;
  a.threads = std::thread::hardware_concurrency() > 1 ? std::vector<pith::Index>{1, 2} : std::vector<pith::Index>{1};
  a.policies = {{"dense", 0}, {"sinks", 0}, {"h2o", 0}};
  a.config = decoder_shape(a.model);
  const auto size = [&](pith::Index pith::DecoderConfig::*field) {
    return [&a, field](const FlagValue& v) {
      a.config.*field = v.number(1);
      a.model = "custom";
    };
  };
  const std::vector<std::pair<std::string, std::function<void(const FlagValue&)>>> flags{
      {"shape",
       [&](const FlagValue& v) {
         a.model = v.one_of({"135m", "1.1b"});
         a.config = decoder_shape(a.model);
       }},
      {"layers", size(&pith::DecoderConfig::num_hidden_layers)},
      {"hidden", size(&pith::DecoderConfig::hidden_size)},
      {"ffn", size(&pith::DecoderConfig::intermediate_size)},
      {"heads", size(&pith::DecoderConfig::num_attention_heads)},
      {"kv-heads", size(&pith::DecoderConfig::num_key_value_heads)},
      {"head-dim", size(&pith::DecoderConfig::head_dim)},
      {"vocab", size(&pith::DecoderConfig::vocab_size)},
      {"tied",
       [&](const FlagValue& v) {
         a.config.tie_word_embeddings = v.one_of({"yes", "no"}) == "yes";
         a.model = "custom";
       }},
      {"weights", [&](const FlagValue& v) { weights = v; }},
      {"rows",
       [&](const FlagValue& v) {
         a.rows = v.some_of({"f32", "bf16", "f16", "q8", "q8+q4", "q4"});
       }},
      {"policies", [&](const FlagValue& v) { a.policies = v.policies(); }},
      {"budget", [&](const FlagValue& v) { budget = v.number(1); }},
      {"context", [&](const FlagValue& v) { a.contexts = v.numbers(0); }},
      {"bounded-context", [&](const FlagValue& v) { a.bounded_contexts = v.numbers(0); }},
      {"skip", [&](const FlagValue& v) { a.skips = v.numbers(0, 999); }},
      {"scouts",
       [&](const FlagValue& v) {
         a.scouts = v.one_of({"yes", "no"}) == "yes";
       }},
      {"spread", [&](const FlagValue& v) { a.spread = v.number(1); }},
      {"threads", [&](const FlagValue& v) { a.threads = v.numbers(1); }},
      {"lora", [&](const FlagValue& v) { a.ranks = v.numbers(1); }},
      {"factors",
       [&](const FlagValue& v) {
         a.factors = v.some_of({"f32", "bf16"});
       }},
      {"tokens", [&](const FlagValue& v) { a.tokens = v.number(1); }},
      {"batch", [&](const FlagValue& v) { a.batches = v.numbers(1); }},
      {"prompt", [&](const FlagValue& v) { a.prompts = v.numbers(0); }},
      {"folder", [&](const FlagValue& v) { a.folder = v.text(); }},
      {"format",
       [&](const FlagValue& v) {
         a.format = v.one_of({"md", "csv", "json"});
       }},
      {"out", [&](const FlagValue& v) { a.out = v.text(); }},
  };
  bool shaped = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help") {
      a.help = true;
      return a;
    }
    const std::size_t equals = std::min(argument.find('='), argument.size());
    const auto flag = std::find_if(flags.begin(), flags.end(), [&](const auto& f) { return "--" + f.first == argument.substr(0, equals); });
    if (flag == flags.end()) throw ArgumentError(argument + ": no such flag; --help lists them");
    if (equals == argument.size()) throw ArgumentError(argument + ": expected " + argument + "=VALUE");
    flag->second(FlagValue(flag->first, argument.substr(equals + 1)));
    shaped = shaped || a.model == "custom" || flag->first == "shape";
  }
  for (PolicyChoice& policy : a.policies)
    if (policy.budget == 0) policy.budget = budget;
  a.own = !a.folder.empty() && std::filesystem::exists(a.folder / "config.json");
  if (a.own) {
    if (shaped) throw ArgumentError("--folder=" + a.folder.string() + ": holds a checkpoint, whose shape is its own");
    a.model = std::filesystem::absolute(a.folder / "config.json").lexically_normal().parent_path().filename().string();
    a.weights = {own.front()};
  }
  if (weights) a.weights = weights->some_of(a.own ? own : random);
  if (a.folder.empty()) a.folder = std::filesystem::temp_directory_path();
  return a;
}

}  // namespace pith_bench
