// A tower and a projector allocate nothing, counted at malloc.
#include <pith/core/executor.hpp>
#include <pith/vision.hpp>

#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_vision.hpp"

using namespace pith;

TEST_CASE("towers and projectors touch no heap", "[hot_path]") {
  ThreadPool pool(3);
  for (const char* kind : {"llava", "siglip", "smolvlm", "gemma3"})
    for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(pool)}) {
      INFO(kind << ", " << executor.size() << " workers");
      const Vision<float> vision = pith_test::tiny_vision<float>(kind);
      const VisionConfig& c = vision.tower.config();
      const Matrix<float> planes = pith_test::random_matrix<float>(3 * 26, 26, 1);
      Matrix<float> features(c.tokens(), c.feature_size()), rows(vision.rows_per_tile(), vision.projector.out()), keys(c.tokens(), 8),
          last(c.tokens(), 24);
      Vector<float> received(c.tokens());
      Workspace ws(vision.workspace_bytes(executor.size()), executor);
      TowerMerge<float> merge(c, merge_steps_to(c, 12));
      const pith_test::AllocationScope scope;
      vision.tower.forward(planes, features, ws, merge);
      vision.tower.forward(planes, features, ws, {.attention_received = received, .key_mean = keys, .last_keys = last});
      if (vision.projector.block() == 1)
        vision.projector.forward_each(features.bottomRows(rows.rows()), rows, ws);
      else
        vision.projector.forward(features, c.grid(), rows, ws);
      CHECK(scope.count() == 0);
    }
}
