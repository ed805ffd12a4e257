"""The peers of optimizer_step.cc: torch's fused AdamW and torchao's low-bit ones over the same parameters.

Prints one JSON object. Usage: optimizer_step.py NAME THREADS STEPS; NAME: torch-fused AdamW8bit AdamW4bit AdamWFp8.
"""
import json
import sys
import time

import torch
import torchao.optim

SHAPES = [(4096, 384)] * 2 + [(384, 384), (128, 384), (128, 384), (384, 384), (1024, 384), (1024, 384), (384, 1024)] * 6


def main():
    name, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    if name == "torch-fused":
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, fused=True)
    else:
        optimizer = getattr(torchao.optim, name)(parameters, lr=1e-3, weight_decay=0.1)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    print(json.dumps(dict(step_seconds=seconds, parameters=sum(p.numel() for p in parameters))))


if __name__ == "__main__":
    main()
