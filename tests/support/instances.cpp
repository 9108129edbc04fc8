#include "instances.hpp"

namespace pith {

template class Session<float, bfloat16>;
template class Session<float, Q8>;
template class Session<float, Kv<Q8, Rotated<Q4>>>;

}  // namespace pith
