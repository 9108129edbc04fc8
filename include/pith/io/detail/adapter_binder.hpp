#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/peft_overlay.hpp>
#include <pith/io/detail/peft_single_rows.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/model/decoder.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

// Assigns the modules of a PEFT folder to the places of a decoder.
namespace pith { inline namespace v0 { namespace detail {

/// Where the modules of a folder lie in the model that it was trained on; a plain decoder where none tells.
inline const DecoderPlace& place_in(const PeftFolder& folder) {
  const std::vector<std::string> modules = folder.modules();
  for (const DecoderPlace& place : decoder_places)
    for (const std::string& module : modules)
      if (module.starts_with(place.prefix) || (module == place.head && module != "lm_head")) return place;
  return *std::prev(std::end(decoder_places));
}

/// Assigns every module of a folder to its place in a decoder, and checks that every place named by the config has a module.
template <class S> class AdapterBinder {
 public:
  AdapterBinder(const PeftFolder& folder, const Decoder<S>& decoder, FactorType factors)
      : folder_(folder), decoder_(decoder), factors_(factors), steps_(folder.steps_left()), place_(place_in(folder)) {}

  AdapterParts<S> bind() {
    const PeftConfig& config = folder_.config();
    if (config.type == PeftType::prefix_tuning)
      folder_.refuse("is prefix tuning, which fills caches: start() a session with {.prefix = load_prefix(…)}");
    const DecoderConfig& c = decoder_.config();
    if (config.type == PeftType::prompt_tuning) {
      parts_.prompt = folder_.load_prompt<S>();
      if (parts_.prompt.cols() != c.hidden_size)
        folder_.refuse(text("is a prompt of ", parts_.prompt.cols(), " features, expected the decoder's ", c.hidden_size));
      return std::move(parts_);
    }
    const Family* known = find_family(c.model_type);
    const Family& family = known != nullptr ? *known : families[0];  // decoders made by hand may have any name
    parts_.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
    share(family);
    for (std::size_t l = 0; l < parts_.layers.size(); ++l) {
      const std::string prefix = text(place_.prefix, "layers.", l, ".");
      for (std::size_t n = 0; n < num_norms; ++n)
        if (const Index width = norm_width(c, c.layer(static_cast<Index>(l)), NormPlace(n)); width > 0 && family.norms[n] != nullptr)
          norm(prefix + family.norms[n], width, parts_.layers[l].norms[n]);
      for_each_module(family, [&](const LayerModule& module) { projections(prefix + module.name, l, module); });
    }
    norm(text(place_.prefix, "norm"), c.hidden_size, parts_.norm);
    invocation();
    table();
    head();
    for (const std::string& module : folder_.modules())
      if (!bound_.contains(module)) folder_.refuse(text("changes module ", in_quotes(module), ", which the decoder does not have"));
    return std::move(parts_);
  }

 private:
  bool found(const std::string& module) { return folder_.contains(module) && bound_.insert(module).second; }

  /// The tensors of a module, empty if the folder has none, after everything that the config promises of it was found.
  PeftModule<S> promised(const std::string& module, const AnyLinear<S>& base) {
    const PeftConfig& config = folder_.config();
    const bool there = found(module), wanted = config.targets.said && config.targets.match(module, steps_);
    const bool bias_wanted = config.bias == PeftBias::all || (config.bias == PeftBias::lora_only && wanted);
    PeftModule<S> tensors = there ? folder_.load<S>(module, factors_) : PeftModule<S>();
    if (wanted && tensors.out() == 0 && !folder_.has_kind(module))
      folder_.refuse(text("holds no ", config.kind != nullptr ? std::string(config.kind->endings()[0]) : std::string("lora_A"),
                          " of module ", in_quotes(module), ", which its target_modules name"));
    if (folder_.adapts_table(module))
      folder_.refuse(text("adapts module ", in_quotes(module), " as a table of embeddings, which it is not"));
    if (bias_wanted && base.bias().size() > 0 && tensors.bias.size() == 0)
      folder_.refuse(text("holds no bias of module ", in_quotes(module), ", which its bias mode promises"));
    return tensors;
  }

  void projection(const std::string& module, const AnyLinear<S>& base, LinearAdapter<S>& to) {
    PeftModule<S> tensors = promised(module, base);
    if (!folder_.contains(module)) return;
    if (folder_.has_kind(module)) {
      to = kind_overlay<S>(folder_, module, {.base = base, .module_out = base.out(), .shared = shared_});
      return;
    }
    check_module<S>(folder_, module, tensors, base.out(), base.in(), bias_under(tensors, base));
    LinearAdapter<S> made = overlay_of(std::move(tensors), base);
    made.more = std::move(to.more);  // single rows of the head
    to = std::move(made);
  }

  /// A module of a layer. Its outputs are those of its projections, one after the other.
  void projections(const std::string& name, std::size_t layer, const LayerModule& module) {
    const LayerWeights<S>& weights = decoder_.weights().layers[layer];
    const auto base = [&](std::size_t i) -> const AnyLinear<S>& { return projection_of(weights, module[i]); };
    LayerAdapter<S>& to = parts_.layers[layer];
    if (module.count == 1) return projection(name, base(0), to[module.first]);
    const PeftModule<S> tensors = promised(name, base(0));
    if (!folder_.contains(name)) return;
    Index out = 0, bias = 0;
    for (std::size_t i = 0; i < module.count; ++i) out += base(i).out(), bias += bias_under(tensors, base(i));
    Index first = 0;
    if (folder_.has_kind(name)) {
      for (std::size_t i = 0; i < module.count; first += base(i++).out())
        to[module[i]] = kind_overlay<S>(folder_, name, {.base = base(i), .first = first, .module_out = out, .shared = shared_});
      return;
    }
    check_module<S>(folder_, name, tensors, out, base(0).in(), bias);
    for (std::size_t i = 0; i < module.count; ++i) {
      to[module[i]] = overlay_of(rows_of(tensors, first, base(i).out()), base(i));
      first += base(i).out();
    }
  }

  PeftModule<S> whole(const std::string& module, Index rows, Index cols) const {
    PeftModule<S> tensors = folder_.load<S>(module);
    if (tensors.weight.rows() != rows || tensors.weight.cols() != cols || tensors.bias.size() > 0)
      folder_.refuse(text("replaces module ", in_quotes(module), " by ", shape_text(tensors.weight.rows(), tensors.weight.cols()),
                          tensors.bias.size() > 0 ? " with a bias" : "", ", expected ", shape_text(rows, cols),
                          " without one by the decoder"));
    return tensors;
  }

  void norm(const std::string& module, Index width, AnyNorm<S>& to) {
    const DecoderConfig& c = decoder_.config();
    if (!found(module)) {
      if (folder_.config().type == PeftType::ln_tuning && folder_.config().targets.match(module, steps_))
        folder_.refuse(text("holds no weight of module ", in_quotes(module), ", which its target_modules name"));
      return;
    }
    Vector<S> weight = whole(module, width, 1).weight.col(0);
    if (c.norm_plus_one) weight.array() += S(1);
    to = AnyNorm<S>(c.norm, std::move(weight), S(c.norm_eps));
  }

  /// Reads what all modules share, for the largest of them.
  void share(const Family& family) {
    if (folder_.config().kind == nullptr) return;
    Index most_in = 0, most_out = 0;
    const auto see = [&](const std::string& module, Index out, Index in) {
      if (folder_.has_kind(module)) most_in = (std::max)(most_in, in), most_out = (std::max)(most_out, out);
    };
    for (std::size_t l = 0; l < parts_.layers.size(); ++l)
      for_each_module(family, [&](const LayerModule& module) {
        const LayerWeights<S>& weights = decoder_.weights().layers[l];
        Index out = 0;
        for (std::size_t i = 0; i < module.count; ++i) out += projection_of(weights, module[i]).out();
        see(text(place_.prefix, "layers.", l, ".", module.name), out, projection_of(weights, module[0]).in());
      });
    see(head_, decoder_.weights().lm_head.out(), decoder_.weights().lm_head.in());
    shared_ = kind_shared<S>(*folder_.config().kind, folder_.file(), folder_.shared_tensors(), most_in, most_out);
  }

  void invocation() {
    for (const Token id : folder_.config().invocation)
      if (id >= decoder_.config().vocab_size)
        folder_.refuse(text("is invoked by token ", id, ", expected tokens of the decoder's vocabulary of ", decoder_.config().vocab_size));
    parts_.invocation = folder_.config().invocation;
  }

  /// Throws   FormatError for a whole table or head of other numbers than the base's that nothing in the config asks for
  void check_named(const std::string& module, const PeftModule<S>& tensors, bool same) const {
    if (tensors.unnamed && !same)
      folder_.refuse(
          text("holds a whole weight of module ", in_quotes(module),
               " with other numbers than the base's, which modules_to_save does not name: train it again with modules_to_save, or "
               "save it with save_embedding_layers=False if the base is as it was"));
  }

  void table() {
    const DecoderConfig& c = decoder_.config();
    const PeftConfig& config = folder_.config();
    const bool wanted =
        config.targets.said && !config.targets.all_linear && config.type == PeftType::lora && config.targets.match(table_, steps_);
    if (wanted && !folder_.adapts_table(table_))
      folder_.refuse(text("holds no lora_embedding_A of module ", in_quotes(table_), ", which its target_modules name"));
    if (!found(table_)) return;
    PeftModule<S> tensors = folder_.load<S>(table_);
    std::tie(parts_.embedding.ids, parts_.embedding.rows) = single_rows<S>(folder_, table_, tensors, c.vocab_size, c.hidden_size);
    if (tensors.up.rows() > 0) {
      if (!folder_.adapts_table(table_) || tensors.down.cols() != c.vocab_size || tensors.up.rows() != c.hidden_size)
        folder_.refuse(text("adapts module ", in_quotes(table_), " as ", shape_text(tensors.down.cols(), tensors.up.rows()), ", expected ",
                            shape_text(c.vocab_size, c.hidden_size), " by the decoder, in lora_embedding_A and lora_embedding_B"));
      parts_.embedding.token_rows = tensors.down.transpose();
      parts_.embedding.up_rows = tensors.gain.asDiagonal() * tensors.up.transpose();
    }
    Matrix<S>& along = tensors.base_weight;
    if (along.size() == 0) {
      if (tensors.weight.size() > 0) parts_.embed_tokens = Embedding<S>(whole(table_, c.vocab_size, c.hidden_size).weight);
      return;
    }
    check_saved_along<S>(folder_, table_, along, c.vocab_size, c.hidden_size);
    const bool same = same_rows<S>(along, [&](Index first, MatrixRef<S> rows) { decoder_.weights().embed_tokens.copy_rows(first, rows); });
    check_named(table_, tensors, same);
    if (!same) parts_.embed_tokens = Embedding<S>(std::move(along));
  }

  /// In a tied base, PEFT treats table and head as one parameter: a saved copy of one is a copy of both, and ensure_weight_tying also ties
  /// their replacements.
  void head() {
    const AnyLinear<S>& base = decoder_.weights().lm_head;
    const bool tied_base = decoder_.config().tie_word_embeddings;
    const PeftModule<S> rows = folder_.contains(head_) ? folder_.load<S>(head_) : PeftModule<S>();
    if (auto change = single_rows_of_head<S>(folder_, head_, table_, rows, base, tied_base, parts_.embedding))
      parts_.lm_head.more.push_back(std::move(change));
    if (!tied_base) {
      if (folder_.contains(head_))
        if (const PeftModule<S> tensors = folder_.load<S>(head_); tensors.unnamed && tensors.base_weight.cols() == base.in())
          check_named(head_, tensors, tensors.base_weight.rows() != base.out() || same_as_base(tensors, base));
      return projection(head_, base, parts_.lm_head);
    }
    const auto load = [&](const std::string& module) { return folder_.contains(module) ? folder_.load<S>(module) : PeftModule<S>(); };
    const PeftModule<S> of_table = load(table_), of_head = load(head_);
    const Matrix<S>&table_along = of_table.base_weight, &head_along = of_head.base_weight;
    if (table_along.size() > 0 && head_along.size() > 0 && !(table_along.rows() == head_along.rows() && table_along == head_along))
      folder_.refuse(text("saves other numbers of ", in_quotes(head_), " along than of ", in_quotes(table_), ", which the decoder ties"));

    const bool follows = table_along.size() > 0
                             ? parts_.embed_tokens.rows() > 0
                             : folder_.config().ensure_weight_tying && of_table.weight.size() > 0 && head_along.size() == 0;
    if (head_along.rows() == base.out() && head_along.cols() == base.in())
      check_named(head_, of_head, (table_along.size() > 0 && !of_table.unnamed) || same_as_base(of_head, base));
    AnyLinear<S> tied;
    if (follows && of_head.weight.size() == 0)
      tied = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(table_along.size() > 0 ? table_along : of_table.weight), Vector<S>()));
    projection(head_, tied.empty() ? base : tied, parts_.lm_head);
    const bool replaced = !parts_.lm_head.replacement.empty();
    if (!tied.empty() && !replaced) parts_.lm_head.replacement = std::move(tied);
    if (replaced && head_along.size() > 0 && !folder_.contains(table_)) parts_.embed_tokens = Embedding<S>(head_along);
  }

  static bool same_as_base(const PeftModule<S>& tensors, const AnyLinear<S>& base) {
    return same_rows<S>(tensors.base_weight, [&](Index first, MatrixRef<S> rows) { base.copy_weight(first, rows); });
  }

  const PeftFolder& folder_;
  const Decoder<S>& decoder_;
  FactorType factors_;
  AdapterParts<S> parts_;
  std::set<std::string> bound_;
  KindShared<S> shared_;
  std::size_t steps_;
  const DecoderPlace& place_;
  const std::string table_ = text(place_.prefix, "embed_tokens"), head_ = place_.head;
};

}}}  // namespace pith::v0::detail
