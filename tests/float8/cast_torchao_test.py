"""Casts and scales against torchao, bit for bit: every granularity, fp8 format, rounding, input dtype and dim.

Usage: cast_torchao_test.py PEER, the binary of cast_peer.cc. The oracles are torchao's eager functions:
hp_tensor_to_float8_dynamic (tensorwise, axiswise), torch_blockwise_scale_* (1x128, 128x128) and to_mx (1x32).
"""
import itertools
import pathlib
import subprocess
import sys
import tempfile

import torch
from torchao.float8.config import ScalingGranularity
from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
from torchao.float8.float8_training_tensor import LinearMMConfig
from torchao.prototype.blockwise_fp8_training import kernels as blockwise
from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
ROUNDINGS = {"tensorwise": ["none", "pow2"], "axiswise": ["none", "pow2"], "1x128": ["none"], "128x128": ["none"],
             "1x32": ["floor", "rceil"]}


def wide(generator, rows, cols):
    """Values over many octaves."""
    return torch.randn(rows, cols, generator=generator) * 2.0 ** torch.randint(-30, 15, (rows, cols), generator=generator)


def with_special(generator, rows, cols, value):
    x = torch.randn(rows, cols, generator=generator)
    x[rows // 3, cols // 2] = value
    return x


def near_powers_of_two(rows, cols):
    """Rows whose largest element is a few units in the last place from 448 * 2^e: the pow2 rule's boundary."""
    x = torch.full((rows, cols), 1e-3)
    for row in range(rows):
        largest = torch.tensor(448.0 * 2.0 ** (row - rows // 2)).view(torch.int32)
        x[row, row % cols] = (largest + (row % 9) - 4).view(torch.float32)
    return x


def inputs():
    generator = torch.Generator().manual_seed(42)
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = torch.where(patterns.isfinite(), patterns, torch.zeros_like(patterns))
    yield "normal", torch.randn(256, 384, generator=generator)
    yield "wide", wide(generator, 256, 384)
    yield "patterns", finite.float().reshape(256, 256)
    yield "patterns_shuffled", finite.float()[torch.randperm(65536, generator=generator)].reshape(256, 256)
    yield "zeros", torch.zeros(128, 128)
    yield "tiny", torch.randn(128, 256, generator=generator) * 1e-14
    yield "subnormal", torch.randn(128, 256, generator=generator) * 1e-39
    yield "nan", with_special(generator, 256, 256, float("nan"))
    yield "infinite", with_special(generator, 256, 256, float("inf"))
    yield "negative_infinite", with_special(generator, 256, 256, float("-inf"))
    yield "near_powers_of_two", near_powers_of_two(128, 256)
    yield "huge", torch.randn(128, 128, generator=generator) * 1e37


def expected(x, float8, granularity, rounding, dim):
    """Codes in the shape of x, and inverse scales in ours."""
    dtype = FLOAT8[float8]
    if granularity in ("tensorwise", "axiswise"):
        tensorwise = granularity == "tensorwise"
        y = hp_tensor_to_float8_dynamic(
            x, dtype, LinearMMConfig(),
            scaling_granularity=ScalingGranularity.TENSORWISE if tensorwise else ScalingGranularity.AXISWISE,
            axiswise_dim=None if tensorwise else (-1 if dim == 1 else 0), round_scales_to_power_of_2=rounding == "pow2")
        return y._data, y._scale.reciprocal()
    if granularity == "128x128":
        return blockwise.torch_blockwise_scale_weight_quant(x, dtype=dtype)
    along = x if dim == 1 else x.t().contiguous()
    if granularity == "1x128":
        data, inverse_scale = blockwise.torch_blockwise_scale_act_quant_lhs(along, dtype=dtype)
    else:
        mode = ScaleCalculationMode.FLOOR if rounding == "floor" else ScaleCalculationMode.RCEIL
        inverse_scale, data = to_mx(along, dtype, 32, mode)
        inverse_scale = inverse_scale.reshape(along.shape[0], -1)
    return (data, inverse_scale) if dim == 1 else (data.t(), inverse_scale.t())


def as_bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def mismatch(path, tensor, what):
    """None, or a sentence. A NaN equals another: the sign it takes from a NaN amax depends on the order of torch's max."""
    raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    actual = raw.view(tensor.dtype).reshape(tensor.shape)
    differs = as_bytes(actual) != as_bytes(tensor)
    differs = differs.reshape(tensor.numel(), -1).any(dim=1)
    differs &= ~(actual.float().isnan() & tensor.float().isnan()).flatten()
    if not differs.any():
        return None
    at = int(differs.nonzero()[0])
    e, a = tensor.float().flatten()[at].item(), actual.float().flatten()[at].item()
    return f"{what}: {int(differs.sum())} of {tensor.numel()} differ, first at {at}: expected {e!r}, got {a!r}"


def cases():
    for (kind, x), dtype, float8, granularity in itertools.product(inputs(), DTYPES, FLOAT8, ROUNDINGS):
        if granularity == "1x32" and dtype == "fp16":
            continue  # to_mx takes bf16 and fp32 only
        if dtype == "fp16" and kind in ("huge", "patterns", "patterns_shuffled", "near_powers_of_two"):
            x = x.clamp(-65504, 65504)
        for rounding, dim in itertools.product(ROUNDINGS[granularity], (1, 0)):
            name = "-".join((kind, dtype, float8, granularity, rounding, str(dim)))
            yield name, x.to(DTYPES[dtype]), (dtype, float8, granularity, rounding, dim)


def main():
    torch.set_num_threads(1)
    failures = []
    all_cases = list(cases())
    with tempfile.TemporaryDirectory() as folder_name:
        folder = pathlib.Path(folder_name)
        with open(folder / "cases.txt", "w") as listing:
            for name, x, (dtype, float8, granularity, rounding, dim) in all_cases:
                as_bytes(x).numpy().tofile(folder / f"{name}.x")
                print(name, dtype, *x.shape, float8, granularity, rounding, dim, file=listing)
        subprocess.run([sys.argv[1], folder], check=True)
        for name, x, (_, *rest) in all_cases:
            data, inverse_scale = expected(x, *rest)
            for prefix in ("", "both_"):
                for what, tensor in (("data", data), ("inverse_scale", inverse_scale)):
                    failure = mismatch(folder / f"{name}.{prefix}{what}", tensor, prefix + what)
                    if failure:
                        failures.append(f"{name}: {failure}")
    print("\n".join(failures[:40]) or f"{len(all_cases)} casts equal torchao's bit for bit")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
