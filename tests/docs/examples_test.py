"""The commands of examples/*/README.md, in order, with few and small steps.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from page_commands import Workplace, commands  # noqa: E402

NARROWGAUGE = sys.argv[1]
# In every `train`: three steps of 4 windows, on text that is tokenized in a second.
SMALL = ("training.steps=3 training.local_batch_size=4 training.seq_len=64 training.num_threads=1 validation.max_batches=2 "
         "lr_scheduler.warmup_steps=1 generation.interval=0 'data.train=[\"third_party/site/torch/nn/modules/*.py\"]'")


def shortened(command):
    if " train " in command:
        return f"{command} {SMALL}"
    return command.replace("--data ", "--limit 4 --data ") if " eval " in command else command


class Examples(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.place = Workplace(folder.name, NARROWGAUGE)
        cls.output = {}
        for example in ("pretrain_fp8", "qat_finetune_and_export"):
            for command in commands(f"examples/{example}/README.md"):
                status, output, errors = cls.place.run(shortened(command))
                assert status == 0, f"{command}: exit code {status}\n{output}{errors}"
                cls.output[command] = output

    def output_of(self, part):
        return next(output for command, output in self.output.items() if part in command)

    def test_both_pages_have_commands(self):
        self.assertEqual(sum(" train " in command for command in self.output), 3)
        self.assertGreaterEqual(len(self.output), 10)

    def test_fp8_logs_the_health_of_its_casts(self):
        lines = (self.place.folder / "runs/pretrain_fp8/metrics.jsonl").read_text().splitlines()
        self.assertEqual([json.loads(line)["step"] for line in lines if '"loss"' in line], [1, 2, 3])

    def test_transformers_and_we_continue_a_prompt_alike(self):
        kind, _, theirs = self.output_of("consume.py").partition("\n")
        ours = self.output_of("runs/qat_finetune/quantized --prompt")
        self.assertIn("Int", kind)
        self.assertTrue(ours.strip())
        self.assertEqual(theirs.strip(), ours.strip())

    def test_eval_compares_the_two_quantized_models(self):
        table = self.output_of("--compare runs/finetune_int4")
        self.assertIn("runs/finetune_int4", table)
        self.assertIn("runs/qat_finetune/quantized", table)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
