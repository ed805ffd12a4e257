"""lm-evaluation-harness itself on an exported model: the scores of HellaSwag from a local file are those of `eval`.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unittest

from tiny_run import WORDS

PROGRAM = sys.argv[1]
LM_EVAL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "lm_eval.sh"
CONFIG = """
job: {run_dir: "%(folder)s/run"}
model: {architecture: llama, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 96}
tokenizer: {kind: huggingface, train_vocab_size: 300}
data: {train: ["%(folder)s/text.txt"], cache_dir: "%(folder)s/cache"}
training: {steps: 15, seq_len: 64, local_batch_size: 4, device: cpu, num_threads: 1}
checkpoint: {enable: false}
"""
TASK = """
task: hellaswag_local
dataset_path: json
dataset_kwargs: {data_files: {validation: "%s"}}
validation_split: validation
output_type: multiple_choice
process_docs: !function from_harness.process_docs
doc_to_text: "{{query}}"
doc_to_target: "{{gold}}"
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


class LmEval(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_program(self, *command):
        environment = dict(os.environ, HF_HOME=str(self.folder / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1",
                           OMP_NUM_THREADS="1")
        ended = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return ended.stdout

    def test_hellaswag(self):
        choose = random.Random(5)

        def sentence(count):
            return " ".join(choose.choice(WORDS) for _ in range(count))

        (self.folder / "text.txt").write_text(sentence(4000))
        (self.folder / "config.yaml").write_text(CONFIG % dict(folder=self.folder))
        self.run_program(PROGRAM, "train", self.folder / "config.yaml")
        (self.folder / "items.jsonl").write_text("".join(json.dumps({
            "ctx_a": sentence(choose.randrange(3, 9)) + ".", "ctx_b": sentence(2), "activity_label": "The [x] sea",
            "endings": [sentence(choose.randrange(1, 9)) + " [title] end." for _ in range(4)],
            "label": str(choose.randrange(4))}) + "\n" for _ in range(200)))
        tasks = self.folder / "tasks"
        tasks.mkdir()
        (tasks / "from_harness.py").write_text("from lm_eval.tasks.hellaswag.utils import process_docs\n")
        (tasks / "hellaswag_local.yaml").write_text(TASK % (self.folder / "items.jsonl"))
        exported = self.folder / "run" / "hf"
        ours = json.loads(self.run_program(PROGRAM, "eval", "--model", exported, "--tasks", "hellaswag", "--device", "cpu",
                                           "--data", self.folder / "items.jsonl", "--json"))
        table = self.run_program(LM_EVAL, "--model", "hf", "--model_args", f"pretrained={exported},dtype=float32",
                                 "--device", "cpu", "--include_path", tasks, "--tasks", "hellaswag_local", "--batch_size", 8)
        theirs = {name: float(value) for name, value in re.findall(r"\|(acc\w*) *\|↑ *\| *([0-9.]+)\|", table)}
        self.assertEqual(theirs, {"acc": round(ours["acc"], 4), "acc_norm": round(ours["acc_norm"], 4)}, table)
        self.assertEqual(ours["items"], 200)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
