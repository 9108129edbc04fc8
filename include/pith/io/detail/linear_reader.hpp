#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/checkpoint_files.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/weights_layout.hpp>
#include <pith/nn/bf16.hpp>
#include <pith/nn/compute.hpp>
#include <pith/nn/int4.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Turns tensors of floats into linear layers of a layout.
template <class S> class LinearReader {
 public:
  using Place = CheckpointFiles::Place;

  LinearReader(WeightsLayout layout, bool check_finite, ExecutorRef executor = {}, Compute compute = Compute::exact)
      : layout_(layout), compute_(compute), check_finite_(check_finite), executor_(executor) {}

  /// Checks elements [first, first + count) of a tensor.
  void check_values(const Place& place, Index first, Index count) const {
    if (!check_finite_) return;
    const TensorInfo& tensor = *place.tensor;
    const std::size_t size = dtype_bits(tensor.dtype) / 8;
    const Index bad = first_non_finite<S>(tensor.dtype, place.bytes().data() + static_cast<std::size_t>(first) * size, count);
    if (bad < 0) return;
    raise<FormatError>("pith: ", in_quotes(place.file->name()), ": tensor ", in_quotes(tensor.name), ": value ", first + bad,
                       " is NaN or infinite, expected finite weights; set LoadOptions::check_finite to false to load it all the same");
  }
  void check_values(const Place& place) const { check_values(place, 0, place.tensor->elements()); }

  /// Calls use(rows, in_place) with rows of T if Usable<T>, else converted to S. If not in place, the rows are valid only during the call.
  /// A row of a tensor of more axes is all that lies under one index of its first.
  template <template <class> class Usable, class Use> static void with_rows(const Place& place, Use&& use) {
    const TensorInfo& tensor = *place.tensor;
    const Index rows = tensor.shape.empty() ? 1 : tensor.shape.front(), cols = rows > 0 ? tensor.elements() / rows : 0;
    with_type(tensor.dtype, [&]<class T>(T) {
      if constexpr (!std::is_integral_v<T> && Usable<T>::value) {
        if (place.file->template aligned<T>(tensor))
          return use(ConstMatrixRef<T>(reinterpret_cast<const T*>(place.bytes().data()), rows, cols), true);
        Matrix<T> copy(rows, cols);
        place.file->copy_values(tensor, copy.data());
        use(ConstMatrixRef<T>(copy), false);
      } else {
        Matrix<S> converted(rows, cols);
        place.file->copy_values(tensor, converted.data());
        use(ConstMatrixRef<S>(converted), false);
      }
    });
  }

  template <class T> using computes_in_s = std::is_same<arithmetic_t<T>, S>;
  template <class T> using widens_to_s = std::bool_constant<sizeof(T) <= sizeof(S)>;

  /// A layer of rows start .. start + rows - 1 of a tensor, which with_rows() gave as `all`.
  template <class T>
  AnyLinear<S> linear(const Place& place, const ConstMatrixRef<T>& all, Index start, Index rows, WeightsLayout layout, bool in_place,
                      Vector<S> bias) const {
    const Index cols = all.cols();
    if (layout == WeightsLayout::mapped && in_place) {
      check_values(place, start * cols, rows * cols);
      auto alive = std::make_shared<const Alive>(Alive{place.file->keep_alive(), std::move(bias)});
      return AnyLinear<S>(LinearView<S, T>(all.middleRows(start, rows), alive->bias), alive);
    }
    // Checking the source of each copy reads every value from memory once.
    const auto checked_rows = [&](Index first, Index n) {
      check_values(place, (start + first) * cols, n * cols);
      return all.middleRows(start + first, n);
    };
    if constexpr (std::is_same_v<S, float>) {
      if constexpr (std::is_same_v<T, bfloat16>) {
        if (layout == WeightsLayout::packed && compute_ == Compute::bf16)
          return AnyLinear<S>(Bf16Linear(PackedWeight<T>(rows, cols, checked_rows, executor_), std::move(bias)));
      }
      if (layout == WeightsLayout::int4)
        return AnyLinear<S>(Int4Linear(Int4Weight(rows, cols, checked_rows, Int4Weight::default_group, executor_), std::move(bias)));
      if (layout == WeightsLayout::int8)
        return AnyLinear<S>(Int8Linear(Int8Weight(rows, cols, checked_rows, executor_), std::move(bias), int8_compute()));
    }
    return AnyLinear<S>(PackedLinear<S, T>(PackedWeight<T>(rows, cols, checked_rows, executor_), std::move(bias)));
  }

  bool mapped() const { return layout_ == WeightsLayout::mapped; }
  /// Frees the file's pages; otherwise file and weights would both stay in memory.
  void release(const Place& place) const {
    if (!mapped()) place.file->release(*place.tensor);
  }

 private:
  /// Memory that a mapped projection needs.
  struct Alive {
    std::shared_ptr<const void> file;
    Vector<S> bias;
  };

 protected:
  Compute int8_compute() const { return compute_ == Compute::int15 ? compute_ : Compute::exact; }

  WeightsLayout layout_;
  Compute compute_;
  bool check_finite_;
  ExecutorRef executor_;
};

}}}  // namespace pith::v0::detail
