// Compares with published adapter code: every file of <golden>/lora. Adapter folders in there are tested where they are read.
//
// What a file is, its metadata says as `source`; shapes, scales and rules come from the files. A source that no test owns fails, and so
// does a tensor that no test reads.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/peft.hpp>
#include <pith/peft/combine.hpp>
#include <pith/peft/decompose.hpp>

#include "golden/support/golden_file.hpp"
#include "support/catch.hpp"
#include "support/decompositions.hpp"
#include "support/near.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace golden_lora {
namespace {

/// What the files' README allows, relative to the largest number of a tensor or to 1.
template <class S> constexpr double bound = sizeof(S) == 8 ? 1e-6 : 1e-5;
constexpr double svd_bound = 5e-5, trace_bound = 1e-5;

/// Leading axes are rows.
template <class S> Matrix<S> matrix(Golden& golden, const std::string& name) {
  const Tensor tensor = golden.get(name);
  const Index cols = tensor.shape.empty() ? 1 : tensor.width();
  if (cols == 0) return Matrix<S>(tensor.extent(0), 0);
  return tensor.values.reshaped<Eigen::RowMajor>(tensor.values.size() / cols, cols).cast<S>();
}
template <class S> Vector<S> vector(Golden& golden, const std::string& name) { return golden.get(name).values.cast<S>(); }
template <class S> Vector<S> optional_vector(Golden& golden, const std::string& name) {
  return golden.has(name) ? vector<S>(golden, name) : Vector<S>();
}

/// One page of [steps, rows, cols].
template <class S> Matrix<S> page(Golden& golden, const std::string& name, Index step) {
  const Tensor tensor = golden.get(name);
  REQUIRE(tensor.shape.size() == 3);
  return tensor.values.segment(step * tensor.shape[1] * tensor.shape[2], tensor.shape[1] * tensor.shape[2])
      .reshaped<Eigen::RowMajor>(tensor.shape[1], tensor.shape[2])
      .cast<S>();
}

template <class M> void check_as(Golden& golden, const std::string& name, const M& ours, double tolerance) {
  INFO(name);
  Matrix<double> theirs = matrix<double>(golden, name);
  if (ours.cols() == 1 && theirs.rows() == 1) theirs.transposeInPlace();
  CHECK(near(ours, theirs, tolerance * std::max(1., theirs.size() == 0 ? 0. : theirs.cwiseAbs().maxCoeff())));
}
template <class M> void check_as(Golden& golden, const std::string& name, const M& ours) {
  check_as(golden, name, ours, bound<typename M::Scalar>);
}

template <class S> Linear<S> linear(Golden& golden, const std::string& weight, const std::string& bias, bool transposed = false) {
  const Matrix<S> w = matrix<S>(golden, weight);
  return Linear<S>(transposed ? Matrix<S>(w.transpose()) : w, optional_vector<S>(golden, bias));
}

/// Every case of a file in double and in float.
template <class F> void each_case(Golden& golden, F&& f) {
  for (const json& name : golden.json("cases")) {
    INFO(name.get<std::string>());
    f(name.get<std::string>() + ".", golden.json(name.get<std::string>()));
  }
}

template <class S, class L> void check_layer(Golden& golden, const std::string& at, const L& layer, bool transposed) {
  const Matrix<S> x = matrix<S>(golden, at + "x");
  check_as(golden, at + "y", layer.forward(x));
  const Linear<S> merged = layer.merged();
  check_as(golden, at + "W_merged", transposed ? Matrix<S>(merged.weight().transpose()) : merged.weight());
  const std::string y_merged = golden.has(at + "y_merged") ? at + "y_merged" : at + "y";
  check_as(golden, y_merged, merged.forward(x));
}

template <class S, class L> auto check_backward(Golden& golden, const std::string& at, const L& layer) {
  const Matrix<S> x = matrix<S>(golden, at + "x"), dy = matrix<S>(golden, at + "G");
  auto grads = gradients_of(layer);
  Matrix<S> dx(x.rows(), x.cols());
  Workspace ws(layer.workspace_bytes(x.rows()));
  backward(layer, x, dy, grads, dx, ws);
  check_as(golden, at + "dx", dx);
  return grads;
}

// ------------------------------------------------------------------------------------------------------------ LoRA

template <class S> void lora_case(Golden& golden, const std::string& at, const json& config) {
  const bool transposed = config.value("fan_in_fan_out", false);
  const LoraOptions options{.alpha = config.at("lora_alpha"), .rslora = config.value("use_rslora", false)};
  const LoraLinear layer(
      linear<S>(golden, at + "W0", at + "bias", transposed),
      LoraAdapter<S>(matrix<S>(golden, at + "A"), matrix<S>(golden, at + "B"), options, optional_vector<S>(golden, at + "B_bias")));
  CHECK(double(layer.adapter().scale()) == Approx(config.at("scaling").get<double>()));
  check_layer<S>(golden, at, layer, transposed);
  const auto grads = check_backward<S>(golden, at, layer);
  check_as(golden, at + "dA", grads.down_rows);
  check_as(golden, at + "dB", grads.up_rows.transpose().eval());
  if (golden.has(at + "B_bias")) {
    check_as(golden, at + "bias_merged", Vector<S>(layer.merged().bias()));
    check_as(golden, at + "dB_bias", grads.bias);
  }
  if (golden.has(at + "delta_W")) {
    const LoraLinear alone(Linear<S>(Matrix<S>::Zero(layer.out(), layer.in())), layer.adapter());
    const Matrix<S> delta = alone.merged().weight();
    check_as(golden, at + "delta_W", transposed ? Matrix<S>(delta.transpose()) : delta);
  }
}

template <class S> void embedding_case(Golden& golden, const std::string& at, const json& config) {
  const LoraEmbedding<S> table(Embedding<S>(matrix<S>(golden, at + "W0")), matrix<S>(golden, at + "A"), matrix<S>(golden, at + "B"),
                               {.alpha = config.at("lora_alpha")});
  const std::vector<Token> ids = golden.ids(at + "ids");
  Matrix<S> y(static_cast<Index>(ids.size()), table.table().cols()), merged(table.table().rows(), table.table().cols());
  table.gather(ids, y);
  check_as(golden, at + "y", y);
  table.merged().copy_rows(0, merged);
  check_as(golden, at + "W_merged", merged);
}

template <class S> void fused_case(Golden& golden, const std::string& at, const json& config) {
  std::array<bool, 3> enabled{};
  REQUIRE(config.at("enable_lora").size() == enabled.size());
  for (std::size_t i = 0; i < enabled.size(); ++i) enabled[i] = config.at("enable_lora")[i];
  const Matrix<S> a = matrix<S>(golden, at + "A");
  check_layer<S>(golden, at,
                 LoraLinear(linear<S>(golden, at + "W0", at + "bias"),
                            fused_lora<S>(ConstMatrixRef<S>(a), matrix<S>(golden, at + "B"), enabled, {.alpha = config.at("lora_alpha")})),
                 false);
}

void linears(Golden& golden) {
  each_case(golden, [&](const std::string& at, const json& config) {
    const std::string kind = config.value("kind", "Linear");
    if (kind == "Linear") {
      lora_case<double>(golden, at, config);
      lora_case<float>(golden, at, config);
    } else if (kind == "Embedding") {
      embedding_case<double>(golden, at, config);
      embedding_case<float>(golden, at, config);
    } else if (kind == "MergedLinear") {
      fused_case<double>(golden, at, config);
      fused_case<float>(golden, at, config);
    } else {
      FAIL_CHECK("nobody tests " << kind);
    }
  });
}

// ------------------------------------------------------------------------------------------------------------ DyLoRA, AdaLoRA, DoRA

template <class S> void dylora_of(Golden& golden) {
  LoraLinear layer(linear<S>(golden, "W0", "bias"),
                   DyLoraAdapter<S>(matrix<S>(golden, "A"), matrix<S>(golden, "B"), {.alpha = golden.real("lora_alpha")}));
  const Matrix<S> x = matrix<S>(golden, "x"), dy = matrix<S>(golden, "G");
  const json ranks = golden.json("b_list"), published = golden.json("set_rank_argument");
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const Index b = ranks[i];
    CHECK(published[i] == b - 1);
    layer.adapter().set_rank(b);
    const std::string at = "b" + std::to_string(b) + ".";
    INFO(at);
    check_as(golden, at + "y", layer.forward(x));
    check_as(golden, at + "W_merged", layer.merged().weight());
    auto grads = gradients_of(layer);
    Matrix<S> dx(x.rows(), x.cols());
    Workspace ws(layer.workspace_bytes(x.rows()));
    backward(layer, x, dy, grads, dx, ws);
    for (const std::string mode : {"full.", "frozen."}) {
      if (mode == "frozen.") keep_last_component(grads, b);
      check_as(golden, at + mode + "dx", dx);
      check_as(golden, at + mode + "dA", grads.down_rows);
      check_as(golden, at + mode + "dB", grads.up_rows.transpose().eval());
    }
  }
}
void dylora(Golden& golden) {
  dylora_of<double>(golden);
  dylora_of<float>(golden);
}

template <class S> void adalora_case(Golden& golden, const std::string& at, const json& config) {
  const LoraLinear layer(linear<S>(golden, at + "W0", at + "bias"),
                         AdaLoraAdapter<S>(matrix<S>(golden, at + "A"), vector<S>(golden, at + "E"), matrix<S>(golden, at + "B"),
                                           {.alpha = config.at("lora_alpha")}));
  check_layer<S>(golden, at, layer, false);
  const auto grads = check_backward<S>(golden, at, layer);
  check_as(golden, at + "dA", grads.down_rows);
  check_as(golden, at + "dB", grads.up_rows.transpose().eval());
  check_as(golden, at + "dE", grads.lambda);
  const S penalty = S(config.at("orth_regu_weight").get<double>()) *
                    (orthogonality(layer.adapter().down()) + orthogonality(layer.adapter().up_rows())) / S(2);
  check_as(golden, at + "orth_regu", Vector<S>::Constant(1, penalty).eval());
}
void adalora_linear(Golden& golden) {
  each_case(golden, [&](const std::string& at, const json& config) {
    adalora_case<double>(golden, at, config);
    adalora_case<float>(golden, at, config);
  });
}

template <class S> void dora_case(Golden& golden, const std::string& at, const json& config) {
  const bool transposed = config.at("fan_in_fan_out");
  const Linear<S> base = linear<S>(golden, at + "W0", at + "bias", transposed);
  const LoraAdapter<S> adapter(matrix<S>(golden, at + "A"), matrix<S>(golden, at + "B"),
                               {.alpha = config.at("lora_alpha"), .rslora = config.at("use_rslora")});
  const DoraLinear layer(LinearView{base}, adapter, vector<S>(golden, at + "m"));
  check_layer<S>(golden, at, layer, transposed);
  check_as(golden, at + "weight_norm", layer.norm());
  LoraAdapter<S> off = adapter;
  off.set_scale(0);
  check_as(golden, at + "m_at_init", DoraLinear(LinearView{base}, off).magnitude());
  const auto grads = check_backward<S>(golden, at, layer);
  check_as(golden, at + "dA", grads.low_rank.down_rows);
  check_as(golden, at + "dB", grads.low_rank.up_rows.transpose().eval());
  check_as(golden, at + "dm", grads.magnitude);
}
void dora(Golden& golden) {
  each_case(golden, [&](const std::string& at, const json& config) {
    dora_case<double>(golden, at, config);
    dora_case<float>(golden, at, config);
  });
}

// ------------------------------------------------------------------------------------------------------------ several adapters

template <class S> LoraAdapter<S> named_adapter(Golden& golden, const std::string& name) {
  const json config = golden.json(name);
  LoraAdapter<S> adapter(matrix<S>(golden, name + ".A"), matrix<S>(golden, name + ".B"),
                         {.alpha = config.at("lora_alpha"), .rslora = config.value("use_rslora", false)});
  CHECK(double(adapter.scale()) == Approx(config.at("scaling").get<double>()));
  return adapter;
}

template <class S> void multi_adapter_of(Golden& golden) {
  const Linear<S> base = linear<S>(golden, "W0", "bias");
  const Matrix<S> x = matrix<S>(golden, "x");
  LoraAdapter<S> a = named_adapter<S>(golden, "a");
  const LoraAdapter<S> b = named_adapter<S>(golden, "b"), d = named_adapter<S>(golden, "d");
  const Vector<S> m = vector<S>(golden, "d.m");

  MultiLoraLinear<LinearView<S>> layer(LinearView{base}, {a, b});
  check_as(golden, "y.base", layer.forward(x));
  layer.use({0});
  check_as(golden, "y.a", layer.forward(x));
  layer.use({0, 1});
  check_as(golden, "y.a_b", layer.forward(x));
  check_as(golden, "W_merged.a_b", LoraLinear(LoraLinear(LinearView{base}, a), b).merged().weight());

  DoraLinear a_d(LoraLinear(LinearView{base}, a), d, m);  // merged, its norm is that of both
  check_as(golden, "W_merged.a_d", a_d.merged().weight());
  check_as(golden, "y_merged.a_d", a_d.merged().forward(x));
  check_as(golden, "y_merged.a_d", a_d.forward(x));
  a_d.refresh(base);  // in a list, of the base and itself
  check_as(golden, "y.a_d", a_d.forward(x));
  check_as(golden, "y.d_a", LoraLinear(DoraLinear(LinearView{base}, d, m), a).forward(x));

  a.set_scale(a.scale() / 2);
  check_as(golden, "y.a_scaled_half", LoraLinear(LinearView{base}, a).forward(x));
}
void multi_adapter(Golden& golden) {
  multi_adapter_of<double>(golden);
  multi_adapter_of<float>(golden);
}

template <class S> void mixed_batch_of(Golden& golden) {
  const std::vector<Token> of_sequence = golden.ids("row_adapter");
  const Matrix<S> x = matrix<S>(golden, "x");
  const json codes = golden.json("row_adapter_codes"), names = golden.json("adapter_names");
  const Index tokens = x.rows() / static_cast<Index>(of_sequence.size());
  std::vector<Index> chosen;
  for (std::size_t i = 0; i < of_sequence.size(); ++i) {
    CHECK(codes.at(names[i].get<std::string>()) == of_sequence[i]);
    chosen.insert(chosen.end(), static_cast<std::size_t>(tokens), of_sequence[i]);
  }
  const MultiLoraLinear<Linear<S>> layer(linear<S>(golden, "W0", "bias"),
                                         {named_adapter<S>(golden, "a"), named_adapter<S>(golden, "b"), named_adapter<S>(golden, "c")});
  Matrix<S> y(x.rows(), layer.out());
  Workspace ws(layer.workspace_bytes(x.rows()));
  layer.forward(x, chosen, y, ws);
  check_as(golden, "y", y);
}
void mixed_batch(Golden& golden) {
  mixed_batch_of<double>(golden);
  mixed_batch_of<float>(golden);
}

template <class S> void weighted_of(Golden& golden) {
  std::map<std::string, LoraAdapter<S>> adapters;
  for (const std::string name : {"a", "b", "c"}) adapters.emplace(name, named_adapter<S>(golden, name));
  const Linear<S> base = linear<S>(golden, "W0", "bias");
  const Matrix<S> x = matrix<S>(golden, "x");
  for (const json& combo : golden.json("combos")) {
    const std::string name = combo;
    INFO(name);
    const json config = golden.json(name);
    std::vector<WeightedLora<S>> terms;
    for (std::size_t i = 0; i < config.at("adapters").size(); ++i)
      terms.push_back({&adapters.at(config.at("adapters")[i]), config.at("weights")[i]});
    const std::string type = config.at("combination_type");
    LoraAdapter<S> ours;
    if (type == "cat") {
      ours = combine_cat<S>(terms);
    } else if (type == "svd") {
      ours = combine_svd<S>(terms, {.rank = config.at("svd_rank"), .as_published = true});
    } else {
      const std::map<std::string, CombineMethod> methods{
          {"linear", CombineMethod::linear}, {"ties", CombineMethod::ties}, {"magnitude_prune", CombineMethod::magnitude_prune}};
      ours = combine_factors<S>(terms, CombineOptions{.method = methods.at(type), .density = config.value("density", 1.)});
    }
    CHECK(ours.rank() == config.at("new_r"));
    CHECK(double(ours.scale()) == config.at("new_scaling"));
    if (type != "svd") {
      check_as(golden, name + ".A", Matrix<S>(ours.down()));
      check_as(golden, name + ".B", Matrix<S>(ours.up()));
    }
    const LoraLinear layer(LinearView{base}, ours);
    check_as(golden, name + ".delta_W", Matrix<S>(layer.merged().weight() - base.weight()));
    check_as(golden, name + ".y", layer.forward(x));
  }
}
void weighted(Golden& golden) {
  weighted_of<double>(golden);
  weighted_of<float>(golden);
}

template <class S> void svd_init_case(Golden& golden, const std::string& at, const json& config) {
  const Matrix<S> w = matrix<S>(golden, at + "W0");
  const LoraOptions options{.alpha = config.at("lora_alpha")};
  const bool is_pissa = config.at("init_lora_weights") == "pissa";
  REQUIRE((is_pissa || config.at("init_lora_weights") == "olora"));
  const auto made = is_pissa ? pissa<S>(w, config.at("r"), options) : olora<S>(w, config.at("r"), options);
  check_as(golden, at + "W_residual", made.residual, svd_bound);
  check_as(golden, at + "scaled_BA", Matrix<S>(made.adapter.scale() * made.adapter.up() * made.adapter.down()), svd_bound);
  check_as(golden, at + "A_row_norms", Vector<S>(made.adapter.down().rowwise().norm()), svd_bound);
  check_as(golden, at + "B_col_norms", Vector<S>(made.adapter.up().colwise().norm().transpose()), svd_bound);
}
void svd_init(Golden& golden) {
  each_case(golden, [&](const std::string& at, const json& config) {
    svd_init_case<double>(golden, at, config);
    svd_init_case<float>(golden, at, config);
  });
}

// ------------------------------------------------------------------------------------------------------------ allocators

double scalar_at(Golden& golden, const std::string& name, Index step) { return golden.get(name).values[step]; }

/// Relative to the tensor's largest number.
template <class M> void check_average(Golden& golden, const std::string& name, const M& ours) {
  INFO(name);
  const Matrix<double> theirs = matrix<double>(golden, name);
  CHECK(near(ours, theirs, trace_bound * theirs.cwiseAbs().maxCoeff()));
}
/// Uncertainty is smoothed from differences of numbers some ten times its size: in floats it keeps a digit less, as theirs does.
template <class S> void check_number(double ours, double theirs, double scale) {
  CHECK(std::isnan(ours) == std::isnan(theirs));
  if (!std::isnan(theirs)) CHECK(std::abs(ours - theirs) <= (sizeof(S) == 8 ? 1 : 3) * trace_bound * scale);
}

template <class S> void adalora_allocator_of(Golden& golden, Golden& inputs, bool as_peft) {
  const Index n = golden.number("n_modules"), steps = golden.number("steps");
  const S rate = S(golden.real("sgd_lr"));
  const auto name = [](Index m, const std::string& what) { return "m" + std::to_string(m) + "." + what; };
  std::vector<AdaLoraAdapter<S>> modules;
  std::vector<LowRankGradients<S>> grads;
  for (Index m = 0; m < n; ++m) {
    modules.emplace_back(matrix<S>(inputs, name(m, "A0")), vector<S>(inputs, name(m, "E0")), matrix<S>(inputs, name(m, "B0")));
    grads.emplace_back(modules.back().rank(), modules.back().in(), modules.back().out());
    CHECK(modules.back().rank() == golden.number("init_r"));
    CHECK(golden.json("modules_in_out")[static_cast<std::size_t>(m)] == json{modules.back().in(), modules.back().out()});
  }
  std::vector<AdaLoraAdapter<S>*> pointers;
  for (AdaLoraAdapter<S>& module : modules) pointers.push_back(&module);
  RankAllocator<S> allocator(pointers, {.target_rank = golden.number("target_r"),
                                        .total_steps = golden.number("total_step"),
                                        .initial = golden.number("tinit"),
                                        .final = golden.number("tfinal"),
                                        .every = golden.number("deltaT"),
                                        .as_peft = as_peft,
                                        .importance = {golden.real("beta1"), golden.real("beta2")}});
  const Tensor budget = golden.get("trace.budget"), mask_applied = golden.get("trace.mask_applied");
  for (Index t = 0; t < steps; ++t) {
    INFO("step " << t);
    for (Index m = 0; m < n; ++m) {
      AdaLoraAdapter<S>& module = modules[static_cast<std::size_t>(m)];
      LowRankGradients<S>& g = grads[static_cast<std::size_t>(m)];
      g.down_rows = page<S>(inputs, name(m, "gA"), t);
      g.up_rows = page<S>(inputs, name(m, "gB"), t).transpose();
      g.lambda = page<S>(inputs, name(m, "gE"), t);
      module.each_parameter(g, [&](std::string_view, MatrixRef<S> value, ConstMatrixRef<S> gradient) { value -= rate * gradient; });
      module.refresh();
    }
    allocator.step(grads);
    CHECK(allocator.budget() == budget.ids[static_cast<std::size_t>(t)]);
    CHECK(allocator.masked() == (mask_applied.ids[static_cast<std::size_t>(t)] != 0));
    const double threshold = scalar_at(golden, "trace.threshold", t);
    check_number<S>(allocator.threshold(), threshold, std::abs(threshold));
    for (Index m = 0; m < n; ++m) {
      const Tensor scores = golden.get(name(m, "trace_score")), keep = golden.get(name(m, "trace_keep")),
                   e = golden.get(name(m, "trace_E"));
      for (Index i = 0; i < modules[static_cast<std::size_t>(m)].rank(); ++i) {
        const auto at = static_cast<std::size_t>(i);
        if (allocator.masked()) {
          check_number<S>(allocator.scores(m)[i], scores.row({t})[at], threshold);
          CHECK(allocator.kept(m)[at] == (keep.id_row({t})[at] != 0));
        } else {
          CHECK(std::isnan(scores.row({t})[at]));
        }
        const double ours = double(std::as_const(modules[static_cast<std::size_t>(m)]).lambda()[i]), theirs = e.row({t})[at];
        CHECK((ours == 0) == (theirs == 0));
        CHECK(std::abs(ours - theirs) <= bound<S>);
      }
    }
  }
  for (Index m = 0; m < n; ++m) {
    const LowRankGradients<double>&mean = allocator.mean(m), &spread = allocator.spread(m);
    check_average(golden, name(m, "ema_ipt_A"), mean.down_rows);
    check_average(golden, name(m, "ema_ipt_B"), mean.up_rows.transpose().eval());
    check_average(golden, name(m, "ema_ipt_E"), mean.lambda);
    check_average(golden, name(m, "ema_unc_A"), spread.down_rows);
    check_average(golden, name(m, "ema_unc_B"), spread.up_rows.transpose().eval());
    check_average(golden, name(m, "ema_unc_E"), spread.lambda);
    if (!as_peft) continue;
    const std::vector<Token> pattern = golden.ids(name(m, "final_pattern"));
    const json saved = golden.json("rank_pattern").at("lin" + std::to_string(m) + ".lora_E");
    for (std::size_t i = 0; i < pattern.size(); ++i) {
      CHECK(allocator.kept(m)[i] == (pattern[i] != 0));
      CHECK(saved[i] == allocator.kept(m)[i]);
    }
    const auto& module = modules[static_cast<std::size_t>(m)];
    const AdaLoraAdapter<S> pruned = module.pruned();
    CHECK(pruned.rank() == module.kept());
    CHECK(pruned.scale() == module.scale());
  }
}
void adalora_allocator_loralib(Golden& golden) {
  adalora_allocator_of<double>(golden, golden, false);
  adalora_allocator_of<float>(golden, golden, false);
}
void adalora_allocator_peft(Golden& golden) {
  Golden inputs(golden_folder("lora") / golden.word("inputs_from"));
  adalora_allocator_of<double>(golden, inputs, true);
  adalora_allocator_of<float>(golden, inputs, true);
}

template <class S> void increlora_of(Golden& golden) {
  const Index n = golden.number("n_modules"), steps = golden.number("steps"), add = golden.number("incre_rank_num");
  const S rate = S(golden.real("sgd_lr"));
  const bool advance = golden.word("advance_learn") == "true";
  const auto name = [](Index m, const std::string& what) { return "m" + std::to_string(m) + "." + what; };
  std::vector<IncreLoraAdapter<S>> modules;
  std::vector<LowRankGradients<S>> grads;
  std::vector<Index> reserves(static_cast<std::size_t>(n), 0);
  for (Index m = 0; m < n; ++m) {
    modules.emplace_back(matrix<S>(golden, name(m, "A0")), vector<S>(golden, name(m, "E0")), matrix<S>(golden, name(m, "B0")),
                         IncreLoraOptions{.alpha = golden.real("lora_alpha"), .capacity = 12, .add = add, .advance_learn = advance});
    grads.emplace_back(12, modules.back().in(), modules.back().out());
    CHECK(modules.back().rank() == golden.number("init_r"));
    CHECK(golden.json("modules_in_out")[static_cast<std::size_t>(m)] == json{modules.back().in(), modules.back().out()});
  }
  std::vector<IncreLoraAdapter<S>*> pointers;
  for (IncreLoraAdapter<S>& module : modules) pointers.push_back(&module);
  IncrementalAllocator<S> allocator(pointers, {.target_total = golden.number("target_total_rank"),
                                               .warmup = golden.number("init_warmup"),
                                               .every = golden.number("incre_interval"),
                                               .top = golden.number("top_h"),
                                               .overshoots = true,
                                               .importance = {golden.real("beta1"), golden.real("beta2")}});
  CHECK(golden.number("target_r") * n == golden.number("target_total_rank"));
  const auto reserve = [&](Index m) {
    Index& used = reserves[static_cast<std::size_t>(m)];
    const Matrix<S> a = matrix<S>(golden, name(m, "reserve_A")), b = matrix<S>(golden, name(m, "reserve_B"));
    modules[static_cast<std::size_t>(m)].add_reserve(a.middleRows(used, add), Matrix<S>(b.middleCols(used, add)));
    used += add;
  };
  const Tensor totals = golden.get("trace.total_rank");
  for (Index t = 0; t < steps; ++t) {
    INFO("step " << t);
    const bool scored = !allocator.done();
    std::vector<double> scores;
    for (Index m = 0; m < n; ++m) {
      const auto& module = modules[static_cast<std::size_t>(m)];
      const Matrix<S> x = page<S>(golden, name(m, "X"), t), dy = page<S>(golden, name(m, "G"), t);
      grads[static_cast<std::size_t>(m)].set_zero();
      low_rank_backward<IncreLoraAdapter<S>>(x, module, dy, grads[static_cast<std::size_t>(m)]);
      scores.push_back(increment_score<IncreLoraAdapter<S>>(module, x, dy));
    }
    allocator.step(scores, reserve);
    for (Index m = 0; m < n; ++m) {
      IncreLoraAdapter<S>& module = modules[static_cast<std::size_t>(m)];
      module.each_parameter(grads[static_cast<std::size_t>(m)],
                            [&](std::string_view, MatrixRef<S> value, ConstMatrixRef<S> gradient) { value -= rate * gradient; });
      module.refresh();
      const auto at = static_cast<std::size_t>(m);
      const auto traced = [&](const std::string& what) { return golden.get("trace." + what).row({t})[at]; };
      const double theirs = traced("score");
      if (scored) check_number<S>(scores[at], theirs, std::max(1e-30, std::abs(theirs)));
      check_number<S>(allocator.mean()[m], traced("ema_ipt"), golden.get("trace.ema_ipt").values.maxCoeff());
      check_number<S>(allocator.spread()[m], traced("ema_unc"), golden.get("trace.ema_unc").values.maxCoeff());
      check_number<S>(allocator.importance()[m], traced("importance"), golden.get("trace.importance").values.maxCoeff());
      CHECK(double(module.counted()) == traced("ranknum"));
    }
    CHECK(allocator.total() == totals.ids[static_cast<std::size_t>(t)]);
    const double threshold = scalar_at(golden, "trace.threshold", t);
    check_number<S>(allocator.threshold(), threshold, std::abs(threshold));
  }
  CHECK(allocator.total() == golden.number("final_total_rank"));
  for (Index m = 0; m < n; ++m) {
    const IncreLoraAdapter<S>& module = modules[static_cast<std::size_t>(m)];
    check_as(golden, name(m, "final_A"), Matrix<S>(module.down()));
    check_as(golden, name(m, "final_B"), Matrix<S>(module.up()));
    check_as(golden, name(m, "final_E"), Vector<S>(module.lambda()));
    const LoraLinear alone(Linear<S>(Matrix<S>::Zero(module.out(), module.in())), module);
    check_as(golden, name(m, "final_delta_W"), alone.merged().weight());
  }
}
void increlora(Golden& golden) {
  increlora_of<double>(golden);
  increlora_of<float>(golden);
}

// ------------------------------------------------------------------------------------------------------------ bottlenecks

template <class S, class Act> void bottleneck_case(Golden& golden, const std::string& at, const json& config) {
  const auto norm_of = [&](const std::string& name, double eps) -> std::optional<LayerNorm<S>> {
    if (!golden.has(at + name + ".weight")) return {};
    return LayerNorm<S>(vector<S>(golden, at + name + ".weight"), vector<S>(golden, at + name + ".bias"), S(eps));
  };
  const double own_eps = config.at("adapter_ln_eps");
  HoulsbyWeights<S> weights{linear<S>(golden, at + "down.weight", at + "down.bias"), linear<S>(golden, at + "up.weight", at + "up.bias")};
  weights.scale = config.at("scaling").is_string() ? vector<S>(golden, at + "scaling")
                                                   : Vector<S>::Constant(1, S(config.at("scaling").get<double>())).eval();
  if (config.at("use_gating")) {
    weights.gate = vector<S>(golden, at + "gate.weight");
    weights.gate_bias = vector<S>(golden, at + "gate.bias")[0];
  }
  weights.before = norm_of("norm_before", own_eps);
  weights.after = norm_of("norm_after", own_eps);
  CHECK(weights.before.has_value() == config.at("ln_before"));
  CHECK(weights.after.has_value() == config.at("ln_after"));
  const HoulsbyOptions options{
      .parallel = config.at("is_parallel"),
      .norm_before = config.at("original_ln_before"),
      .norm_after = config.at("original_ln_after"),
      .skip = config.at("residual_before_ln") ? HoulsbySkip::hidden : HoulsbySkip::input,
      .own_norm_over_skip = config.at("adapter_residual_before_ln"),
  };
  const std::map<std::string, HoulsbyOptions> presets{{"seq_bn", HoulsbyOptions::pfeiffer()},
                                                      {"par_bn", HoulsbyOptions::parallel_block()},
                                                      {"adapter_plus", HoulsbyOptions::adapter_plus()}};
  if (const auto preset = presets.find(config.at("preset")); preset != presets.end()) CHECK(preset->second == options);

  const HoulsbyAdapter<S, Act> adapter(weights, options);
  CHECK(adapter.size() == config.at("d"));
  CHECK(adapter.bottleneck() == config.at("bottleneck"));
  CHECK(houlsby_size(adapter.size(), config.at("reduction_factor")) == adapter.bottleneck());
  const std::optional<LayerNorm<S>> norm = norm_of("ln", config.at("model_ln_eps"));
  CHECK(norm.has_value() == config.at("model_layer_norm"));
  const Matrix<S> hidden = matrix<S>(golden, at + "hidden"), residual = matrix<S>(golden, at + "residual_input");
  const Index sequences = golden.get(at + "hidden").extent(0), tokens = hidden.rows() / sequences;
  Matrix<S> y(hidden.rows(), hidden.cols());
  for (Index s = 0; s < sequences; ++s) {  // a gate looks at the whole of a sequence
    const auto h = hidden.middleRows(s * tokens, tokens), u = residual.middleRows(s * tokens, tokens);
    y.middleRows(s * tokens, tokens) = norm ? adapter.forward(h, u, *norm) : adapter.forward(h, u, NoNorm{});
  }
  check_as(golden, at + "y", y);
}
void bottlenecks(Golden& golden) {
  each_case(golden, [&](const std::string& at, const json& config) {
    const auto both = [&](auto activation) {
      bottleneck_case<double, decltype(activation)>(golden, at, config);
      bottleneck_case<float, decltype(activation)>(golden, at, config);
    };
    const std::string f = config.at("non_linearity");
    if (f == "relu") {
      both(Relu{});
    } else if (f == "swish") {
      both(Silu{});
    } else if (f == "gelu") {
      both(Gelu{});
    } else if (f == "tanh") {
      both(Tanh{});
    } else {
      FAIL_CHECK("nobody computes " << f);
    }
  });
}

}  // namespace

TEST_CASE("golden.lora: every file of published adapter code", "[golden]") {
  const std::map<std::string, void (*)(Golden&)> sources{
      {"microsoft/LoRA loralib.Linear", linears},
      {"microsoft/LoRA loralib.MergedLinear, loralib.Embedding", linears},
      {"huggingface/peft tuners.lora.layer.Linear / Embedding", linears},
      {"huawei-noah Efficient-NLP DyLoRA loralib.Linear", dylora},
      {"QingruZhang/AdaLoRA loralib.SVDLinear", adalora_linear},
      {"QingruZhang/AdaLoRA loralib.RankAllocator", adalora_allocator_loralib},
      {"huggingface/peft tuners.adalora RankAllocator via AdaLoraModel.update_and_allocate", adalora_allocator_peft},
      {"FeiyuZhang98/IncreLoRA loralib.SVDLinear + RankAllocator", increlora},
      {"huggingface/peft tuners.lora.dora.DoraLinearLayer via DoraLinearVariant", dora},
      {"huggingface/peft LoraModel with several active adapters", multi_adapter},
      {"huggingface/peft LoraLayer._mixed_batch_forward", mixed_batch},
      {"huggingface/peft LoraModel.add_weighted_adapter", weighted},
      {"huggingface/peft LoraLayer.pissa_init / olora_init / orthogonal_init", svd_init},
      {"adapter-hub/adapters methods.bottleneck.BottleneckLayer (Adapter / ParallelAdapter)", bottlenecks}};
  int compared = 0;
  REQUIRE(fs::is_directory(golden_folder("lora")));
  for (const auto& entry : fs::directory_iterator(golden_folder("lora"))) {
    if (entry.is_regular_file() && entry.path().extension() == ".md") continue;
    if (entry.is_directory() && fs::exists(entry.path() / "adapter_config.json")) continue;
    INFO(entry.path().string());
    if (!entry.is_regular_file() || entry.path().extension() != ".safetensors") {
      FAIL_CHECK("nobody tests it");
      continue;
    }
    Golden golden(entry.path());
    const auto owner = sources.find(golden.word("source"));
    if (owner == sources.end()) {
      FAIL_CHECK("nobody owns what comes from " << golden.word("source"));
      continue;
    }
    owner->second(golden);
    golden.done();
    ++compared;
  }
  std::printf("golden.lora: %d files compared\n", compared);
  CHECK(compared >= 16);
}

}  // namespace golden_lora
