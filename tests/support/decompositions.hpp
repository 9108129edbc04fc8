#pragma once

#include <Eigen/SVD>

// Eigen's decomposition takes longer to compile than any test that uses it: it is compiled once for all of them.
extern template class Eigen::BDCSVD<Eigen::MatrixXd>;
