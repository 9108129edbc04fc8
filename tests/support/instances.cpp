#include "instances.hpp"

namespace pith {

template class Session<float, bfloat16>;
template class Session<float, Q8>;

}  // namespace pith
