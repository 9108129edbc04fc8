#include <span>

#include <pith/prebuilt.hpp>

namespace pith { inline namespace v0 {

namespace detail {
template <int width, int alignment, class Many, class Few, bool bf16>
const char PrebuiltFor<width, alignment, Many, Few, bf16>::the_same_instructions = 0;
template struct PrebuiltFor<Simd<float>::width, EIGEN_MAX_ALIGN_BYTES, ManyLanes, FewLanes, has_bf16_pairs>;
}  // namespace detail

template struct detail::DecoderModel<float>;
template class Decoder<float>;
template class Session<float, float>;
template class KvCache<float>;
template class detail::AttendTile<float>;
template void detail::attend_observed<float>(const ConstMatrixRef<float>&, const KvView<float>&, MatrixRef<float>, Workspace&,
                                             detail::TileObserver<float>, const AttendOptions<float>&);
template class VisionTower<float>;
template std::span<const PolicyEntry<float>> policy_catalogue<float>();

}}  // namespace pith::v0
