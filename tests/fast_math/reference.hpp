// Plain loops in double, compiled without -ffast-math: what the kernels under test are compared with.
#pragma once

#include <cstddef>
#include <vector>

namespace pith_test {

using Numbers = std::vector<double>;

/// softmax with n extra keys of logit 0; -inf gives 0.
Numbers softmax_reference(const Numbers& x, double n = 0);
/// softmax(q k / √d) v of one query over `rows` rows.
Numbers attention_reference(const Numbers& q, const Numbers& k, const Numbers& v, std::size_t rows);
Numbers rms_norm_reference(const Numbers& x, const Numbers& weight, double eps);
Numbers layer_norm_reference(const Numbers& x, const Numbers& weight, const Numbers& bias, double eps);

double silu_reference(double z);
double gelu_reference(double z);
double gelu_tanh_reference(double z);
double quick_gelu_reference(double z);

bool is_nan(double x);
double infinity();
double not_a_number();

}  // namespace pith_test
