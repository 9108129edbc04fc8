#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/safetensors.hpp>

#include "golden/support/golden_folder.hpp"
#include "support/catch.hpp"

namespace pith_test {

using pith::Index;
using pith::Token;

/// Numbers are in `values`, integers and masks in `ids`.
struct Tensor {
  std::vector<Index> shape;
  pith::Vector<double> values;
  std::vector<Token> ids;
  Index extent(std::size_t axis) const { return axis < shape.size() ? shape[axis] : 1; }
  Index width() const { return shape.back(); }
  /// The last axis at these leading indices.
  template <class V> auto row_of(const V& all, std::initializer_list<Index> at) const {
    Index offset = 0;
    std::size_t axis = 0;
    for (const Index i : at) {
      REQUIRE((i >= 0 && i < extent(axis)));
      offset = offset * shape[axis++] + i;
    }
    for (; axis + 1 < shape.size(); ++axis) offset *= shape[axis];
    return std::span(all.data() + offset * shape.back(), static_cast<std::size_t>(shape.back()));
  }
  std::span<const double> row(std::initializer_list<Index> at) const { return row_of(values, at); }
  std::span<const Token> id_row(std::initializer_list<Index> at) const { return row_of(ids, at); }
};

/// All of a golden file; every tensor has to be asked for, or done() fails.
class Golden {
 public:
  explicit Golden(const std::filesystem::path& path)
      : path_(path), file_(pith::Safetensors::map(path)), metadata_(file_.metadata()), unread_(names()) {}

  std::set<std::string> names() const {
    std::set<std::string> all;
    for (const pith::TensorInfo& info : file_.tensors()) all.insert(info.name);
    return all;
  }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  Tensor get(const std::string& name) {
    using pith::DType;
    unread_.erase(name);
    const pith::TensorInfo& info = file_.at(name);
    Tensor tensor{{info.shape.begin(), info.shape.end()}, {}, {}};
    if (info.dtype == DType::f64 || info.dtype == DType::f32 || info.dtype == DType::f16 || info.dtype == DType::bf16) {
      tensor.values = file_.load_values<double>(name);
    } else {
      const pith::Vector<std::int32_t> ids = file_.load_values<std::int32_t>(name);
      tensor.ids.assign(ids.data(), ids.data() + ids.size());
    }
    return tensor;
  }
  std::vector<Token> ids(const std::string& name) { return get(name).ids; }
  bool says(const std::string& key) const { return metadata_.count(key) == 1; }
  std::string word(const std::string& key) const {
    INFO(path_.string() << " says nothing of " << key);
    REQUIRE(says(key));
    return metadata_.at(key);
  }
  Index number(const std::string& key) const { return std::stoll(word(key)); }
  double real(const std::string& key) const { return std::stod(word(key)); }
  nlohmann::json json(const std::string& key) const { return nlohmann::json::parse(word(key)); }
  void done() const {
    INFO(path_.string() << ": a tensor that no test reads");
    CHECK(unread_ == std::set<std::string>{});
  }

 private:
  std::filesystem::path path_;
  pith::Safetensors file_;
  std::map<std::string, std::string> metadata_;
  std::set<std::string> unread_;
};

/// The largest difference; infinite where ours is not a number.
template <class Row> double distance(const Row& ours, std::span<const double> theirs) {
  REQUIRE(ours.size() == static_cast<Index>(theirs.size()));
  double worst = 0;
  for (Index i = 0; i < ours.size(); ++i) worst = std::max(worst, std::abs(double(ours[i]) - theirs[static_cast<std::size_t>(i)]));
  return std::isfinite(double(ours.sum())) ? worst : std::numeric_limits<double>::infinity();
}

}  // namespace pith_test
