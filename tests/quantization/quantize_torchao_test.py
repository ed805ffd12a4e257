"""Codes, scales, zero points and values of every grid against the peers, bit for bit.

Usage: quantize_torchao_test.py PEER, the binary of quantize_peer.cc. Oracles, all on CPU: torchao's
choose_qparams_affine, quantize_affine and dequantize_affine; its Int4WeightFakeQuantizer and Float8FakeQuantizer;
to_mx and to_dtype; nvfp4_quantize. Q4_0 and Q8_0: the lines of llama.cpp's gguf-py.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale, unpack_uint4
from torchao.quantization.granularity import PerRow, PerTensor
from torchao.quantization.qat.fake_quantize_config import Float8FakeQuantizeConfig, Int4WeightFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import Float8FakeQuantizer, Int4WeightFakeQuantizer
from torchao.quantization.quant_primitives import (MappingType, _choose_scale_float8, _quantize_affine_float8,
                                                   choose_qparams_affine, dequantize_affine, quantize_affine)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MAPPINGS = {"symmetric": MappingType.SYMMETRIC, "symmetric_no_clipping_err": MappingType.SYMMETRIC_NO_CLIPPING_ERR,
            "asymmetric": MappingType.ASYMMETRIC}
ROWS, COLS = 24, 256


def spec(grid="affine", bits=8, is_signed=True, granularity="per_row", group_size=0, mapping="symmetric",
         scale_dtype="input", zero_point_domain="none", zero_point_dtype="int8", eps=2.0**-23, float8_rows_first=False):
    return dict(grid=grid, bits=bits, is_signed=is_signed, granularity=granularity, group_size=group_size, mapping=mapping,
                scale_dtype=scale_dtype, zero_point_domain=zero_point_domain, zero_point_dtype=zero_point_dtype, eps=eps,
                float8_rows_first=float8_rows_first)


def inputs():
    generator = torch.Generator().manual_seed(7)
    normal = torch.randn(ROWS, COLS, generator=generator)
    yield "normal", normal
    yield "weights", normal * 0.02
    yield "tiny", normal * 1e-9
    yield "positive", normal.abs() + 1.0
    yield "negative", -normal.abs() * 3.0 - 0.5
    yield "wide", normal * 2.0 ** torch.randint(-12, 8, (ROWS, COLS), generator=generator)
    zero_rows = normal.clone()
    zero_rows[::3] = 0.0
    yield "zero_rows", zero_rows
    halves = torch.randint(-30, 31, (ROWS, COLS), generator=generator).float() * 0.25
    yield "ties", halves


def affine_specs():
    for granularity, group in (("per_group", 32), ("per_row", 0), ("per_tensor", 0), ("per_token", 0)):
        for bits in range(2, 9):
            for mapping in MAPPINGS:
                for signed in (True, False):
                    if mapping == "symmetric_no_clipping_err" and not signed:
                        continue  # quant_min 0: torchao divides by it
                    domain = "int" if mapping == "asymmetric" or not signed else "none"
                    yield spec(bits=bits, is_signed=signed, granularity=granularity, group_size=group, mapping=mapping,
                               zero_point_domain=domain)
    yield spec(bits=4, granularity="per_group", group_size=32, eps=-1.0)
    yield spec(granularity="per_token", mapping="asymmetric", zero_point_domain="int", eps=-1.0)
    yield spec(bits=4, granularity="per_group", group_size=32, scale_dtype="float32")
    yield spec(granularity="per_token", mapping="asymmetric", zero_point_domain="int", scale_dtype="float32", eps=2.0**-23)


def block_size(s, x):
    return {"per_tensor": tuple(x.shape), "per_group": (1, s["group_size"])}.get(s["granularity"], (1, x.shape[1]))


def affine_oracle(s, x):
    low = -(2 ** (s["bits"] - 1)) if s["is_signed"] else 0
    high = low + 2 ** s["bits"] - 1
    code = torch.int8 if s["is_signed"] else torch.uint8
    scale_dtype = None if s["scale_dtype"] == "input" else DTYPES[s["scale_dtype"]]
    eps = None if s["eps"] < 0 else s["eps"]
    block = block_size(s, x)
    scale, zero = choose_qparams_affine(x, MAPPINGS[s["mapping"]], block, code, low, high, eps, scale_dtype, code,
                                        keepdim=True)
    codes = quantize_affine(x, block, scale, zero, code, low, high)
    values = dequantize_affine(codes, block, scale, zero, code, low, high, output_dtype=x.dtype)
    return {"codes": codes, "scale": scale, "values": values} | ({} if s["zero_point_domain"] == "none" else {"zero_point": zero})


def float8_oracle(s, x):
    granularity = PerTensor() if s["granularity"] == "per_tensor" else PerRow()
    config = Float8FakeQuantizeConfig(torch.float8_e4m3fn, granularity, hp_value_lb=s["eps"])
    scale = _choose_scale_float8(x, block_size(s, x), torch.float8_e4m3fn, hp_value_lb=s["eps"])
    return {"codes": _quantize_affine_float8(x, scale), "scale": scale, "values": Float8FakeQuantizer(config)(x)}


def float_zero_point_oracle(s, x):
    """The prepared values are torchao's where scales stay fp32; what it stores after convert is MSLK's int4_row_quantize_zp,
    which is not installed here: its four lines, with scales and zero points rounded afterwards."""
    groups = x.float().view(ROWS, -1, s["group_size"])
    low = groups.amin(-1, keepdim=True)
    scale = torch.clamp(groups.amax(-1, keepdim=True) - low, min=1e-6) / 15
    zero = low + scale * 8
    codes = groups.sub(low).div(scale).round().clamp(0, 15)
    stored = DTYPES[s["scale_dtype"]]
    scale, zero = scale.to(stored), zero.to(stored)
    values = ((codes - 8) * scale.float() + zero.float()).view_as(x).to(x.dtype)
    if stored == torch.float32:
        fake = Int4WeightFakeQuantizer(Int4WeightFakeQuantizeConfig(s["group_size"], torch.bfloat16))(x)
        assert torch.equal(values, fake), "the oracle is not torchao's"
    return {"codes": codes.view_as(x).to(torch.uint8), "scale": scale, "zero_point": zero, "values": values}


def float8_act_int4_oracle(s, x):
    return {"values": Int4WeightFakeQuantizer(Int4WeightFakeQuantizeConfig(s["group_size"], torch.float8_e4m3fn))(x)}


def mx_oracle(s, x):
    dtype = torch.float8_e4m3fn if s["grid"] == "mxfp8" else torch.float4_e2m1fn_x2
    scale, codes = to_mx(x, dtype, 32, ScaleCalculationMode.RCEIL)
    values = to_dtype(codes, scale, dtype, 32, x.dtype)
    return {"codes": codes if s["grid"] == "mxfp8" else unpack_uint4(codes), "scale": scale.view(torch.uint8), "values": values}


def nvfp4_oracle(s, x):
    outer = per_tensor_amax_to_scale(x.abs().max())
    scale, codes = nvfp4_quantize(x, 16, outer)
    # Of a bf16 tensor torchao multiplies the two scales in bf16, which no GPU does: its fp32 path is the oracle.
    values = NVFP4Tensor.to_nvfp4(x.float(), per_tensor_scale=outer).dequantize(torch.float32).to(x.dtype)
    return {"codes": unpack_uint4(codes), "scale": scale, "outer_scale": outer, "values": values}


def gguf_oracle(s, x):
    """gguf-py 0.19, quants.py, Q4_0 and Q8_0: quantize_blocks and dequantize_blocks, without the packing of nibbles."""
    blocks = x.float().numpy().reshape(-1, 32)
    if s["grid"] == "gguf_q4_0":
        largest = abs(blocks).argmax(axis=-1, keepdims=True)
        d = np.take_along_axis(blocks, largest, axis=-1) / np.float32(-8)
    else:
        d = abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        reciprocal = np.where(d == 0, 0, 1 / d)
    if s["grid"] == "gguf_q4_0":
        sums = np.float64(blocks) * np.float64(reciprocal) + np.float64(8.5)
        codes = np.trunc(sums.astype(np.float32)).astype(np.uint8).clip(0, 15)
        offsets = codes.astype(np.float32) - np.float32(8)
    else:
        scaled = blocks * reciprocal
        whole = np.floor(abs(scaled))
        codes = (np.sign(scaled) * (whole + np.floor(2 * (abs(scaled) - whole)))).astype(np.int8)
        offsets = codes.astype(np.float32)
    with np.errstate(over="ignore"):
        d = d.astype(np.float16)
    values = torch.from_numpy(d.astype(np.float32) * offsets).reshape(ROWS, COLS).to(x.dtype)
    return {"codes": torch.from_numpy(codes), "scale": torch.from_numpy(d), "values": values}


def cases():
    """(spec, oracle, dtypes, names of inputs it does not take and why)"""
    wide = ("bfloat16", "float32")
    for s in affine_specs():
        # fp16 has no reciprocal of scales below 2^-16, on either side; eps of fp32 is one.
        yield s, affine_oracle, wide if s["eps"] > 0 else DTYPES, ()
    for granularity in ("per_row", "per_tensor"):
        yield spec("float8", granularity=granularity, scale_dtype="float32", eps=1e-12), float8_oracle, wide, ()
    for stored in wide:
        yield spec(bits=4, is_signed=False, granularity="per_group", group_size=128, mapping="asymmetric", scale_dtype=stored,
                   zero_point_domain="float", zero_point_dtype=stored, eps=1e-6), float_zero_point_oracle, wide, ()
    yield spec(bits=4, granularity="per_group", group_size=128, mapping="symmetric_full_range", eps=1e-6,
               float8_rows_first=True), float8_act_int4_oracle, wide, ()
    yield spec("mxfp8", granularity="per_group", group_size=32, scale_dtype="uint8"), mx_oracle, wide, ()
    yield spec("mxfp4", 4, granularity="per_group", group_size=32, scale_dtype="uint8"), mx_oracle, wide, ()
    yield spec("nvfp4", 4, granularity="per_group", group_size=16, scale_dtype="float8_e4m3fn"), nvfp4_oracle, wide, ()
    for grid, bits, signed in (("gguf_q4_0", 4, False), ("gguf_q8_0", 8, True)):
        yield spec(grid, bits, signed, "per_group", 32, scale_dtype="float16"), gguf_oracle, wide, ()


def raw(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def main():
    peer = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        expected, lines = [], []
        for number, (s, oracle, dtypes, excluded) in enumerate(cases()):
            for dtype in dtypes:
                for kind, x in inputs():
                    if kind in excluded:
                        continue
                    x = x.to(DTYPES[dtype])
                    name = f"{number}_{dtype}_{kind}"
                    (folder / f"{name}.x").write_bytes(raw(x))
                    lines.append(f"{name} {dtype} {ROWS} {COLS} {json.dumps(s, separators=(',', ':'))}")
                    expected.append((name, s, oracle(s, x)))
        (folder / "cases.txt").write_text("\n".join(lines) + "\n")
        subprocess.run([peer, str(folder)], check=True)
        failures = []
        for name, s, tensors in expected:
            for what, tensor in tensors.items():
                ours = (folder / f"{name}.{what}").read_bytes()
                if ours != raw(tensor):
                    theirs = np.frombuffer(raw(tensor), np.uint8)
                    mine = np.frombuffer(ours, np.uint8)
                    differing = int((theirs != mine).sum()) if len(theirs) == len(mine) else -1
                    failures.append(f"{name} {what}: {differing} of {len(theirs)} bytes differ; {s}")
        for failure in failures[:20]:
            print(failure, file=sys.stderr)
        print(f"{len(expected)} cases, {len(failures)} differences")
        sys.exit(1 if failures or len(expected) < 1000 else 0)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
