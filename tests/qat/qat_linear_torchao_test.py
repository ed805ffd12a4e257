"""Outputs and gradients of our FakeQuantizedLinear beside torchao's FakeQuantizedLinear.

Usage: qat_linear_torchao_test.py PEER, the binary of qat_linear_peer.cc. Outputs are torchao's: equal, or within the
product's rounding. Gradients are torchao's where those are right (integer schemes), and everywhere those of the
straight-through reference at cosine 0.99 or more, whatever the gradient's scale; torchao's float8 ones are shown not to be.
"""
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch
from torchao.quantization.granularity import PerRow
from torchao.quantization.qat.fake_quantize_config import (Float8FakeQuantizeConfig, Int4WeightFakeQuantizeConfig,
                                                           IntxFakeQuantizeConfig)
from torchao.quantization.qat.linear import FakeQuantizedLinear

PEER = sys.argv[1]
TOKENS, IN, OUT = 48, 256, 64
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SCALES = [1e-4, 1e-2, 1.0, 1e3]


def bf16_epsilon(dtype):
    return torch.finfo(dtype).eps


def int8_tokens():
    return IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False, scale_precision=None)


def schemes(dtype):
    """Name of ours, group, eps, and torchao's configurations. Scales in the input's dtype, as torchao infers from its
    Int8DynamicActivationIntxWeightConfig; eps is its default there."""
    yield "8da4w", 32, bf16_epsilon(dtype), int8_tokens(), IntxFakeQuantizeConfig(torch.int4, group_size=32, scale_precision=None)
    yield "float8-dynamic-act-float8-weight", 0, 0, Float8FakeQuantizeConfig(granularity=PerRow()), Float8FakeQuantizeConfig(granularity=PerRow())
    yield "float8-act-int4-weight", 128, 0, Float8FakeQuantizeConfig(granularity=PerRow()), Int4WeightFakeQuantizeConfig(128, torch.float8_e4m3fn)


def raw(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


class Case:
    def __init__(self, scheme, group, eps, dtype, scale, activation, weight):
        self.name = f"{scheme}-{dtype}-{scale}"
        self.line = f"{self.name} {dtype} {TOKENS} {IN} {OUT} {group} {eps} {scheme}"
        self.scheme, self.dtype = scheme, DTYPES[dtype]
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(TOKENS, IN, generator=generator).to(self.dtype)
        self.weight = (torch.randn(OUT, IN, generator=generator) * 0.3).to(self.dtype)
        self.bias = torch.randn(OUT, generator=generator).to(self.dtype)
        self.grad = (torch.randn(TOKENS, OUT, generator=generator) * scale).to(self.dtype)
        linear = FakeQuantizedLinear(IN, OUT, bias=True, activation_config=activation, weight_config=weight, dtype=self.dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            linear.bias.copy_(self.bias)
        x = self.x.clone().requires_grad_(True)
        y = linear(x)
        y.backward(self.grad)
        self.theirs = dict(y=y.detach(), grad_x=x.grad, grad_weight=linear.weight.grad, grad_bias=linear.bias.grad)
        with torch.no_grad():
            operands = linear.activation_fake_quantizer(self.x), linear.weight_fake_quantizer(linear.weight)
        self.reference = dict(grad_x=self.grad.double() @ operands[1].double(), grad_weight=self.grad.double().t() @ operands[0].double())

    def write(self, folder):
        for what in ("x", "weight", "bias", "grad"):
            (folder / f"{self.name}.{what}").write_bytes(raw(getattr(self, what)))

    def read(self, folder, what):
        like = self.theirs[what]
        return torch.frombuffer(bytearray((folder / f"{self.name}.{what}").read_bytes()), dtype=like.dtype).reshape(like.shape)


class BesideTorchao(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.cases = [Case(scheme, group, eps, dtype, scale, activation, weight)
                      for dtype in DTYPES for scale in SCALES
                      for scheme, group, eps, activation, weight in schemes(DTYPES[dtype])]
        for case in self.cases:
            case.write(self.folder)
        (self.folder / "cases.txt").write_text("".join(case.line + "\n" for case in self.cases))
        subprocess.run([PEER, self.folder], check=True)

    def test_outputs_are_torchaos(self):
        for case in self.cases:
            with self.subTest(case.name):
                self.assertTrue(torch.equal(case.read(self.folder, "y"), case.theirs["y"]))

    def test_gradients_are_straight_through_at_any_scale(self):
        for case in self.cases:
            with self.subTest(case.name):
                for what, reference in case.reference.items():
                    # The reference does not stop at clipped values, of which there are few.
                    self.assertGreaterEqual(cosine(case.read(self.folder, what), reference), 0.99)
                expected = case.grad.sum(0, dtype=case.dtype)
                self.assertTrue(torch.equal(case.read(self.folder, "grad_bias"), expected))

    def test_integer_gradients_are_torchaos(self):
        for case in self.cases:
            if case.scheme != "8da4w":
                continue
            with self.subTest(case.name):
                for what in ("grad_x", "grad_weight"):
                    ours, theirs = case.read(self.folder, what), case.theirs[what]
                    # torchao's chain multiplies by 1 / scale and by scale again, each rounded.
                    self.assertGreater(cosine(ours, theirs), 0.9999)
                    same_zeros = (ours == 0) == (theirs == 0)
                    self.assertGreater(same_zeros.double().mean().item(), 0.9999)

    def test_torchaos_float8_gradients_are_lost(self):
        """What ours are measured against is a defect of the peer: it casts gradients to unscaled fp8."""
        worst = min(cosine(case.theirs["grad_weight"], case.reference["grad_weight"]) for case in self.cases
                    if case.scheme.startswith("float8-dynamic"))
        print(f"torchao's float8 weight gradients: worst cosine {worst:.3f}")
        self.assertLess(worst, 0.99)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
