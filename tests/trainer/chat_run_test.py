"""Fine-tuning on conversations: packed, mixed and resumed runs of the whole program.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny_run import TinyRuns, WORDS

PROGRAM = sys.argv[1]
# Of two families of conversations the second three times as often; whole conversations in windows.
CONFIG = """
job:          {run_dir: "%(run)s"}
model:        {architecture: llama, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 256}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s.a.jsonl, %(text)s.b.jsonl], weights: [1, 3], validation_fraction: 0.1,
               chat_template: chatml, packing: documents, cache_dir: %(cache)s}
training:     {steps: 12, seq_len: 256, local_batch_size: 1, global_batch_size: 4, num_threads: 1,
               mixed_precision_param: float32, device: cpu}
optimizer:    {lr: 3.0e-3}
lr_scheduler: {decay_type: constant, warmup_steps: 5}
validation:   {interval: 6}
checkpoint:   {interval: 6, keep_latest_k: 0}
"""


def write_conversations(path, seed, answer):
    choose = random.Random(seed)
    with open(path, "w") as file:
        for _ in range(150):
            messages = []
            for _ in range(choose.randrange(1, 3)):
                question = " ".join(choose.choice(WORDS) for _ in range(choose.randrange(1, 8)))
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer(question)}]
            file.write(json.dumps({"messages": messages}) + "\n")


class ChatRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.runs = TinyRuns(PROGRAM, folder.name, text=f"{folder.name}/text", config=CONFIG)
        write_conversations(f"{folder.name}/text.a.jsonl", 1, lambda question: question.split()[-1])
        write_conversations(f"{folder.name}/text.b.jsonl", 2, lambda question: "yes" if "the" in question else "no")

    def test_resumes_bit_for_bit(self):
        for name, overrides in {"packed": [], "stream": ["data.packing=stream"],
                                "unweighted": ["data.weights=[]", "training.mixed_precision_param=bfloat16"]}.items():
            with self.subTest(name):
                straight, resumed = name, name + " resumed"
                self.runs.train(straight, *overrides)
                shutil.copytree(self.runs.folder / straight, self.runs.folder / resumed)
                (self.runs.store(resumed) / "latest").unlink()
                shutil.rmtree(self.runs.store(resumed) / "step-00000012")
                self.runs.train(resumed, *overrides)
                for key in ("step", "loss", "grad_norm"):
                    self.assertEqual([line[key] for line in self.runs.metrics(resumed)],
                                     [line[key] for line in self.runs.metrics(straight)], key)
                code, output, errors = self.runs.checkpoint("diff", self.runs.folder / straight,
                                                            self.runs.folder / resumed)
                self.assertEqual(code, 0, output + errors)

    def test_ranks_agree(self):
        self.runs.train("one")
        self.runs.train("two", ranks=2)
        one, two = self.runs.lines("one"), self.runs.lines("two")
        self.assertEqual(len(one), len(two))
        for a, b in zip(one, two):
            self.assertEqual(a["step"], b["step"])
            for key in ("loss", "validation_loss"):
                if key in a:
                    self.assertAlmostEqual(a[key], b[key], delta=1e-5 * a[key], msg=f"step {a['step']} {key}")

    def test_learns_answers_alone(self):
        steps = ["training.steps=60", "checkpoint.interval=1000"]
        self.runs.train("answers", *steps)
        self.runs.train("everything", *steps, "data.train_on_input=true")
        answers, everything = self.runs.metrics("answers"), self.runs.metrics("everything")
        # Bytes are equally likely at first; answers and the ends of turns are learnt sooner than questions.
        self.assertAlmostEqual(answers[0]["loss"], math.log(256), delta=0.3)
        self.assertLess(answers[-1]["loss"], everything[-1]["loss"] - 0.1)

    def test_exports_its_template(self):
        self.runs.train("export", "training.steps=1")
        template = (self.runs.folder / "export" / "hf" / "chat_template.jinja").read_text()
        self.assertIn("<|im_start|>", template)
        self.assertEqual(template, (self.runs.folder / "export" / "chat_template.jinja").read_text())

    def test_transformers_loads_what_was_tuned(self):
        tokens, folder = self.runs.folder / "tokens", self.runs.folder
        text = folder / "words.txt"
        text.write_text(" ".join(WORDS) * 50)
        tokens.mkdir()
        subprocess.run([PROGRAM, "tokenizer", "train", "--vocab-size", "300", "--special-token", "<|im_end|>",
                        "--special-token", "<|im_start|>", "--output", tokens / "tokenizer.json", text],
                       check=True, capture_output=True)
        self.runs.train("served", "training.steps=150", "checkpoint.enable=false", "training.mixed_precision_param=float32", "tokenizer.kind=huggingface", f"tokenizer.path={tokens}")
        exported = folder / "served" / "hf"
        tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
        messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
        encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True,
                                                return_tensors="pt")
        answer = encoded["input_ids"][0][encoded["assistant_masks"][0].bool()]
        self.assertEqual(tokenizer.decode(answer), "sat<|im_end|>")
        # Greedy answers of both, up to the end of the turn.
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}], return_dict=True,
                                               return_tensors="pt", add_generation_prompt=True)["input_ids"]
        turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        with torch.no_grad():
            theirs = model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=turn_end)[0]
        ended = subprocess.run([PROGRAM, "generate", "--model", folder / "served", "--chat-template", "tokenizer",
                                "--prompt", "the cat", "--temperature", "0", "--max-new-tokens", "20", "--device", "cpu",
                                "--json"], capture_output=True, text=True)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        ours = json.loads(ended.stdout)
        self.assertEqual(ours["prompt_tokens"], prompt[0].tolist())
        # It has learnt to stop; the token that does is no part of the answer.
        self.assertEqual([*ours["tokens"], turn_end], theirs[prompt.shape[1]:].tolist())

    def test_says_what_is_wrong(self):
        for overrides, message in (
                (["data.weights=[1]"], "data.weights: expected one for each of the 2 entries of data.train, got 1"),
                (["data.weights=[1, 0]"], 'data.weights: expected numbers above 0, got "0"'),
                (["data.chat_template=", "data.train_on_input=true"], "expected false without data.chat_template"),
                (["data.chat_template=nothing.jinja"], "got 'nothing.jinja', which cannot be read"),
                (["data.chat_template=tokenizer"], "expected a chat template beside the tokenizer"),
                (["data.chat_template="], "no field")):
            with self.subTest(overrides):
                status, errors, _ = self.runs.run("wrong", *overrides)
                self.assertNotEqual(status, 0)
                if message != "no field":
                    self.assertIn(message, errors)
        # Another template is another run.
        self.runs.train("changed", "training.steps=1")
        status, errors, _ = self.runs.run("changed", "training.steps=2", "data.packing=stream")
        self.assertEqual(status, 2)
        self.assertIn("data.packing", errors)

    def test_prepare_makes_what_train_reads(self):
        folder = self.runs.folder
        command = [PROGRAM, "data", "prepare", "--tokenizer", "bytes", "--chat-template", "chatml", "--cache-dir",
                   folder / "prepared", folder / "text.a.jsonl", folder / "text.b.jsonl"]
        subprocess.run(command, check=True, capture_output=True)
        before = set((folder / "prepared").glob("*.tokens"))
        self.runs.train("reads", "training.steps=1", "data.weights=[]", f"data.cache_dir={folder}/prepared")
        self.assertEqual(set((folder / "prepared").glob("*.tokens")), before)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
