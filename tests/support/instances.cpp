#include "instances.hpp"

PITH_TEST_INSTANCES()
