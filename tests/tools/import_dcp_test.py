"""tools/import_dcp.py on checkpoints that torch.distributed.checkpoint wrote: two FSDP2 ranks, torchtitan's Llama names.

Argument: import_dcp.py. The logits of transformers on the imported directory must be those of the model that was saved.
"""
import contextlib
import io
import json
import os
import pathlib
import pickle
import runpy
import socket
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

TOOL = os.path.abspath(sys.argv[1])
DIM, HEADS, KV_HEADS, LAYERS, FFN, VOCABULARY = 48, 6, 2, 3, 72, 97
THETA = 10000.0


def rotate(x):
    """torchtitan's apply_rotary_emb: x [batch, t, heads, head_dim], neighbouring elements are a complex number."""
    t, size = x.shape[1], x.shape[3]
    frequencies = 1.0 / THETA ** (torch.arange(0, size, 2)[: size // 2].float() / size)
    angles = torch.outer(torch.arange(t).float(), frequencies)
    turns = torch.polar(torch.ones_like(angles), angles).view(1, t, 1, size // 2)
    return torch.view_as_real(torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * turns).flatten(3)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        size = DIM // HEADS
        self.wq = nn.Linear(DIM, HEADS * size, bias=False)
        self.wk = nn.Linear(DIM, KV_HEADS * size, bias=False)
        self.wv = nn.Linear(DIM, KV_HEADS * size, bias=False)
        self.wo = nn.Linear(HEADS * size, DIM, bias=False)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (w(x).view(b, t, -1, DIM // HEADS) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q), rotate(k)
        k, v = (y.repeat_interleave(HEADS // KV_HEADS, dim=2) for y in (k, v))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w3 = nn.Linear(DIM, FFN, bias=False), nn.Linear(DIM, FFN, bias=False)
        self.w2 = nn.Linear(FFN, DIM, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(DIM, eps=1e-5), nn.RMSNorm(DIM, eps=1e-5)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleDict({str(i): Block() for i in range(LAYERS)})
        self.norm = nn.RMSNorm(DIM, eps=1e-5)
        self.output = nn.Linear(DIM, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for block in self.layers.values():
            x = block(x)
        return self.output(self.norm(x))


def tokens():
    return torch.randint(VOCABULARY, (2, 19), generator=torch.Generator().manual_seed(5))


def save(rank, port, folder):
    """One of two ranks: a step of AdamW, then model and optimizer as torchtitan saves them; rank 0 keeps the logits."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Transformer()
    for parameter in model.parameters():  # norms of other values than 1
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    for block in model.layers.values():
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    F.cross_entropy(model(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({**model_state, "optimizer": optimizer_state, "train_state": {"step": torch.tensor(1)}}, checkpoint_id=folder)
    with torch.no_grad():
        logits = model(tokens())
    if rank == 0:
        torch.save(logits, folder + ".logits")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ImportDcp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        torch.multiprocessing.spawn(save, args=(free_port(), str(cls.folder / "step-1")), nprocs=2)
        cls.logits = torch.load(cls.folder / "step-1.logits")

    def run_tool(self, *arguments, folder="step-1"):
        """As a command, in this process: importing torch takes seconds. What goes wrong besides comes as an exception."""
        errors = io.StringIO()
        code = 0
        with mock.patch.object(sys, "argv", [TOOL, str(self.folder / folder), *map(str, arguments)]):
            with contextlib.redirect_stderr(errors):
                try:
                    runpy.run_path(TOOL, run_name="__main__")
                except SystemExit as exit:
                    code = 1
                    print(exit.code, file=errors)
        return subprocess.CompletedProcess([], code, "", errors.getvalue())

    def fails(self, text, *arguments, folder="step-1"):
        output = self.folder / "failed"
        ended = self.run_tool("--output", output, *arguments, folder=folder)
        self.assertEqual(ended.returncode, 1, ended.stderr)
        self.assertIn(text, ended.stderr)
        self.assertFalse(output.exists() or output.with_name("failed.tmp").exists())

    def test_transformers_computes_the_same_logits(self):
        for name, more in (("one file", []), ("several", ["--max-file-bytes", "20000"])):
            output = self.folder / name
            ended = self.run_tool("--output", output, "--num-heads", str(HEADS), "--rope-theta", str(THETA), *more)
            self.assertEqual(ended.returncode, 0, ended.stderr)
            model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
            with torch.no_grad():
                torch.testing.assert_close(model(tokens()).logits, self.logits, rtol=1e-4, atol=1e-4)
            config = json.loads((output / "config.json").read_text())
            self.assertEqual((config["num_key_value_heads"], config["num_hidden_layers"]), (KV_HEADS, LAYERS))
            self.assertEqual(len(list(output.glob("*.safetensors"))) > 1, bool(more))

    def test_a_config_decides_what_tensors_do_not_say(self):
        given = self.folder / "config.json"
        given.write_text(json.dumps(dict(num_attention_heads=HEADS, rope_theta=THETA, eos_token_id=7)))
        output = self.folder / "with config"
        ended = self.run_tool("--output", output, "--config", given, "--dtype", "bfloat16")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        config = json.loads((output / "config.json").read_text())
        self.assertEqual((config["eos_token_id"], config["rope_theta"], config["torch_dtype"]), (7, THETA, "bfloat16"))
        given.write_text(json.dumps(dict(num_attention_heads=HEADS, hidden_size=64)))
        self.fails("hidden_size is 64, the tensors say 48", "--config", given)

    def test_bad_input_is_one_line(self):
        self.fails("do not divide; say --num-heads")
        self.fails("5 heads", "--num-heads", "5")
        self.fails("no complete DCP folder", "--num-heads", "6", folder="nowhere")
        self.run_tool("--output", self.folder / "there", "--num-heads", "6")
        ended = self.run_tool("--output", self.folder / "there", "--num-heads", "6")
        self.assertEqual((ended.returncode, "exists already" in ended.stderr), (1, True))

    def copy(self, name):
        copy = self.folder / name
        copy.mkdir()
        for path in (self.folder / "step-1").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        return copy

    def test_damage_and_foreign_pickles_are_refused(self):
        cut = self.copy("cut")
        for path in cut.glob("*.distcp"):
            os.truncate(path, 3000)
        self.fails(" bytes at ", "--num-heads", "6", folder="cut")
        evil = self.copy("evil")

        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {self.mark}",)
        Evil.mark = self.folder / "executed"
        (evil / ".metadata").write_bytes(pickle.dumps(Evil()))
        self.fails("which no checkpoint needs; refused", "--num-heads", "6", folder="evil")
        self.assertFalse(Evil.mark.exists())
        (evil / ".metadata").write_bytes(b"\x80")
        self.fails("not a checkpoint's metadata", "--num-heads", "6", folder="evil")
        other = self.folder / "other"
        dcp.save({"encoder.weight": torch.ones(3)}, checkpoint_id=other, no_dist=True)
        self.fails("encoder.weight is no tensor of torchtitan's Llama", "--num-heads", "6", folder="other")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
