#include "decompositions.hpp"

template class Eigen::BDCSVD<Eigen::MatrixXd>;
