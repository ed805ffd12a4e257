#pragma once

#include <cstdint>

#include "plan/hardware.h"
#include "plan/training_spec.h"

// Alpha-beta model of ring collectives. All-gather or reduce-scatter of `bytes` (the whole tensor)
// over n ranks takes n - 1 hops, each of which moves bytes / n:
//
//   t = alpha + sum over hops of latency + bytes (n - 1) / n / B
//
// with NCCL's latencies (alpha 8.4 us, hop 3.4 us over NVLink, 14 us over the network) and B the
// slowest link of the ring: 0.8 of the node's link (361 of 450 GB/s measured on eight H200), or
// 0.85 of the node's adapters together, since the rings of a node share out its adapters. An
// all-reduce is a reduce-scatter and an all-gather.

namespace narrowgauge::plan {

double ring_seconds(double bytes, int64_t num_ranks, const Hardware& hardware);

// Seconds that one rank's collectives of a step take if nothing else runs.
struct CommunicationTime {
  double all_gather = 0;      // parameters, before forward and, where resharded, before backward
  double reduce_scatter = 0;  // gradients, once a step
  double all_reduce = 0;      // their shards over replicas
  double first_and_last = 0;  // of these: what no computation runs beside

  double total() const { return all_gather + reduce_scatter + all_reduce; }
};

CommunicationTime communication_time(const TrainingSpec& spec, const Hardware& hardware);

// What of it lengthens a step whose computation takes `compute_seconds`: the parts beside nothing,
// what exceeds the computation, and the given share of the rest.
double exposed_seconds(const CommunicationTime& time, double compute_seconds, double exposed_share);

}  // namespace narrowgauge::plan
