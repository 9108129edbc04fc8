#include <limits>

#include <pith/attention/kv_view.hpp>
#include <pith/attention/shape.hpp>

#include "support/catch.hpp"

using namespace pith;

static_assert(PlainStorage<float> && PlainStorage<double> && PlainStorage<bfloat16> && PlainStorage<half> && !PlainStorage<int>);
static_assert(KvStorage<half> && !KvStorage<long double>);

TEST_CASE("an attention shape says how many query heads share a kv head", "[attention]") {
  CHECK(AttentionShape{32, 8, 64}.group() == 4);
  CHECK(AttentionShape{8, 8, 64}.group() == 1);
  CHECK(AttentionShape{8, 1, 64}.group() == 8);
  CHECK(AttentionShape{8, 1, 64} == AttentionShape{8, 1, 64});
  CHECK_FALSE(AttentionShape{8, 1, 64} == AttentionShape{8, 2, 64});
}

TEST_CASE("an attention shape that makes no sense is refused with its numbers", "[attention]") {
  CHECK_NOTHROW((AttentionShape{6, 2, 12}.check("here")));
  for (const AttentionShape& shape : {AttentionShape{}, AttentionShape{-4, 2, 8}, AttentionShape{4, 0, 8}, AttentionShape{4, 2, 0}})
    CHECK_THROWS_AS(shape.check("here"), ShapeError);
  CHECK_THROWS_AS((AttentionShape{4, 3, 8}.check("here")), ShapeError);
  CHECK_THROWS_AS((AttentionShape{2, 4, 8}.check("here")), ShapeError);
  CHECK_THROWS_WITH((AttentionShape{4, 3, 8}.check("here")), pith_test::contains("pith::here: num_kv_heads is 3, expected a divisor"));
  constexpr Index huge = std::numeric_limits<Index>::max() / 2;
  CHECK_THROWS_AS((AttentionShape{huge, huge, 8}.check("here")), CapacityError);
}
