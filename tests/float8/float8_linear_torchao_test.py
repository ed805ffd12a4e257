"""Float8Linear against torchao's: output and all gradients, same weights, inputs and recipe.

Usage: float8_linear_torchao_test.py PEER, the binary of float8_linear_peer.cc. torchao computes in its emulation (fp32
products of dequantized operands), which runs on any CPU. Where scales are powers of two both emulations dequantize to
the same numbers, so every bit of the output without its bias and of both large gradients agrees; elsewhere torchao
divides by the scale where we multiply by its reciprocal, a last bit of fp32. Our fast products differ from emulation
by the order of sums and one rounding.
"""
import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import torch
from torchao.float8.config import Float8LinearConfig
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_utils import compute_error


SHAPES = [(16, 16, 32), (96, 160, 192), (33, 64, 48), (256, 128, 64)]  # tokens, in, out
RECIPES = ["tensorwise", "rowwise", "rowwise_with_gw_hp"]
NAMES = ["y", "grad_x", "grad_w", "grad_b"]


def to_bytes(tensor):
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def theirs(recipe, dtype, x, w, b, g):
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=True)
    linear = torch.nn.Linear(w.shape[1], w.shape[0], dtype=dtype)
    linear.weight.data.copy_(w)
    linear.bias.data.copy_(b)
    linear = Float8Linear.from_float(linear, config)
    x = x.clone().requires_grad_()
    y = linear(x)
    y.backward(g)
    return dict(zip(NAMES, (y.detach(), x.grad, linear.weight.grad, linear.bias.grad)))


def ours(peer, recipe, dtype, emulate, x, w, b, g):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for label, tensor in dict(x=x, w=w, b=b, g=g).items():
            (folder / f"{label}.bin").write_bytes(to_bytes(tensor))
        sizes = [str(size) for size in (*x.shape, w.shape[0])]
        subprocess.run([peer, name, recipe, str(dtype).removeprefix("torch."), str(int(emulate)), *sizes], check=True)
        read = lambda label, shape: torch.frombuffer(bytearray((folder / f"{label}.bin").read_bytes()),
                                                     dtype=dtype).view(shape)
        return {"y": read("y", g.shape), "grad_x": read("grad_x", x.shape), "grad_w": read("grad_w", w.shape),
                "grad_b": read("grad_b", b.shape)}


def compare(peer, recipe, dtype, shape):
    tokens, features_in, features_out = shape
    generator = torch.Generator().manual_seed(tokens)
    draw = lambda *sizes, scale=1.0: (torch.randn(*sizes, generator=generator) * scale).to(dtype)
    x, w = draw(tokens, features_in), draw(features_out, features_in, scale=features_in ** -0.5)
    b, g = draw(features_out), draw(tokens, features_out, scale=1e-3)
    x[:, 0] *= 30  # an outlier column, as activations have
    expected = theirs(recipe, dtype, x, w, b, g)
    # One rounding to dtype on either side, and for y another where torchao adds the bias after it.
    least_db = 48.0 if dtype is torch.bfloat16 else 100.0
    for emulate in (True, False):
        actual = ours(peer, recipe, dtype, emulate, x, w, b, g)
        for name in NAMES:
            exact = emulate and recipe != "tensorwise" and name in ("grad_x", "grad_w")
            equal = torch.equal(actual[name], expected[name])
            error = float("inf") if equal else compute_error(expected[name].double(), actual[name].double()).item()
            if exact and not equal or not error >= least_db:
                yield (f"{recipe} {dtype} {shape} {'emulated' if emulate else 'fast'} {name}: {error:.1f} dB, expected "
                       f"{'equal bits' if exact else f'at least {least_db} dB'}")


def main():
    torch.set_num_threads(1)
    failures = [line for recipe in RECIPES for dtype in (torch.bfloat16, torch.float32) for shape in SHAPES
                for line in compare(sys.argv[1], recipe, dtype, shape)]
    print("\n".join(failures) or f"{len(RECIPES)} recipes x 2 dtypes x {len(SHAPES)} shapes agree with torchao")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
