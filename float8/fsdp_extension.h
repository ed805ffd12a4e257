#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "float8/weight_gather.h"
#include "fsdp/policies.h"

namespace narrowgauge::float8 {

// For FullyShardOptions::make_extension: weights of Float8Linears travel and are cast as
// WeightGather describes, in fp8 where the layer's config says enable_fsdp_float8_all_gather, so
// that the whole weight is held in fp8 between unshard and reshard, cast once for all micro-batches
// where it stays (one shard) and once for each gather where it does not. Other parameters, and
// weights that some product reads in high precision or that are not what is cast, travel as
// themselves.
//
// param_dtype: as in the MixedPrecisionPolicy. lifetime.num_shards: the size of the shard axis;
// kept_after_forward: the group does not reshard after forward (the root's default).
fsdp::ParamExtensionFactory float8_param_extension(std::optional<at::ScalarType> param_dtype,
                                                   const WeightLifetime& lifetime);

}  // namespace narrowgauge::float8
