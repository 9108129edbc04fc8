#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/divprune.hpp>
#include <pith/merge/mass_weighted.hpp>
#include <pith/merge/prumerge.hpp>
#include <pith/merge/token_map.hpp>
#include <pith/merge/tome.hpp>
#include <pith/merge/top_rows.hpp>
#include <pith/merge/visionzip.hpp>
#include <pith/vision/detail/spatial_rows.hpp>
#include <pith/vision/image_rows.hpp>
#include <pith/vision/vision_model.hpp>

// Which rows of an image are left, and what becomes of the others.
namespace pith { inline namespace v0 { namespace detail {

/// The reductions of one image.
template <class S> struct RowChoice {
  const Vision<S>& vision;
  const ImageTiles& tiles;
  const ImageFeatures<S>& seen;
  Workspace& ws;

  ImageRows<S> tome(Index keep, bool by_rows, bool masses) const {
    if (!by_rows) need(seen.key_mean.rows(), "keys");
    ImageRows<S> all = work_rows();
    const std::vector<std::int32_t> tokens = candidates(all);
    Matrix<S> rows = chosen(all.rows, tokens), keys = by_rows ? rows : chosen(vision.per_row(tiles, seen.key_mean), tokens);
    Vector<S> mass = Vector<S>::Ones(rows.rows());
    const Index n = rows.rows(), workers = ws.workers();
    std::vector<std::int32_t> row_of(static_cast<std::size_t>(n)), token_of(row_of);
    std::iota(row_of.begin(), row_of.end(), 0);
    std::iota(token_of.begin(), token_of.end(), 0);
    Workspace own(token_match_workspace_bytes<S>(n, keys.cols(), workers) + 2 * TokenMap<S>::workspace_bytes(n), ws.executor());
    TokenMap<S> map(n);
    while (rows.rows() > keep) {
      match_bipartite<S>(keys, {.r = rows.rows() - keep}, map, own);
      if (map.merged() == 0) break;  // numbers that are none: nothing is similar
      Matrix<S> fewer(map.rows(), rows.cols()), fewer_keys(map.rows(), keys.cols());
      Vector<S> after(map.rows());
      map.merge(rows, fewer, MassWeighted{}, own, {mass, after});
      map.merge(keys, fewer_keys, MassWeighted{}, own, {mass, {}});
      map.follow(row_of);
      std::vector<std::int32_t> stay;
      for (const std::int32_t row : map.token_of()) stay.push_back(token_of[static_cast<std::size_t>(row)]);
      rows = std::move(fewer), keys = std::move(fewer_keys), mass = std::move(after), token_of = std::move(stay);
    }
    ImageRows<S> out = assembled(all, tokens, rows, row_of, token_of);
    if (masses) {
      out.masses = Vector<S>::Ones(out.rows.rows());  // newlines stand for themselves
      for (std::size_t t = 0; t < token_of.size(); ++t)
        out.masses[place_of(out, tokens[static_cast<std::size_t>(token_of[t])])] = mass[static_cast<Index>(t)];
    }
    return out;
  }

  /// Throws   UnsupportedError where merging inside the tower leaves no fewer rows
  static void check_in_tower(const Vision<S>& vision) {
    if (!patches_have_rows(vision))
      raise<UnsupportedError>("pith::reduce_image: tome-tower needs a row for each patch, which ", vision.spec.model_type,
                              " has not: use tome, visionzip or divprune; TapOptions::merge saves the tower's time");
  }
  /// The rows that the tower left of each tile.
  ImageRows<S> merged_in_tower(bool masses) const {
    check_in_tower(vision);
    if (seen.merged_into.empty()) return vision.project(tiles, seen, ws);
    const Index first = vision.spec.drop_first ? 1 : 0, n = vision.tower.config().tokens();
    if (static_cast<Index>(seen.merged_into.size()) != seen.tiles * n)
      raise<ShapeError>("pith::reduce_image: merged_into of ", seen.merged_into.size(), " tokens, expected ", seen.tiles * n);
    ImageRows<S> out{.rows = Matrix<S>(), .runs = {}};
    Matrix<S> rows(seen.tiles * n, seen.features.cols());
    Vector<S> counts = Vector<S>::Zero(rows.rows());
    Index row = 0;
    std::vector<std::int32_t> number(static_cast<std::size_t>(n));
    for (Index t = 0; t < seen.tiles; ++t) {
      const std::int32_t* const into = seen.merged_into.data() + t * n;
      std::fill(number.begin(), number.end(), -1);
      for (Index i = first; i < n; ++i) number[static_cast<std::size_t>(into[i])] = 0;  // without a token that is dropped
      std::int32_t rows_of_tile = 0;
      for (std::int32_t& one : number)
        if (one == 0) one = rows_of_tile++;
      for (Index i = first; i < n; ++i) {
        const std::int32_t to = number[static_cast<std::size_t>(into[i])];
        rows.row(row + to) = seen.features.row(t * n + i);
        counts[row + to] += 1;
        out.row_of.push_back(to);
      }
      out.runs.push_back({n - first, rows_of_tile});
      row += rows_of_tile;
    }
    out.rows = projected(Matrix<S>(rows.topRows(row))).rows;
    if (masses) out.masses = counts.head(row);
    return out;
  }

  /// `plus`: as many by attention as leave room for those at equal distances.
  ImageRows<S> prumerge(Index keep, Index neighbours, bool plus) const {
    if (!vision.tower.config().class_token || !before_projector() || seen.tiles != 1)
      raise<UnsupportedError>("pith::reduce_image: ", plus ? "prumerge+" : "prumerge",
                              " needs a tower with a class token and a row for each patch, which ", vision.spec.model_type,
                              " has not: use visionzip, tome or divprune");
    need(seen.last_keys.rows(), "keys of the last layer");
    const VisionConfig& c = vision.tower.config();
    const Index patches = c.patches(), features = c.feature_size();
    if (keep >= patches) return vision.project(tiles, seen, ws);
    const Index kept = (std::max)(Index(1), keep - 1), workers = ws.workers();
    Workspace own(prumerge_workspace_bytes<S>(patches, kept, c.hidden_size, workers) + Workspace::bytes_for<S>(patches + 1) +
                      top_rows_workspace_bytes(patches),
                  ws.executor());
    Vector<S> attention(patches);
    class_attention<S>(ConstVectorRef<S>(seen.last_class_query.data(), c.hidden_size), seen.last_keys, VectorRef<S>(attention), own);
    std::vector<std::int32_t> best(static_cast<std::size_t>(kept));
    top_rows<S>(ConstVectorRef<S>(attention), best, own);
    if (plus) best = with_spatial_rows(best, patches);
    Matrix<S> rows(kept + 1, features);
    const ConstMatrixRef<S> all(seen.features), keys(seen.last_keys);
    pith::prumerge<S>({all.bottomRows(patches), keys.bottomRows(patches), attention}, best, neighbours, rows, own);
    ImageRows<S> out = projected(rows);
    const Index first = vision.spec.drop_first ? 0 : 1;  // a class token that is an image token is dropped
    out.row_of.assign(static_cast<std::size_t>(patches + first), static_cast<std::int32_t>(kept));
    if (first > 0) out.row_of.front() = -1;
    for (std::size_t r = 0; r < best.size(); ++r) out.row_of[static_cast<std::size_t>(best[r] + first)] = static_cast<std::int32_t>(r);
    out.runs = {{patches + first, rows.rows()}};
    return out;
  }

  ImageRows<S> visionzip(Index keep, Index contextual) const {
    need(seen.key_mean.rows(), "keys and attention");
    const bool of_class = vision.tower.config().class_token && before_projector() && seen.tiles == 1;
    if (of_class) return visionzip_of_class(keep, contextual);
    ImageRows<S> all = work_rows();
    const std::vector<std::int32_t> tokens = candidates(all);
    const Index n = static_cast<Index>(tokens.size());
    if (keep >= n) return vision.project(tiles, seen, ws);
    // The rule's token 0 is the class token, which stays: here a row of zeros that is taken away again.
    const auto behind_none = [&](const Matrix<S>& of_tokens) {
      Matrix<S> out(n + 1, of_tokens.cols());
      out.row(0).setZero();
      out.bottomRows(n) = chosen(of_tokens, tokens);
      return out;
    };
    const Matrix<S> rows = behind_none(all.rows), keys = behind_none(vision.per_row(tiles, seen.key_mean));
    const Matrix<S> attention = behind_none(vision.per_row(tiles, Matrix<S>(seen.attention_received))).transpose();
    TokenMap<S> map(n + 1);
    const Matrix<S> merged = zipped(attention, keys, rows, options_for(keep, contextual, 0, RowOrder::spatial), map);
    std::vector<std::int32_t> row_of, token_of;
    for (const std::int32_t row : map.row_of().subspan(1)) row_of.push_back(row < 0 ? -1 : row - 1);
    for (const std::int32_t token : map.token_of().subspan(1)) token_of.push_back(token - 1);
    return assembled(all, tokens, Matrix<S>(merged.bottomRows(merged.rows() - 1)), row_of, token_of);
  }

  ImageRows<S> divprune(Index keep) const {
    const ImageRows<S> all = vision.project(tiles, seen, ws);
    const std::vector<std::int32_t> tokens = candidates(all);
    const Index n = static_cast<Index>(tokens.size());
    if (keep >= n) return all;
    const Matrix<S> rows = chosen(all.rows, tokens);
    std::vector<std::int32_t> picked(static_cast<std::size_t>(keep)), row_of(static_cast<std::size_t>(n), -1);
    Workspace own(diverse_workspace_bytes<S>(n, rows.cols(), ws.workers()), ws.executor());
    pick_diverse<S>(rows, picked, own);
    std::sort(picked.begin(), picked.end());
    for (std::size_t r = 0; r < picked.size(); ++r) row_of[static_cast<std::size_t>(picked[r])] = static_cast<std::int32_t>(r);
    return assembled(all, tokens, chosen(rows, picked), row_of, picked, false);
  }

 private:
  static bool patches_have_rows(const Vision<S>& v) { return v.projector.block() == 1 && v.recipe.tiles != TileRule::pinpoints; }
  /// Whether reductions work on features, one for each image token.
  bool before_projector() const { return patches_have_rows(vision); }

  static void need(Index rows, const char* what) {
    if (rows == 0) raise<ShapeError>("pith::reduce_image: the features come without ", what, ": look() with taps_for(reduction)");
  }

  /// The rows that a reduction works on: features where each image token has one, else projected rows.
  ImageRows<S> work_rows() const {
    if (!before_projector()) return vision.project(tiles, seen, ws);
    const Index first = vision.spec.drop_first ? 1 : 0, n = vision.tower.config().tokens(), each = n - first;
    ImageRows<S> out{.rows = Matrix<S>(seen.tiles * each, seen.features.cols()), .runs = {}};
    for (Index t = 0; t < seen.tiles; ++t) out.rows.middleRows(t * each, each) = seen.features.middleRows(t * n + first, each);
    out.runs.assign(static_cast<std::size_t>(seen.tiles), {each, each});
    return out;
  }

  /// The tokens that may leave: all but newlines.
  static std::vector<std::int32_t> candidates(const ImageRows<S>& all) {
    std::vector<std::int32_t> out(static_cast<std::size_t>(all.rows.rows()));
    std::iota(out.begin(), out.end(), 0);
    for (auto newline = all.newlines.rbegin(); newline != all.newlines.rend(); ++newline) out.erase(out.begin() + *newline);
    return out;
  }
  static Matrix<S> chosen(const Matrix<S>& rows, std::span<const std::int32_t> which) {
    Matrix<S> out(static_cast<Index>(which.size()), rows.cols());
    for (std::size_t i = 0; i < which.size(); ++i) out.row(static_cast<Index>(i)) = rows.row(which[i]);
    return out;
  }
  ImageRows<S> projected(const Matrix<S>& rows) const {
    ImageRows<S> out{.rows = Matrix<S>(rows.rows(), vision.projector.out()), .runs = {}};
    vision.projector.forward_each(rows, out.rows, ws);
    return out;
  }

  /// Assembles the rows that are left, in the order of their tokens: candidate token_of[r] stayed in row r, candidate t became part of
  /// row row_of[t]. Newlines stay with their lines.
  ImageRows<S> assembled(const ImageRows<S>& all, const std::vector<std::int32_t>& tokens, const Matrix<S>& rows,
                         const std::vector<std::int32_t>& row_of, const std::vector<std::int32_t>& token_of, bool features = true) const {
    const Matrix<S> given = features && before_projector() ? projected(rows).rows : rows;
    const std::size_t n = static_cast<std::size_t>(all.rows.rows());
    std::vector<std::int32_t> row_at(n, -1), becomes(n, -1);  // the row that stayed at a token; the row a token became part of
    std::vector<char> line_stays(all.newlines.size(), 0);
    for (std::size_t r = 0; r < token_of.size(); ++r) {
      const auto token = static_cast<std::size_t>(tokens[static_cast<std::size_t>(token_of[r])]);
      row_at[token] = static_cast<std::int32_t>(r);
      if (!all.lines.empty() && all.lines[token] >= 0) line_stays[static_cast<std::size_t>(all.lines[token])] = 1;
    }
    for (std::size_t t = 0; t < tokens.size(); ++t) becomes[static_cast<std::size_t>(tokens[t])] = row_of[t];
    Index newlines = 0;
    for (const char stays : line_stays) newlines += stays;
    ImageRows<S> out{.rows = Matrix<S>(given.rows() + newlines, given.cols()), .runs = all.runs};
    out.row_of.assign(n, -1);
    std::vector<std::int32_t> new_row(static_cast<std::size_t>(given.rows()), -1), run_of_row(new_row);
    Index row = 0, first_row = 0;
    std::size_t token = 0;
    for (std::size_t run = 0; run < all.runs.size(); ++run, first_row = row) {
      for (const std::size_t end = token + static_cast<std::size_t>(all.runs[run].tokens); token < end; ++token) {
        const bool newline = !all.lines.empty() && all.lines[token] >= 0 &&
                             all.newlines[static_cast<std::size_t>(all.lines[token])] == static_cast<Index>(token);
        if (newline && line_stays[static_cast<std::size_t>(all.lines[token])] != 0) {
          out.row_of[token] = static_cast<std::int32_t>(row - first_row);
          out.rows.row(row++) = all.rows.row(static_cast<Index>(token));
        } else if (row_at[token] >= 0) {
          const auto old = static_cast<std::size_t>(row_at[token]);
          new_row[old] = static_cast<std::int32_t>(row - first_row);
          run_of_row[old] = static_cast<std::int32_t>(run);
          out.rows.row(row++) = given.row(static_cast<Index>(old));
        }
      }
      out.runs[run].rows = row - first_row;
    }
    token = 0;
    for (std::size_t run = 0; run < all.runs.size(); ++run)
      for (const std::size_t end = token + static_cast<std::size_t>(all.runs[run].tokens); token < end; ++token)
        if (const std::int32_t old = becomes[token];
            old >= 0 && run_of_row[static_cast<std::size_t>(old)] == static_cast<std::int32_t>(run))
          out.row_of[token] = new_row[static_cast<std::size_t>(old)];  // -1 where it became part of another run's row
    return out;
  }
  /// The row of a token that stayed.
  static Index place_of(const ImageRows<S>& out, std::int32_t token) {
    Index first_token = 0, first_row = 0;
    for (const auto& run : out.runs) {
      if (token < first_token + run.tokens) break;
      first_token += run.tokens, first_row += run.rows;
    }
    return first_row + out.row_of[static_cast<std::size_t>(token)];
  }

  /// `with_class`: 1 if the class token is one of the rows kept.
  static VisionZipOptions options_for(Index keep, Index contextual, Index with_class, RowOrder order) {
    const Index most = (std::max)(Index(0), keep - with_class - 1);
    const Index merged = contextual >= 0 ? contextual : static_cast<Index>(std::lround(static_cast<double>(keep) * 10 / 64));
    const Index targets = std::clamp(merged, Index(0), most);
    return {.dominant = (std::max)(Index(0), keep - with_class - targets), .contextual = targets, .order = order};
  }
  Matrix<S> zipped(const Matrix<S>& attention, const Matrix<S>& keys, const Matrix<S>& rows, const VisionZipOptions& options,
                   TokenMap<S>& map) const {
    Workspace own(visionzip_workspace_bytes<S>(rows.rows(), keys.cols(), ws.workers()) + TokenMap<S>::workspace_bytes(rows.rows()),
                  ws.executor());
    match_visionzip<S>(attention, keys, options, map, own);
    Matrix<S> out(map.rows(), rows.cols());
    map.merge(rows, out, TargetPlusMean{}, own);
    return out;
  }
  ImageRows<S> visionzip_of_class(Index keep, Index contextual) const {
    const VisionConfig& c = vision.tower.config();
    if (keep >= c.tokens()) return vision.project(tiles, seen, ws);
    TokenMap<S> map(c.tokens());
    ImageRows<S> out =
        projected(zipped(seen.class_attention, seen.key_mean, seen.features, options_for(keep, contextual, 1, RowOrder::published), map));
    const Index first = vision.spec.drop_first ? 1 : 0;
    out.row_of.assign(map.row_of().begin() + first, map.row_of().end());
    out.runs = {{c.tokens() - first, out.rows.rows()}};
    return out;
  }
};

}}}  // namespace pith::v0::detail
