#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace pith_test {

/// The list with everything taken out that the failure does not need: runs of half its length first, single ones last, until no single
/// one can go. `fails(list)` must hold of the list given and of the one returned; any sublist must be something it can judge.
template <class Op, class Fails> std::vector<Op> shrunk(std::vector<Op> list, Fails&& fails) {
  for (std::size_t part = std::max<std::size_t>(1, list.size() / 2);;) {
    bool removed = false;
    for (std::size_t at = 0; at < list.size();) {
      std::vector<Op> fewer(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(at));
      fewer.insert(fewer.end(), list.begin() + static_cast<std::ptrdiff_t>(std::min(at + part, list.size())), list.end());
      if (fails(std::as_const(fewer))) {
        list = std::move(fewer);
        removed = true;
      } else {
        at += part;
      }
    }
    if (part == 1 && !removed) return list;
    part = std::max<std::size_t>(1, part / 2);
  }
}

}  // namespace pith_test
