#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/peft_tokens.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_folder.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/embedding_change.hpp>
#include <pith/peft/replaced_rows.hpp>

// Trained rows of single tokens, in the table of embeddings and in the head.
namespace pith { inline namespace v0 { namespace detail {

/// The rows of single tokens that a module replaces; none: empty.
template <class S>
std::pair<std::vector<Token>, Matrix<S>> single_rows(const PeftFolder& folder, const std::string& module, const PeftModule<S>& tensors,
                                                     Index vocabulary, Index features) {
  if (tensors.token_rows.rows() == 0) return {};
  const std::vector<Token>& ids = folder.token_ids(module);
  for (const Token id : ids)
    if (id >= vocabulary)
      folder.refuse(text("replaces the row of token ", id, " of module ", in_quotes(module),
                         ", expected tokens of the decoder's vocabulary of ", vocabulary));
  if (tensors.token_rows.cols() != features)
    folder.refuse(text("replaces rows of module ", in_quotes(module), " by ", tensors.token_rows.cols(), " numbers each, expected ",
                       features, " by the decoder"));
  return {ids, tensors.token_rows};
}

/// Single rows of the head: its own, or in a tied base those of the table, which may be stored twice; nullptr: none.
template <class S>
std::shared_ptr<const ReplacedRows<S>> single_rows_of_head(const PeftFolder& folder, const std::string& head, const std::string& table,
                                                           const PeftModule<S>& tensors, const AnyLinear<S>& base, bool tied,
                                                           const EmbeddingChange<S>& of_table) {
  auto [ids, rows] = single_rows<S>(folder, head, tensors, base.out(), base.in());
  if (tied && !of_table.ids.empty()) {
    if (ids.empty())
      ids = of_table.ids, rows = of_table.rows;
    else if (ids == of_table.ids && rows != of_table.rows)
      folder.refuse(text("replaces rows of ", in_quotes(head), " by other numbers than of ", in_quotes(table), ", which the decoder ties"));
  }
  bool named = false;
  for (const PeftTokenRows& wanted : folder.config().token_rows)
    if (ends_in_module(head, wanted.module)) {
      named = true;
      if (ids != wanted.ids) folder.refuse(text("holds no rows of single tokens of module ", in_quotes(head)));
    }
  if (ids.empty()) return {};
  if (!named && !tied)
    folder.refuse(text("replaces rows of ", in_quotes(head), ", which the config does not name and the decoder does not tie"));
  Vector<S> bias;
  if (const ConstVectorRef<S> all = base.bias(); all.size() > 0) {
    bias.resize(static_cast<Index>(ids.size()));
    for (std::size_t i = 0; i < ids.size(); ++i) bias[static_cast<Index>(i)] = all[ids[i]];
  }
  return std::make_shared<const ReplacedRows<S>>(base.out(), std::move(ids), std::move(rows), std::move(bias));
}

}}}  // namespace pith::v0::detail
