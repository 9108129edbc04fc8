// Traces of prompts with two images, made here by plain loops in double: no published trace has more than one.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/io/safetensors.hpp>
#include <pith/io/safetensors_writer.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/golden_folder.hpp"
#include "golden/support/vlm_trace.hpp"
#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/products.hpp"

using namespace pith;
using pith_test::times_transposed;
using pith_test::transposed_times;

namespace golden_two_images {
namespace {

using Rows = Matrix<double>;
constexpr Index heads = 2, head_dim = 128, hidden = heads * head_dim;

/// The one layer of vlm-mha128-bf16, as its config.json describes it.
struct OneLayer {
  Safetensors file = Safetensors::map(pith_test::golden_folder("model") / "vlm-mha128-bf16" / "model.safetensors");
  struct Projected {
    Rows q, k, v;
  };

  Rows weight(const std::string& name) const { return file.load_matrix<double>(name + ".weight"); }
  Rows normed(const Rows& x, const std::string& name) const {
    const Vector<double> w = file.load_values<double>(name + ".weight");
    Rows y = x;
    for (Index t = 0; t < x.rows(); ++t)
      y.row(t) = x.row(t).cwiseProduct(w.transpose()) / std::sqrt(x.row(t).squaredNorm() / double(hidden) + 1e-6);
    return y;
  }
  static void rotate(Rows& x, Index first) {
    for (Index t = 0; t < x.rows(); ++t)
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < head_dim / 2; ++i) {
          const double angle = double(first + t) * std::pow(10000., -2. * double(i) / double(head_dim));
          double &a = x(t, h * head_dim + i), &b = x(t, h * head_dim + i + head_dim / 2);
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = b * std::cos(angle) + a * std::sin(angle);
          a = turned;
        }
  }
  Projected project(const Rows& x, Index first) const {
    const Rows n = normed(x, "model.layers.0.input_layernorm");
    const std::string at = "model.layers.0.self_attn.";
    Projected out{times_transposed(n, weight(at + "q_proj")), times_transposed(n, weight(at + "k_proj")),
                  times_transposed(n, weight(at + "v_proj"))};
    rotate(out.q, first);
    rotate(out.k, first);
    return out;
  }
  /// The logits that follow a token whose attention gave `attended` [1, hidden].
  Rows logits(Rows x, const Rows& attended) const {
    x += times_transposed(attended, weight("model.layers.0.self_attn.o_proj"));
    const Rows n = normed(x, "model.layers.0.post_attention_layernorm");
    const Rows gate = times_transposed(n, weight("model.layers.0.mlp.gate_proj")),
               up = times_transposed(n, weight("model.layers.0.mlp.up_proj"));
    Rows mid = gate;
    for (Index i = 0; i < mid.cols(); ++i) mid(0, i) = gate(0, i) / (1 + std::exp(-gate(0, i))) * up(0, i);
    x += times_transposed(mid, weight("model.layers.0.mlp.down_proj"));
    return times_transposed(normed(x, "model.norm"), weight("lm_head"));
  }
};

/// Softmax over these rows of what one query of a head sees.
Vector<double> probabilities(const Rows& q, const Rows& k, Index h, const std::vector<Index>& rows) {
  Vector<double> p(static_cast<Index>(rows.size()));
  for (std::size_t r = 0; r < rows.size(); ++r)
    p[static_cast<Index>(r)] =
        q.row(0).segment(h * head_dim, head_dim).dot(k.row(rows[r]).segment(h * head_dim, head_dim)) / std::sqrt(double(head_dim));
  p = (p.array() - p.maxCoeff()).exp();
  return p / p.sum();
}

/// Writes image.safetensors and a trace into a folder.
class TwoImages {
 public:
  static constexpr Index patch_rows = 3, patch_cols = 4, decoded = 8;

  explicit TwoImages(const pith_test::TempFolder& folder) : folder_(folder) {
    std::mt19937_64 rng(5);
    const auto random = [&](Index rows) {
      Matrix<float> m(rows, hidden);
      for (Index i = 0; i < m.size(); ++i) m.data()[i] = std::uniform_real_distribution<float>(-.05f, .05f)(rng);
      return m;
    };
    const Matrix<float> row = random(patch_rows), col = random(patch_cols), tex = random(5);
    SafetensorsWriter writer;
    writer.add("image_row", row);
    writer.add("image_col", col);
    writer.add("image_tex", tex);
    writer.write(folder.path() / "image.safetensors");

    const auto words = [&](Index n) {
      for (Index i = 0; i < n; ++i) prompt_.push_back(static_cast<std::int32_t>(3 + rng() % 61));
    };
    words(9);
    prompt_.push_back(-200);
    words(7);
    prompt_.push_back(-200);
    words(20);
    for (Index i = 0; i < decoded; ++i) decode_.push_back(static_cast<std::int32_t>(3 + rng() % 61));

    const Rows table = layer_.weight("model.embed_tokens");
    std::vector<Rows> embedded;
    for (const std::int32_t id : prompt_) {
      if (id != -200) {
        embedded.push_back(table.row(id));
        is_image_.push_back(false);
        continue;
      }
      const auto first = static_cast<std::int32_t>(embedded.size());
      for (Index p = 0; p < patch_rows * patch_cols; ++p) {
        embedded.push_back((row.row(p / patch_cols) + col.row(p % patch_cols) + tex.row(p % 5)).cast<double>());
        is_image_.push_back(true);
      }
      spans_.insert(spans_.end(), {first, static_cast<std::int32_t>(embedded.size())});
    }
    x_.resize(static_cast<Index>(embedded.size()), hidden);
    for (std::size_t t = 0; t < embedded.size(); ++t) x_.row(static_cast<Index>(t)) = embedded[t];
  }

  Index tokens() const { return x_.rows(); }

  /// With no kind nothing is evicted; text_evict: all text, the recent tokens, and the images' best rows by the attention they got.
  void write(const std::string& name, const std::string& kind, double hh_ratio, double recent_ratio) const {
    OneLayer::Projected all = layer_.project(x_, 0);
    const Index n = tokens(), recent = static_cast<Index>(double(n) * recent_ratio), heavy = static_cast<Index>(double(n) * hh_ratio);
    std::vector<std::vector<Index>> kept(heads);
    Rows attended(1, hidden);
    for (Index h = 0; h < heads; ++h) {
      Vector<double> score = Vector<double>::Zero(n);
      for (Index t = 0; t < n; ++t) {
        std::vector<Index> seen(static_cast<std::size_t>(t + 1));
        std::iota(seen.begin(), seen.end(), 0);
        const Vector<double> p = probabilities(all.q.row(t), all.k, h, seen);
        score.head(t + 1) += p;
        if (t == n - 1) attended.middleCols(h * head_dim, head_dim) = transposed_times(p, all.v.middleCols(h * head_dim, head_dim));
      }
      std::vector<Index>& rows = kept[static_cast<std::size_t>(h)];
      std::vector<Index> images;
      for (Index t = 0; t < n; ++t)
        if (kind.empty() || t >= n - recent || !is_image_[static_cast<std::size_t>(t)])
          rows.push_back(t);
        else
          images.push_back(t);
      if (!kind.empty()) {
        std::sort(images.begin(), images.end(), [&](Index a, Index b) { return score[a] > score[b]; });
        const auto room = static_cast<std::size_t>(heavy + recent) - rows.size();
        REQUIRE((room > 2 && room + 2 < images.size()));                                      // both images have rows that stay and that go
        REQUIRE(score[images[room - 1]] - score[images[room]] > 1e-5 * score[images[room]]);  // a decision that float makes as well
        rows.insert(rows.end(), images.begin(), images.begin() + static_cast<std::ptrdiff_t>(room));
        std::sort(rows.begin(), rows.end());
      }
    }
    const std::size_t size = kept[0].size();
    const auto count = static_cast<Index>(heads * size);
    Matrix<float> logits(decoded + 1, 64), norms(2, count), first(2, 2 * count);
    std::vector<std::int16_t> positions;
    logits.row(0) = layer_.logits(x_.bottomRows(1), attended).cast<float>();
    for (Index h = 0; h < heads; ++h)
      for (const Index row : kept[static_cast<std::size_t>(h)]) {
        const auto at = static_cast<Index>(positions.size());
        for (const auto& [i, part] : {std::pair(0, &all.k), std::pair(1, &all.v)}) {
          norms(i, at) = static_cast<float>(part->row(row).segment(h * head_dim, head_dim).norm());
          first.block(i, 2 * at, 1, 2) = part->block(row, h * head_dim, 1, 2).cast<float>();
        }
        positions.push_back(static_cast<std::int16_t>(row));
      }
    for (Index t = 0; t < decoded; ++t) {
      const Rows x = layer_.weight("model.embed_tokens").row(decode_[static_cast<std::size_t>(t)]);
      const OneLayer::Projected next = layer_.project(x, n + t);
      for (const auto& [whole, row] : {std::pair(&all.k, &next.k), std::pair(&all.v, &next.v)}) {
        whole->conservativeResize(n + t + 1, hidden);
        whole->row(n + t) = row->row(0);
      }
      for (Index h = 0; h < heads; ++h) {
        std::vector<Index>& rows = kept[static_cast<std::size_t>(h)];
        rows.push_back(n + t);
        const Vector<double> p = probabilities(next.q, all.k, h, rows);
        attended.middleCols(h * head_dim, head_dim).setZero();
        for (std::size_t r = 0; r < rows.size(); ++r)
          attended.middleCols(h * head_dim, head_dim) += p[static_cast<Index>(r)] * all.v.block(rows[r], h * head_dim, 1, head_dim);
      }
      logits.row(t + 1) = layer_.logits(x, attended).cast<float>();
    }

    SafetensorsWriter writer;
    writer.metadata("model", "vlm-mha128-bf16");
    if (!kind.empty()) {
      writer.metadata("kind", kind);
      writer.metadata("hh_ratio", std::to_string(hh_ratio));
      writer.metadata("recent_ratio", std::to_string(recent_ratio));
    }
    const auto ids = [&](const char* what, std::vector<Index> shape, const std::vector<std::int32_t>& values) {
      writer.add(what, DType::i32, std::move(shape), std::as_bytes(std::span(values)));
    };
    ids("prompt_ids", {static_cast<Index>(prompt_.size())}, prompt_);
    ids("decode_ids", {decoded}, decode_);
    ids("image_spans", {2, 2}, spans_);
    writer.add("logits", logits);
    const Index c = static_cast<Index>(size);
    writer.add("kept", DType::i16, {1, heads, c}, std::as_bytes(std::span(positions)));
    for (const auto& [i, prefix] : {std::pair(0, "k"), std::pair(1, "v")}) {
      const auto floats = [](const Matrix<float>& m, Index r) {
        return std::as_bytes(std::span(m.data() + r * m.cols(), static_cast<std::size_t>(m.cols())));
      };
      writer.add(std::string(prefix) + "_norm", DType::f32, {1, heads, c}, floats(norms, i));
      writer.add(std::string(prefix) + "_dims01", DType::f32, {1, heads, c, 2}, floats(first, i));
    }
    writer.write(folder_.path() / name);
  }

 private:
  const pith_test::TempFolder& folder_;
  OneLayer layer_;
  std::vector<std::int32_t> prompt_, decode_, spans_;
  std::vector<bool> is_image_;
  Rows x_;
};

}  // namespace

TEST_CASE("golden.two_images: prompts attend, evict and continue as plain loops in double do", "[golden]") {
  const pith_test::TempFolder folder;
  const TwoImages made(folder);
  REQUIRE(made.tokens() == 60);
  made.write("dense.safetensors", "", 0, 0);
  made.write("text_evict.safetensors", "text_evict", .75, .1);
  for (const char* name : {"dense.safetensors", "text_evict.safetensors"}) {
    INFO(name);
    pith_test::Golden trace(folder.path() / name);
    pith_test::replay_vlm(folder.path() / "image.safetensors", trace);
    trace.done();
  }
}

}  // namespace golden_two_images
