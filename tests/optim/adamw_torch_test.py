"""AdamW against torch.optim.AdamW and Adam (fused=True) on one thread: every bit of the parameters and of both moments.

Usage: adamw_torch_test.py PEER, the binary of adamw_peer.cc. Sizes cover whole vectors, remainders of every length,
one element and none; gradients hold zeros, subnormal squares and large values.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch

SIZES = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 217, 1000, 4099, 70001, 0]
# steps, lr, beta1, beta2, eps, weight_decay, gradient_scale, decoupled weight decay (AdamW)
CASES = [
    (12, 3e-4, 0.9, 0.95, 1e-8, 0.1, 1.0, 1),
    (12, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0, 1),
    (7, 8e-4, 0.9, 0.95, 1e-6, 0.01, 0.3712, 1),
    (5, 1e-2, 0.4, 0.5, 1e-8, 0.5, 1.0, 1),  # 1 - beta1 >= 0.5: the other form of lerp
    (7, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.5, 0),
    (5, 1e-3, 0.9, 0.95, 1e-8, 0.0, 1.0, 0),
]


def gradient(generator, size):
    g = torch.randn(size, generator=generator) * 10.0 ** torch.randint(-6, 3, (size,), generator=generator)
    g[torch.rand(size, generator=generator) < 0.05] = 0.0
    g[torch.rand(size, generator=generator) < 0.02] = 1e-21  # its square is subnormal
    return g


def mismatches(folder, kind, tensors):
    for i, tensor in enumerate(tensors):
        expected = tensor.detach().numpy()
        actual = np.fromfile(folder / f"out_{kind}{i}.bin", dtype=np.float32)
        assert actual.shape == expected.shape, (kind, i, actual.shape, expected.shape)
        differing = np.flatnonzero(actual.view(np.int32) != expected.view(np.int32))
        if differing.size:
            at = differing[0]
            yield (f"{kind}, size {expected.size}: {differing.size} differ, first at {at}: "
                   f"expected {expected[at].item().hex()}, got {actual[at].item().hex()}")


def run_case(peer, case):
    steps, lr, beta1, beta2, eps, weight_decay, scale, decoupled = case
    generator = torch.Generator().manual_seed(7)
    params = [torch.randn(size, generator=generator).requires_grad_() for size in SIZES]
    cls = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = cls(params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for i, param in enumerate(params):
            param.detach().numpy().tofile(folder / f"p{i}.bin")
        for step in range(1, steps + 1):
            for i, param in enumerate(params):
                param.grad = gradient(generator, param.numel())
                param.grad.numpy().tofile(folder / f"g{i}_{step}.bin")
                param.grad.mul_(scale)
            optimizer.step()
        arguments = [str(x) for x in (folder, len(params), steps, lr, beta1, beta2, eps, weight_decay, scale, decoupled)]
        subprocess.run([peer, *arguments], check=True)
        moments = [optimizer.state[param] for param in params]
        return [line for kind, tensors in (("p", params), ("m", [m["exp_avg"] for m in moments]),
                                           ("v", [m["exp_avg_sq"] for m in moments]))
                for line in mismatches(folder, kind, tensors)]


def main():
    torch.set_num_threads(1)
    failures = [f"{case}: {line}" for case in CASES for line in run_case(sys.argv[1], case)]
    print("\n".join(failures) or f"{len(CASES)} cases of {len(SIZES)} tensors equal bit for bit")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
