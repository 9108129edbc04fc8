#pragma once

#include <cstddef>
#include <initializer_list>

#include <pith/core/executor.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

namespace pith_test {

/// Checks that a layer's rows have the expected bits in any batch, beside columns that are not its own, and for any number of workers.
template <class Layer>
void check_any_batch(const Layer& layer, const pith::Matrix<float>& x, const pith::Matrix<float>& expected,
                     std::initializer_list<pith::Index> batches, pith::ThreadPool& pool) {
  const pith::Index all = x.rows(), out = expected.cols();
  for (const pith::Index tokens : batches) {
    for (pith::Index first = 0; first + tokens <= all; first += tokens) {
      pith::Matrix<float> wide = pith::Matrix<float>::Constant(tokens, out + 3, 77.f);
      pith::Workspace ws(layer.workspace_bytes(tokens));
      layer.forward(x.middleRows(first, tokens), wide.middleCols(1, out), ws);
      CHECK(same_bits(wide.middleCols(1, out), expected.middleRows(first, tokens)));
      CHECK((wide.col(0).array() == 77.f).all());
      CHECK((wide.rightCols(2).array() == 77.f).all());
    }
  }
  pith::Matrix<float> y(all, out);
  pith::Workspace parallel(layer.workspace_bytes(all, pool.size()), pool);
  layer.forward(x, y, parallel);
  CHECK(same_bits(y, expected));
}

/// The same in passes over many tokens; the workspace that a layer asks for does not shrink with more of them.
template <class Layer> void check_passes(const Layer& layer, const pith::Matrix<float>& x, const pith::Matrix<float>& expected) {
  pith::ThreadPool pool(2);
  CHECK(same_bits(layer.forward(x), expected));
  check_any_batch(layer, x, expected, {}, pool);
  std::size_t last = 0;
  for (pith::Index tokens = 0; tokens < x.rows(); ++tokens) {
    CHECK(layer.workspace_bytes(tokens) >= last);
    last = layer.workspace_bytes(tokens);
  }
}

}  // namespace pith_test
