#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "fsdp/policies.h"

namespace narrowgauge::qat {

// For FullyShardOptions::make_extension: the weight of a FakeQuantizedLinear travels as the values
// that it will have, in param_dtype, so that each rank fake-quantizes its own rows and does so once
// for every change of the shard, whatever the number of micro-batches and recomputations. Where a
// scale spans the whole tensor (per tensor, NVFP4) the weight travels as it is and every rank does
// all of it after each gather. Other parameters travel as themselves (null).
//
// param_dtype: as in the MixedPrecisionPolicy. offloaded: shards lie on the CPU beside another
// compute device.
fsdp::ParamExtensionFactory fake_quantize_extension(std::optional<c10::ScalarType> param_dtype,
                                                    bool offloaded);

}  // namespace narrowgauge::qat
