"""A run that goes on from a checkpoint in its middle repeats the straight run bit for bit, over 100 steps.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import shutil
import sys
import tempfile
import unittest

from tiny_run import TinyRuns

PROGRAM = sys.argv[1]
BF16 = ["training.mixed_precision_param=bfloat16"]
BF16_STORED = ["training.dtype=bfloat16", "optimizer.bf16_stochastic_round=true", *BF16]
VARIANTS = {
    "fp32": [],
    "bf16": BF16,
    **{f"float8 {recipe}": [*BF16, f"float8.recipe_name={recipe}", "float8.filter_fqns=[]"]
       for recipe in ("tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "blockwise", "mxfp8")},
    **{name: [f"optimizer.name={name}"] for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8", "Muon")},
    "bf16 states": ["optimizer.state_dtype=bfloat16"],
    "bf16 parameters, stochastic rounding": BF16_STORED,
    # Fake quantization begins two steps after the save, masks are chosen anew between saves.
    "QAT 8da4w": ["qat.scheme=8da4w", "qat.fake_quant_after_n_steps=9", *BF16],
    "QAT int4": ["qat.scheme=int4-weight-only", *BF16],
    "LoRA and QAT": ["qat.scheme=8da4w", "lora.rank=4"],
    "LoRA with modules to save": ["lora.rank=4", "lora.modules_to_save=[embed_tokens,lm_head,norm]", *BF16],
    "LoRA with dropout": ["lora.rank=4", "lora.dropout=0.3", *BF16],
    "2:4 sparse": ["sparsity.kind=semi_structured", "sparsity.mask_interval=10", *BF16],
    "steps in backward": ["optimizer.early_step_in_backward=true", "training.max_norm=0.0"],
    "8 bit states, bf16 parameters": ["optimizer.name=AdamW8bit", *BF16_STORED],
}
SAVED = 7
STEPS = SAVED + 100


class ResumeRun(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.runs = TinyRuns(PROGRAM, folder.name)

    def assert_resumes(self, name, overrides, ranks=1):
        # A global batch of 4 windows keeps the steps short; blocks of 128 need sizes of 128.
        overrides = ["training.global_batch_size=4", "model.dim=128", "model.ffn_dim=128", "model.num_layers=1",
                     *overrides]
        one, two = name + " straight", name + " resumed"
        # Saved beside training every 7 steps; the second run is the first one, as if killed after the first save.
        overrides = [f"training.steps={STEPS}", f"checkpoint.interval={SAVED}", *overrides]
        self.runs.train(one, *overrides, ranks=ranks)
        shutil.copytree(self.runs.folder / one, self.runs.folder / two)
        (self.runs.store(two) / "latest").unlink()
        for checkpoint in self.runs.store(two).iterdir():
            if checkpoint.name != f"step-{SAVED:08}":
                shutil.rmtree(checkpoint)
        self.runs.train(two, *overrides, ranks=ranks)
        straight, resumed = self.runs.metrics(one), self.runs.metrics(two)
        self.assertEqual(len(straight), STEPS)
        for key in ("step", "loss", "grad_norm", "lr", "tokens_seen"):
            self.assertEqual([line[key] for line in resumed], [line[key] for line in straight], key)
        # And every byte of parameters, optimizer state and amax histories.
        code, output, errors = self.runs.checkpoint("diff", self.runs.folder / one, self.runs.folder / two)
        self.assertEqual(code, 0, output + errors)

    def test_every_precision_and_every_state(self):
        for name, overrides in VARIANTS.items():
            with self.subTest(name):
                self.assert_resumes(name, overrides)

    def test_on_ranks_that_save_beside_training(self):
        self.assert_resumes("two ranks", ["optimizer.name=AdamW8bit"], ranks=2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
