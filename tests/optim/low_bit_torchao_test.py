"""LowBitAdam against torchao's optimizers: every bit of parameters, codes and scales after each of several steps.

Argument: the binary of low_bit_peer.cc. torchao's step runs as users run it, compiled. Shapes: one whose rows are
blocks, one whose blocks cross rows, one that blocks do not divide (it stays fp32). Adam4bit and AdamFp8 differ from
those here in nothing that is not tested by another: compiling is most of the time.
"""
import pathlib
import subprocess
import sys
import tempfile

import torch
from torchao.optim import Adam8bit, AdamW4bit, AdamW8bit, AdamWFp8

PEER = sys.argv[1]
SHAPES = [(32, 256), (64, 96), (100, 41)]
# class, our format, decoupled, dtype, lr, betas, eps, weight decay
CASES = [
    (AdamW8bit, "8bit", 1, torch.float32, 1e-3, (0.9, 0.999), 1e-8, 0.1),
    (AdamW4bit, "4bit", 1, torch.float32, 1e-3, (0.9, 0.95), 1e-8, 0.1),
    (AdamWFp8, "fp8", 1, torch.float32, 1e-2, (0.9, 0.95), 1e-6, 0.0),
    (Adam8bit, "8bit", 0, torch.float32, 1e-3, (0.4, 0.45), 1e-8, 0.1),
    (AdamW8bit, "8bit", 1, torch.bfloat16, 1e-2, (0.9, 0.95), 1e-8, 0.1),
]
STEPS = 7


def gradient(generator, shape, dtype):
    g = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-6, 3, shape, generator=generator)
    g[torch.rand(shape, generator=generator) < 0.1] = 0.0
    g[torch.rand(shape, generator=generator) < 0.02] = 1e-21  # its square is subnormal
    if shape == SHAPES[0]:
        g[3] = 0.0  # a block of zeros: its scale is the smallest there is
    return g.to(dtype)


def as_bytes(tensor):
    return tensor.detach().contiguous().view(torch.uint8).flatten()


def states(parameter, state):
    """Name in our checkpoint, torchao's tensor."""
    for name in ("exp_avg", "exp_avg_sq"):
        value = state[name]
        if hasattr(value, "codes"):
            yield f"{parameter}.{name}.codes", value.codes
            yield f"{parameter}.{name}.scale", value.scale
        else:
            yield f"{parameter}.{name}", value


def mismatches(folder, name, expected):
    actual = torch.frombuffer(bytearray((folder / f"out_{name}.bin").read_bytes()), dtype=torch.uint8)
    expected = as_bytes(expected)
    if actual.numel() != expected.numel():
        yield f"{name}: {actual.numel()} bytes, torchao has {expected.numel()}"
    elif differing := (actual != expected).nonzero().flatten().tolist():
        yield f"{name}: {len(differing)} of {actual.numel()} bytes differ, first at {differing[0]}"


def run_case(case):
    cls, form, decoupled, dtype, lr, betas, eps, weight_decay = case
    generator = torch.Generator().manual_seed(5)
    # torchao keeps moments that are not quantized in the dtype of the parameter, we in fp32.
    shapes = SHAPES if dtype == torch.float32 else SHAPES[:2]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    optimizer = cls(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for i, parameter in enumerate(parameters):
            (folder / f"p{i}.bin").write_bytes(as_bytes(parameter).numpy().tobytes())
        for step in range(1, STEPS + 1):
            for i, parameter in enumerate(parameters):
                parameter.grad = gradient(generator, tuple(parameter.shape), dtype)
                (folder / f"g{i}_{step}.bin").write_bytes(as_bytes(parameter.grad).numpy().tobytes())
            optimizer.step()
            if step not in (1, 2, STEPS):
                continue
            sizes = [f"{rows}x{columns}" for rows, columns in shapes]
            subprocess.run([PEER, folder, form, str(dtype).removeprefix("torch."), str(decoupled), str(step), str(lr),
                            *map(str, betas), str(eps), str(weight_decay), *sizes], check=True)
            for i, parameter in enumerate(parameters):
                yield from (f"step {step}: {line}" for line in mismatches(folder, f"p{i}", parameter))
                for state_name, value in states(i, optimizer.state[parameter]):
                    yield from (f"step {step}: {line}" for line in mismatches(folder, state_name, value))


def main():
    torch.set_num_threads(1)
    failures = []
    for case in CASES:
        failures += [f"{case[0].__name__} {case[3]}: {line}" for line in run_case(case)]
    print("\n".join(failures) or f"{len(CASES)} optimizers equal torchao's bit for bit at steps 1, 2 and {STEPS}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
