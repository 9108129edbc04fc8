#pragma once

#include <cmath>
#include <cstdint>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/row_budget.hpp>

namespace pith { inline namespace v0 {

/// How compact() chooses keys and solves for masses and values.
struct CompactOptions {
  /// What a key's attention weights A_ij, over all reference queries i, count as.
  enum class Select : std::uint8_t {
    rms,      ///< √(mean_i A_ij²)
    mean,     ///< mean_i A_ij
    largest,  ///< max_i A_ij: finds what few queries ask for
    pursuit,  ///< orthogonal matching pursuit of the masses; shares no budget, and its scores are an order
  };
  enum class Rows : std::uint8_t {
    relative,  ///< queries count alike: each by its own sum of exponentials
    largest,   ///< as published: each by its largest exponential, so that flat queries count more
  };
  enum class Pull : std::uint8_t {
    own,   ///< values are pulled towards their row's own
    zero,  ///< … towards 0
  };
  RowBudget budget = {};        ///< rows that stay
  Select select = Select::rms;  ///< key selection
  bool masses = true;           ///< solve for masses; false: rows count as before
  bool values = true;           ///< solve for values; false: rows keep theirs
  double least_log_mass = -3;   ///< bounds of the logarithm of a row's mass, relative to the mass it had
  double most_log_mass = 3;
  double mass_pull = 0.1;         ///< pulls masses towards 1, in parts of the mean squared column; 0: none
  double ridge = 0.3;             ///< pulls values, in the same unit; 0: least squares, which may leave values far larger than any before
  Pull pull = Pull::own;          ///< where values are pulled to
  Rows rows = Rows::relative;     ///< how the queries count in the masses
  Index sweeps = 100;             ///< the most sweeps of coordinate descent over the masses
  Index chunk = 0;                ///< rows solved together: long prompts in chunks of this many positions; 0: all
  Index pool = 1;                 ///< scores become the largest of this many neighbours, odd; 1: none
  Position end = -1;              ///< rows from this position on stay as they are; -1: none
  Index pursuit_step = 1;         ///< pursuit: keys added at once
  Index pursuit_interval = 1;     ///< pursuit: additions between two solutions
  ExecutorRef executor = serial;  ///< threads, over kv heads; must outlive the call

  /// Throws   ShapeError for numbers out of range
  void check(std::size_t heads) const {
    budget.check(heads);
    const auto finite = [](const char* name, double value) {
      if (!std::isfinite(value)) raise<ShapeError>("pith::CompactOptions: ", name, " is ", value, ", expected a finite number");
    };
    finite("least_log_mass", least_log_mass);
    finite("most_log_mass", most_log_mass);
    if (least_log_mass > 0 || most_log_mass < 0 || least_log_mass < -80 || most_log_mass > 80)
      raise<ShapeError>("pith::CompactOptions: log masses within ", least_log_mass, " .. ", most_log_mass, ", expected -80 .. 0 .. 80");
    check_amount("CompactOptions", "mass_pull", mass_pull);
    check_amount("CompactOptions", "ridge", ridge);
    check_count("CompactOptions", "sweeps", sweeps, 1);
    check_count("CompactOptions", "chunk", chunk, 0);
    check_count("CompactOptions", "pool", pool, 1);
    check_count("CompactOptions", "pursuit_step", pursuit_step, 1);
    check_count("CompactOptions", "pursuit_interval", pursuit_interval, 1);
    if (pool % 2 == 0) raise<ShapeError>("pith::CompactOptions: pool is ", pool, ", expected an odd number: as many rows before as behind");
    if (select == Select::pursuit && (budget.share != RowBudget::Share::head || chunk > 0))
      raise<ShapeError>("pith::CompactOptions: pursuit selects in one head's rows at a time: Share::head, without chunks");
  }
};

}}  // namespace pith::v0
