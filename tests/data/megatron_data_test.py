"""Megatron-LM's .bin and .idx, written here as its indexed_dataset.py documents them, inspected and trained on.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv[1]
CODES = {"H": 8, "i": 4}  # struct's letters for uint16 and int32


def write_indexed_dataset(prefix, documents, letter):
    """documents: lists of sequences, each a list of ids."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = [len(sequence) for sequence in sequences]
    size = struct.calcsize(letter)
    pointers = [sum(lengths[:i]) * size for i in range(len(lengths))]
    borders = [0]
    for document in documents:
        borders.append(borders[-1] + len(document))
    with open(f"{prefix}.bin", "wb") as file:
        for sequence in sequences:
            file.write(struct.pack(f"<{len(sequence)}{letter}", *sequence))
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[letter], len(lengths), len(borders)))
        file.write(struct.pack(f"<{len(lengths)}i", *lengths))
        file.write(struct.pack(f"<{len(pointers)}q", *pointers))
        file.write(struct.pack(f"<{len(borders)}q", *borders))


class MegatronData(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        choose = random.Random(3)
        self.documents = [[[choose.randrange(200) for _ in range(choose.randrange(1, 40))]
                           for _ in range(choose.randrange(1, 3))] for _ in range(120)]

    def run_program(self, *arguments):
        return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120)

    def test_inspect(self):
        ids = [token for document in self.documents for sequence in document for token in sequence]
        for letter in CODES:
            write_indexed_dataset(self.folder / "data", self.documents, letter)
            shown = self.run_program("data", "inspect", self.folder / "data.bin", "--window", 1 << 20, "--windows", 1)
            self.assertEqual(json.loads(re.search(r"^  (\[.*\])$", shown.stdout, re.M).group(1)), ids, shown.stderr)
            self.assertIn(f"documents   {len(self.documents)}\n", shown.stdout)

    def test_train(self):
        write_indexed_dataset(self.folder / "data", self.documents, "H")
        config = self.folder / "config.yaml"
        config.write_text(f"""
job: {{run_dir: "{self.folder}/run"}}
model: {{architecture: llama, vocab_size: 200, dim: 32, num_layers: 1, num_heads: 2, ffn_dim: 64, max_seq_len: 64}}
tokenizer: {{kind: none}}
data: {{train: ["{self.folder}/data.*"], validation_fraction: 0.1, packing: documents}}
training: {{steps: 3, seq_len: 64, local_batch_size: 2, num_threads: 1, device: cpu}}
validation: {{interval: 3}}
checkpoint: {{enable: false}}
export: {{enable: false}}
""")
        ended = self.run_program("train", config)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        lines = [json.loads(line) for line in (self.folder / "run" / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines if "loss" in line], [1, 2, 3])
        self.assertTrue(any("validation_loss" in line for line in lines))
        (self.folder / "data.bin").write_bytes((self.folder / "data.bin").read_bytes()[:-2])
        ended = self.run_program("train", config, f"job.run_dir={self.folder}/other")
        self.assertNotEqual(ended.returncode, 0)
        self.assertIn("truncated or of other data", ended.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
