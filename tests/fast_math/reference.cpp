#include "reference.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pith_test {

Numbers softmax_reference(const Numbers& x, double n) {
  double most = n > 0 ? 0 : -infinity(), sum = 0;
  for (const double v : x) most = std::max(most, v);
  Numbers out;
  for (const double v : x) out.push_back(std::exp(v - most)), sum += out.back();
  if (n > 0) sum += n * std::exp(-most);
  for (double& v : out) v /= sum;
  return out;
}

Numbers attention_reference(const Numbers& q, const Numbers& k, const Numbers& v, std::size_t rows) {
  const std::size_t d = q.size();
  Numbers scores(rows), out(d);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t i = 0; i < d; ++i) scores[r] += q[i] * k[r * d + i] / std::sqrt(double(d));
  const Numbers weights = softmax_reference(scores);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t i = 0; i < d; ++i) out[i] += weights[r] * v[r * d + i];
  return out;
}

Numbers rms_norm_reference(const Numbers& x, const Numbers& weight, double eps) {
  double squares = 0;
  for (const double v : x) squares += v * v;
  Numbers out;
  for (std::size_t i = 0; i < x.size(); ++i) out.push_back(weight[i] * x[i] / std::sqrt(squares / double(x.size()) + eps));
  return out;
}

Numbers layer_norm_reference(const Numbers& x, const Numbers& weight, const Numbers& bias, double eps) {
  double mean = 0;
  for (const double v : x) mean += v / double(x.size());
  Numbers centred;
  for (const double v : x) centred.push_back(v - mean);
  Numbers out = rms_norm_reference(centred, weight, eps);
  for (std::size_t i = 0; i < x.size(); ++i) out[i] += bias[i];
  return out;
}

double silu_reference(double z) { return z / (1 + std::exp(-z)); }
double gelu_reference(double z) { return z * std::erfc(-z / std::sqrt(2.)) / 2; }
double gelu_tanh_reference(double z) { return z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + .044715 * z * z * z))) / 2; }
double quick_gelu_reference(double z) { return z / (1 + std::exp(-1.702 * z)); }

bool is_nan(double x) { return std::isnan(x); }
double infinity() { return std::numeric_limits<double>::infinity(); }
double not_a_number() { return std::numeric_limits<double>::quiet_NaN(); }

}  // namespace pith_test
