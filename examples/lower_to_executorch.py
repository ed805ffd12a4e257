"""Lowers a model that `narrowgauge export --format torchao` wrote (scheme int8-dynamic-act-int4-weight) to ExecuTorch.

    tools/python.sh examples/lower_to_executorch.py runs/mine/hf-torchao model.pte --length 128

Quantized linears run in XNNPACK's kernels for 8-bit activations and 4-bit weights. The program takes token ids
[1, LENGTH] (int64) and gives logits [1, LENGTH, vocabulary]. Needs the wheels of third_party/requirements-consumers.lock.
"""
import argparse
import os
import pathlib
import sys

CONSUMERS = pathlib.Path(__file__).resolve().parents[1] / "third_party" / "consumers"
sys.path.append(str(CONSUMERS))
os.environ["PATH"] = f"{CONSUMERS / 'executorch' / 'data' / 'bin'}:{os.environ['PATH']}"

import torch  # noqa: E402
import transformers  # noqa: E402
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: E402
from executorch.exir import to_edge_transform_and_lower  # noqa: E402


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits


def operators(graph_module):
    """Names of what a lowered graph calls, outside of what XNNPACK took over."""
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="directory of narrowgauge export --format torchao")
    parser.add_argument("output", type=pathlib.Path, help="the .pte file to write")
    parser.add_argument("--length", type=int, default=128, help="tokens a call")
    arguments = parser.parse_args()

    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32,
                                                              attn_implementation="sdpa").eval()
    model.requires_grad_(False)  # codes are integers
    num_linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    tokens = torch.zeros(1, arguments.length, dtype=torch.int64)
    with torch.no_grad():
        program = torch.export.export(Logits(model), (tokens,), strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    left = [name for name in operators(lowered.exported_program().graph_module)
            if "linear" in name or "addmm" in name or ".mm." in name]
    print(f"linear products in XNNPACK: {num_linears - len(left)} of {num_linears}")
    arguments.output.write_bytes(lowered.to_executorch().buffer)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
