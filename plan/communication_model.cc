#include "plan/communication_model.h"

#include <algorithm>

#include "plan/model_size.h"

namespace narrowgauge::plan {
namespace {

constexpr double kAlphaSeconds = 8.4e-6;
constexpr double kLinkHopSeconds = 3.4e-6;
constexpr double kNetworkHopSeconds = 14e-6;
constexpr double kLinkShare = 0.80;
constexpr double kNetworkShare = 0.85;

// Parameters travel in the compute dtype, those of FP8 linears in one byte where asked for.
double gathered_bytes(const std::vector<ParameterSize>& parameters, const TrainingSpec& spec) {
  double bytes = 0;
  for (const ParameterSize& parameter : parameters) {
    const bool narrow = spec.uses_float8() && spec.float8_all_gather && parameter.is_block_linear &&
                        float8_refusal(parameter.row_numel, parameter.rows).empty();
    bytes += static_cast<double>(parameter.numel() * (narrow ? 1 : spec.param_bytes));
  }
  return bytes;
}

}  // namespace

double ring_seconds(double bytes, int64_t num_ranks, const Hardware& hardware) {
  if (num_ranks < 2 || hardware.link_bandwidth == 0) {
    return 0;
  }
  const int64_t nodes = (num_ranks + hardware.per_node - 1) / hardware.per_node;
  const double network_hops = nodes > 1 ? static_cast<double>(nodes) : 0;
  const double link_hops = static_cast<double>(num_ranks - 1) - std::max(0.0, network_hops - 1);
  double bandwidth = kLinkShare * hardware.link_bandwidth;
  if (nodes > 1) {
    const double node_network = static_cast<double>(hardware.per_node) * hardware.network_bandwidth;
    bandwidth = std::min(bandwidth, kNetworkShare * node_network);
  }
  const auto n = static_cast<double>(num_ranks);
  return kAlphaSeconds + link_hops * kLinkHopSeconds + network_hops * kNetworkHopSeconds +
         bytes * (n - 1) / n / bandwidth;
}

CommunicationTime communication_time(const TrainingSpec& spec, const Hardware& hardware) {
  const auto block = block_parameters(spec.model);
  const auto root = root_parameters(spec.model);
  const auto layers = static_cast<double>(spec.model.num_layers);
  const auto passes = static_cast<double>(spec.accumulation_steps);
  CommunicationTime time;
  const double block_gather =
      ring_seconds(gathered_bytes(block, spec), spec.shard_degree, hardware);
  const double root_gather = ring_seconds(gathered_bytes(root, spec), spec.shard_degree, hardware);
  const double again = !spec.reshard_after_forward ? 0
                       : spec.reshard_ranks == 0   ? block_gather
                                                   : ring_seconds(gathered_bytes(block, spec),
                                                                  spec.reshard_ranks, hardware);
  time.all_gather = passes * (layers * (block_gather + again) + root_gather);
  const auto reduced = [&](const std::vector<ParameterSize>& parameters) {
    return static_cast<double>(total_numel(parameters) * spec.reduce_bytes);
  };
  const double root_scatter = ring_seconds(reduced(root), spec.shard_degree, hardware);
  time.reduce_scatter =
      layers * ring_seconds(reduced(block), spec.shard_degree, hardware) + root_scatter;
  if (spec.replicate_degree > 1) {
    const auto shards = static_cast<double>(spec.shard_degree);
    // Replicas are the outer axis: a ring over them leaves the node unless the world fits one.
    Hardware outer = hardware;
    outer.per_node = spec.world_size() <= hardware.per_node ? hardware.per_node : 1;
    time.all_reduce =
        2 * (layers * ring_seconds(reduced(block) / shards, spec.replicate_degree, outer) +
             ring_seconds(reduced(root) / shards, spec.replicate_degree, outer));
  }
  time.first_and_last = passes * root_gather + root_scatter;
  return time;
}

double exposed_seconds(const CommunicationTime& time, double compute_seconds,
                       double exposed_share) {
  const double beside = time.total() - time.first_and_last;
  const double hidden = std::min(beside, compute_seconds);
  return time.first_and_last + (beside - hidden) + exposed_share * hidden;
}

}  // namespace narrowgauge::plan
