#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/safetensors.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/vera_change.hpp>

// What a kind of PEFT folder beyond LoRA is: its tensors, and the change of a projection that they mean.
namespace pith { inline namespace v0 { namespace detail {

inline constexpr std::size_t most_kind_tensors = 8;  ///< of one module
using KindTensors = std::array<const TensorInfo*, most_kind_tensors>;

/// The tensors of one module, in the order of PeftKind::endings(), with the module's rank and alpha by the config and its patterns.
struct KindModule {
  const Safetensors& file;
  std::string_view name;
  const KindTensors& tensors;
  Index rank = 0;
  double alpha = 0;

  bool has(std::size_t i) const { return tensors[i] != nullptr; }
  const std::vector<Index>& shape(std::size_t i) const { return tensors[i]->shape; }
  /// The numbers of a tensor: [first extent, all others].
  template <class S> Matrix<S> load(std::size_t i) const { return load<S>(*tensors[i]); }
  template <class S> Matrix<S> load(const TensorInfo& tensor) const {
    const Index rows = tensor.shape.empty() ? 1 : tensor.shape[0];
    Matrix<S> out(rows, rows == 0 ? 0 : tensor.elements() / rows);
    file.copy_values(tensor, out.data());
    return out;
  }
  template <class S> Vector<S> vector(std::size_t i) const {
    Vector<S> out(tensors[i]->elements());
    file.copy_values(*tensors[i], out.data());
    return out;
  }

  [[noreturn]] void refuse(std::size_t i, std::string_view what) const {
    raise<FormatError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(tensors[i]->name), " ", what);
  }
  /// Throws   FormatError unless tensor i has this shape; -1: any extent
  void expect(std::size_t i, std::initializer_list<Index> expected, std::string_view why) const {
    const std::vector<Index>& found = shape(i);
    const bool fits = found.size() == expected.size() &&
                      std::equal(found.begin(), found.end(), expected.begin(), [](Index f, Index e) { return e == -1 ? f > 0 : f == e; });
    if (fits) return;
    std::string wanted = "[";
    for (const Index e : expected) wanted += text(wanted.size() > 1 ? ", " : "", e == -1 ? std::string("any") : text(e));
    refuse(i, text("is ", shape_list(found), ", expected ", wanted, "]", why));
  }
  /// The gain alpha / rank.
  ///
  /// Throws   FormatError if it is not finite in S
  template <class S> S scale() const {
    const S scale = static_cast<S>(alpha / double(rank));
    if (!std::isfinite(scale))
      raise<FormatError>("pith: ", in_quotes(file.name()), ": module ", in_quotes(name), " is scaled by an alpha of ", alpha, " / ", rank,
                         ", expected a finite number");
    return scale;
  }
};

/// The shape of the weight that a module's tensors are for; any_extent: they do not say.
struct KindShape {
  Index out = any_extent, in = any_extent;
};

/// What all modules of a folder share: VeRA's and RandLoRA's projections, widened.
template <class S> using KindShared = std::shared_ptr<const VeraProjections<S>>;

/// The largest rank of random matrices that modules share: that of any delta, or what small models are given in papers. Such a rank takes a
/// few numbers of a file, but matrices as wide as the decoder.
inline Index most_shared_rank(Index out, Index in) { return (std::max)(Index(1024), (std::min)(out, in)); }

/// The projection that is changed: outputs first … of the module, all of it unless the base joins several projections in one module.
template <class S> struct KindPlace {
  const AnyLinear<S>& base;
  Index first = 0;
  Index module_out = 0;
  KindShared<S> shared = {};

  Index out() const { return base.out(); }
  Index in() const { return base.in(); }
  /// The base's weight in double.
  Matrix<double> weight() const {
    Matrix<double> out(base.out(), base.in());
    constexpr Index together = 64;
    Matrix<S> rows;
    for (Index r = 0; r < out.rows(); r += together) {
      rows.resize((std::min)(together, out.rows() - r), out.cols());
      base.copy_weight(r, rows);
      out.middleRows(r, rows.rows()) = rows.template cast<double>();
    }
    return out;
  }
  /// A change that replaces the base by this weight, with the base's bias.
  LinearAdapter<S> replaced_by(const Matrix<double>& weight) const {
    LinearAdapter<S> out;
    const Matrix<S> narrow = weight.template cast<S>();
    out.replacement = AnyLinear<S>(PackedLinear<S, S>(ConstMatrixRef<S>(narrow), Vector<S>(base.bias())));
    return out;
  }
};

/// One kind of adapter folder: what its config says beyond the common keys, and what its tensors mean. A file of peft_kinds/ each, with
///
///   template <class S> LinearAdapter<S> overlay(const KindModule& module, const KindPlace<S>& place) const;
///   template <class S> KindShared<S> projections(const Safetensors& file, const KindTensors& found, Index most_in, Index most_out) const;
///
/// the second only where modules share matrices; most_in, most_out: the largest extents of the modules that the folder changes.
class PeftKind {
 public:
  virtual ~PeftKind() = default;
  /// The endings of a module's tensors, at most most_kind_tensors.
  virtual std::span<const std::string_view> endings() const = 0;
  /// Names of tensors that all modules share, after `base_model.`.
  virtual std::span<const std::string_view> shared_names() const { return {}; }
  /// Throws   FormatError for tensors that are missing, superfluous or of a wrong shape, as far as that shows without the base
  virtual void check(const KindModule& module) const = 0;
  virtual void check_shared(const Safetensors&, const KindTensors&) const {}
  virtual KindShape shape(const KindModule& module) const = 0;

 protected:
  /// Throws   FormatError unless the module has all of these tensors
  void need(const KindModule& module, std::initializer_list<std::size_t> tensors) const {
    for (const std::size_t i : tensors)
      if (!module.has(i))
        raise<FormatError>("pith: ", in_quotes(module.file.name()), ": holds no ", endings()[i], " of module ", in_quotes(module.name));
  }
};

}}}  // namespace pith::v0::detail
