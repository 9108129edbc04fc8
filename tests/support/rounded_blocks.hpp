#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace pith_test {

/// A block of activations as integers of 15 bits, in plain loops: x ≈ step · q.
struct RoundedBlock {
  explicit RoundedBlock(const std::vector<float>& block) : q(block.size()) {
    float m = 0, odd = 0;
    for (const float v : block) m = std::max(m, std::abs(v)), odd += v - v;
    const bool empty = m < std::ldexp(1.f, -112);
    const volatile float inverse = empty ? 0 : 16319 / m;
    for (std::size_t k = 0; k < q.size(); ++k) {
      const volatile float scaled = odd == 0 ? block[k] * inverse : 0;  // rounded before the half is added
      q[k] = static_cast<long long>(scaled + std::copysign(.5f, block[k]));
      sum += q[k];
    }
    step = odd == 0 ? (empty ? 0 : m / 16319) : odd;
  }
  float step;
  std::vector<long long> q;
  long long sum = 0;
};

}  // namespace pith_test
