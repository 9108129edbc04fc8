#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <numbers>
#include <span>
#include <vector>

#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/products.hpp"

namespace pith_test {

/// A decoder written down plainly in double, every sum in the order of its index: it shares weights and DecoderConfig with pith, no kernel.
template <class S> class PlainDecoder {
 public:
  using Index = pith::Index;
  using Row = pith::Vector<double>;

  explicit PlainDecoder(const pith::Decoder<S>& decoder, const pith::ModelAdapter<S>* adapter = nullptr, bool counted = false)
      : decoder_(decoder), adapter_(adapter), counted_(counted) {}

  /// Which tokens a layer leaves out, at which angles the others stand, and a model that the first tokens go through.
  struct Reading {
    std::function<bool(std::size_t, Index)> left_out = [](std::size_t, Index) { return false; };  ///< no token sees this one in this layer
    std::function<Index(std::size_t, Index)> angle = [](std::size_t, Index token) { return token; };
    const PlainDecoder* before = nullptr;
    Index first_tokens = 0;
  };

  /// The logits of all tokens of a text, without a cache.
  pith::Matrix<double> forward(std::span<const pith::Token> tokens, const Reading& reading = {}) const {
    std::vector<std::vector<Seen>> seen(decoder_.weights().layers.size());
    pith::Matrix<double> logits(static_cast<Index>(tokens.size()), decoder_.vocab_size());
    for (Index t = 0; t < logits.rows(); ++t) {
      const PlainDecoder& model = t < reading.first_tokens ? *reading.before : *this;
      const auto attend = [&](std::size_t l, const pith::LayerSpec& spec, const Row& q, const Row& k, const Row& v) {
        if (!reading.left_out(l, t)) seen[l].push_back({k, v, t});
        return attended(spec, q, t, seen[l]);
      };
      logits.row(t) =
          model
              .through(
                  tokens[static_cast<std::size_t>(t)], [&](std::size_t l) { return reading.angle(l, t); }, logits.rows(), attend)
              .transpose();
    }
    return logits;
  }

  /// One token over the caches of a snapshot at text positions.
  template <class Snapshot> Row next_logits(const Snapshot& before, pith::Token token) const {
    const Index position = before.layers[0].next;
    return through(
        token, [&](std::size_t) { return position; }, position + 1,
        [&](std::size_t l, const pith::LayerSpec& spec, const Row& q, const Row& k, const Row& v) {
          return attended_rows(spec, before.layers[l], position, q, k, v);
        });
  }

  /// cos and sin of pair i at a position in a text of this length, times the attention factor, and the pair's features.
  struct Turn {
    Index first, second;
    double cosine, sine;
  };
  static std::vector<Turn> turns(const pith::RopeOptions& rope, Index position, Index length) {
    const pith::RopeScaling& s = rope.scaling;
    const Index width = s.type == pith::RopeType::identity ? 0 : rope.rotary_dim > 0 ? rope.rotary_dim : rope.head_dim;
    const double w = static_cast<double>(width), original = static_cast<double>(s.original_max_position_embeddings);
    const double most = static_cast<double>(rope.max_position_embeddings);
    double factor = 1, theta = rope.theta;
    if (s.type == pith::RopeType::dynamic && length > rope.max_position_embeddings)
      theta *= std::pow(s.factor * static_cast<double>(length) / most - s.factor + 1, w / (w - 2));
    if (s.type == pith::RopeType::yarn) factor = s.factor > 1 ? 0.1 * std::log(s.factor) + 1 : 1;
    if (s.type == pith::RopeType::yarn && s.mscale > 0 && s.mscale_all_dim > 0)
      factor = (0.1 * s.mscale * std::log(s.factor) + 1) / (0.1 * s.mscale_all_dim * std::log(s.factor) + 1);
    if (s.type == pith::RopeType::longrope && most > original) factor = std::sqrt(1 + std::log(most / original) / std::log(original));
    if (s.attention_factor > 0) factor = s.attention_factor;
    std::vector<Turn> out;
    for (Index i = 0; i < width / 2; ++i) {
      const double x = static_cast<double>(i);
      double inv = std::pow(theta, -2 * x / w);
      if (s.type == pith::RopeType::linear) inv /= s.factor;
      if (s.type == pith::RopeType::longrope)
        inv /= (length > s.original_max_position_embeddings ? s.long_factor : s.short_factor)[static_cast<std::size_t>(i)];
      if (s.type == pith::RopeType::yarn) {
        const auto place = [&](double beta) { return w * std::log(original / (beta * 2 * std::numbers::pi)) / (2 * std::log(theta)); };
        double low = place(s.beta_fast), high = place(s.beta_slow);
        if (s.truncate) low = std::floor(low), high = std::ceil(high);
        low = low < 0 ? 0 : low;
        high = high > w - 1 ? w - 1 : high;
        if (low == high) high += 0.001;
        const double ramp = (x - low) / (high - low), kept = 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
        inv = inv / s.factor * (1 - kept) + inv * kept;
      }
      if (s.type == pith::RopeType::llama3) {
        const double wavelength = 2 * std::numbers::pi / inv;
        if (wavelength > original / s.low_freq_factor) {
          inv /= s.factor;
        } else if (wavelength >= original / s.high_freq_factor) {
          const double smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
          inv = (1 - smooth) * inv / s.factor + smooth * inv;
        }
      }
      const double angle = static_cast<double>(position) * inv;
      out.push_back(
          {rope.interleaved ? 2 * i : i, rope.interleaved ? 2 * i + 1 : i + width / 2, factor * std::cos(angle), factor * std::sin(angle)});
    }
    return out;
  }

 private:
  struct Seen {
    Row key, value;  ///< of all kv heads
    Index position;
  };

  template <class Position, class Attend> Row through(pith::Token token, Position&& position_in, Index length, Attend&& attend) const {
    const pith::DecoderConfig& c = decoder_.config();
    pith::Matrix<S> table(1, c.hidden_size);
    decoder_.weights().embed_tokens.copy_rows(token, table);
    Row x = c.input_scale * c.embedding_scale * table.row(0).transpose().template cast<double>();
    for (std::size_t l = 0; l < decoder_.weights().layers.size(); ++l) {
      const pith::LayerSpec spec = c.layer(static_cast<Index>(l));
      const Index position = position_in(l);
      const auto norm = [&](bool present, pith::NormPlace place, const Row& in) {
        return present ? normed(in, norm_weight(l, place)) : in;
      };
      const auto project = [&](pith::Projection p, const Row& in) {
        const pith::AnyLinear<S>& base = pith::detail::projection_of(decoder_.weights().layers[l], p);
        return Row(times(with(base, adapter_ == nullptr ? nullptr : &adapter_->parts().layers[l][p]), in).col(0));
      };
      const auto prepared = [&](pith::Projection p, pith::NormPlace place, const Row& in) {
        Row heads = project(p, in);
        if (spec.qk_norm == pith::QkNorm::projection) heads = normed(heads, norm_weight(l, place));
        for (Index h = 0; spec.qk_norm == pith::QkNorm::head && h < heads.size(); h += c.head_dim)
          heads.segment(h, c.head_dim) = normed(heads.segment(h, c.head_dim), norm_weight(l, place));
        for (Index h = 0; h < heads.size(); h += c.head_dim)
          for (const Turn& t : turns(c.rope(spec.rope), position, length)) {
            const double a = heads[h + t.first], b = heads[h + t.second];
            heads[h + t.first] = a * t.cosine - b * t.sine;
            heads[h + t.second] = b * t.cosine + a * t.sine;
          }
        return heads;
      };
      const Row a = norm(spec.pre_attention, pith::NormPlace::pre_attention, x);
      Row q = prepared(pith::Projection::q, pith::NormPlace::q, a);
      const Row k = prepared(pith::Projection::k, pith::NormPlace::k, a), v = project(pith::Projection::v, a);
      if (spec.query_scale.beta != 0)
        q *= 1 +
             spec.query_scale.beta * std::log(1 + std::floor(static_cast<double>(position) / static_cast<double>(spec.query_scale.length)));
      const Row o = norm(spec.post_attention, pith::NormPlace::post_attention, project(pith::Projection::o, attend(l, spec, q, k, v)));
      if (!spec.parallel) x += spec.residual_scale * o;
      const Row b = spec.parallel ? a : norm(spec.pre_mlp, pith::NormPlace::pre_mlp, x);
      Row gate = project(pith::Projection::gate, b);
      for (double& z : gate) z = activated(z);
      const Row h = norm(spec.post_mlp, pith::NormPlace::post_mlp,
                         project(pith::Projection::down, (gate.array() * project(pith::Projection::up, b).array()).matrix()));
      if (spec.parallel) x += spec.residual_scale * o;
      x += spec.residual_scale * h;
    }
    Row logits = c.logits_scale * (with(decoder_.weights().lm_head, adapter_ == nullptr ? nullptr : &adapter_->parts().lm_head) *
                                   normed(x, adapter_ != nullptr && adapter_->parts().norm.size() > 0 ? adapter_->parts().norm.weight()
                                                                                                      : decoder_.weights().norm));
    for (double& z : logits) z = c.logits_softcap > 0 ? c.logits_softcap * std::tanh(z / c.logits_softcap) : z;
    return logits;
  }

  double activated(double z) const {
    switch (decoder_.config().activation) {
      case pith::GateActivation::silu:
        return z / (1 + std::exp(-z));
      case pith::GateActivation::gelu:
        return z / 2 * (1 + std::erf(z / std::numbers::sqrt2));
      case pith::GateActivation::gelu_tanh:
        break;
    }
    return z / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z)));
  }

  static pith::Matrix<double> with(const pith::AnyLinear<S>& base, const pith::LinearAdapter<S>* overlay) {
    pith::Matrix<S> weight(base.out(), base.in());
    base.copy_weight(0, weight);
    pith::Matrix<double> out = weight.template cast<double>();
    if (overlay != nullptr)
      for (const pith::LowRankTerm<S>& term : overlay->terms)
        out += times(with_scaled_columns(transposed(pith_test::widened<double>(term.b_rows)), term.gains), term.a_rows);
    return out;
  }

  const pith::Vector<S>& norm_weight(std::size_t layer, pith::NormPlace place) const {
    if (adapter_ != nullptr)
      if (const auto& own = adapter_->parts().layers[layer][place]; own.size() > 0) return own.weight();
    return pith::detail::norm_of(decoder_.weights().layers[layer], place);
  }
  Row normed(Row x, const pith::Vector<S>& weight) const {
    const double n = static_cast<double>(x.size());
    if (decoder_.config().norm == pith::NormKind::layer) x.array() -= x.sum() / n;
    const double scale = 1 / std::sqrt(x.squaredNorm() / n + decoder_.config().norm_eps);
    return (scale * x.array() * weight.template cast<double>().array()).matrix();
  }

  /// The weight of a key, before it is divided by the sum of all.
  double weight(const pith::LayerSpec& spec, double product, double mass) const {
    const double scale = spec.attention_scale > 0 ? spec.attention_scale : 1 / std::sqrt(static_cast<double>(decoder_.config().head_dim));
    const double cap = spec.attention_softcap, score = product * scale;
    return std::exp(cap > 0 ? cap * std::tanh(score / cap) : score) * mass;
  }

  Row attended(const pith::LayerSpec& spec, const Row& q, Index position, const std::vector<Seen>& seen) const {
    const pith::DecoderConfig& c = decoder_.config();
    const Index d = c.head_dim, group = c.num_attention_heads / c.num_key_value_heads;
    Row out = Row::Zero(q.size());
    for (Index head = 0; head < c.num_attention_heads; ++head) {
      const Index kv = head / group * d;
      double sum = 0;
      for (const Seen& s : seen) {
        if (spec.window > 0 && position - s.position >= spec.window) continue;
        const double w = weight(spec, q.segment(head * d, d).dot(s.key.segment(kv, d)), 1);
        sum += w;
        out.segment(head * d, d) += w * s.value.segment(kv, d);
      }
      out.segment(head * d, d) /= sum;
    }
    return out;
  }

  template <class Layer>
  Row attended_rows(const pith::LayerSpec& spec, const Layer& cache, Index position, const Row& q, const Row& k, const Row& v) const {
    const pith::DecoderConfig& c = decoder_.config();
    const Index d = c.head_dim, group = c.num_attention_heads / c.num_key_value_heads;
    Row out(q.size());
    for (Index h = 0, first = 0; h < c.num_key_value_heads;
         first += static_cast<Index>(cache.heads[static_cast<std::size_t>(3 * h)]), ++h) {
      const Index rows = static_cast<Index>(cache.heads[static_cast<std::size_t>(3 * h)]);
      pith::Matrix<double> keys(rows + 1, d), values(rows + 1, d);
      Row mass = Row::Ones(rows + 1);
      for (Index r = 0; r < rows; ++r) {
        const auto at = static_cast<std::size_t>(first + r);
        keys.row(r) = widened<true>(cache.keys, first + r, d);
        values.row(r) = widened<false>(cache.values, first + r, d);
        if (counted_ && !cache.masses.empty()) mass[r] = double(cache.masses[at]);
        if (spec.window > 0 && position - cache.positions[at] >= spec.window) mass[r] = 0;
      }
      keys.row(rows) = stored<true>(cache.keys, k.segment(h * d, d));
      values.row(rows) = stored<false>(cache.values, v.segment(h * d, d));
      for (Index g = 0; g < group; ++g) {
        const Index head = (h * group + g) * d;
        Row weights = times(keys, q.segment(head, d)).col(0);
        for (Index r = 0; r <= rows; ++r) weights[r] = weight(spec, weights[r], mass[r]);
        weights /= weights.sum();
        out.segment(head, d) = transposed_times(values, weights).col(0);
      }
    }
    return out;
  }

  /// A row as it is stored: a key, or else a value.
  template <bool IsKey, class T> static pith::Matrix<double> widened(const std::vector<T>& all, Index row, Index d) {
    pith::Matrix<S> out(1, d);
    if constexpr (IsKey) {
      pith::detail::widen_key<T>(all.data() + row * pith::detail::key_units<T>(d), out.data(), d);
    } else {
      pith::detail::widen_value<T>(all.data() + row * pith::detail::value_units<T>(d), out.data(), d);
    }
    return out.template cast<double>();
  }
  /// A new row after the one rounding.
  template <bool IsKey, class T> static pith::Matrix<double> stored(const std::vector<T>&, const Row& row) {
    const pith::Vector<S> narrow = row.cast<S>();
    std::vector<T> kept(
        static_cast<std::size_t>((std::max)(pith::detail::key_units<T>(row.size()), pith::detail::value_units<T>(row.size()))));
    if constexpr (IsKey) {
      pith::detail::narrow_key<T>(narrow.data(), kept.data(), row.size());
    } else {
      pith::detail::narrow_value<T>(narrow.data(), kept.data(), row.size());
    }
    return widened<IsKey>(kept, 0, row.size());
  }

  const pith::Decoder<S>& decoder_;
  const pith::ModelAdapter<S>* adapter_;
  bool counted_;  ///< rows count as the tokens they stand for
};

}  // namespace pith_test
