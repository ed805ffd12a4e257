"""Muon against torch.optim.Muon at 1, 2, 3 and 5 ranks: every bit of parameters and momentum buffers.

Argument: the binary of muon_peer.cc. Shapes: tall, wide, square, fewer rows than ranks.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch

SHAPES = [(96, 32), (32, 96), (48, 48), (4, 40), (65, 17), (48, 48)]
# steps, lr, weight decay, momentum, nesterov, adjust_lr_fn
CASES = [
    (5, 2e-2, 0.1, 0.95, True, "original"),
    (4, 1e-3, 0.0, 0.9, False, "match_rms_adamw"),
]


def mismatches(folder, kind, tensors):
    for i, tensor in enumerate(tensors):
        expected = tensor.detach().numpy().ravel()
        actual = np.fromfile(folder / f"out_{kind}{i}.bin", dtype=np.float32)
        assert actual.shape == expected.shape, (kind, i, actual.shape, expected.shape)
        differing = np.flatnonzero(actual.view(np.int32) != expected.view(np.int32))
        if differing.size:
            error = np.abs(actual - expected).max()
            yield f"{kind}{i}: {differing.size} of {expected.size} differ, by at most {error}"


def run_case(case):
    steps, lr, weight_decay, momentum, nesterov, adjust = case
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = torch.optim.Muon(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
                                 adjust_lr_fn=adjust)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for i, parameter in enumerate(parameters):
            parameter.detach().numpy().tofile(folder / f"p{i}.bin")
        for step in range(1, steps + 1):
            for i, parameter in enumerate(parameters):
                parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.grad.numpy().tofile(folder / f"g{i}_{step}.bin")
            optimizer.step()
        buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter in parameters]
        for ranks in (1, 2, 3, 5):
            subprocess.run([sys.argv[1], folder, str(ranks), str(steps), str(lr), str(weight_decay), str(momentum),
                            str(int(nesterov)), adjust, *(f"{a}x{b}" for a, b in SHAPES)], check=True)
            for kind, tensors in (("p", parameters), ("m", buffers)):
                yield from (f"{ranks} ranks: {line}" for line in mismatches(folder, kind, tensors))


def main():
    torch.set_num_threads(1)
    failures = [f"{case}: {line}" for case in CASES for line in run_case(case)]
    print("\n".join(failures) or f"{len(CASES)} cases of {len(SHAPES)} matrices equal bit for bit")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
