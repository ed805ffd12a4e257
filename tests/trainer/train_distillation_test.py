"""Runs of narrowgauge train with distillation: its loss is the definition's, the model that was loaded is the teacher, runs
resume bit for bit, shard and recompute, and nothing of the teacher is saved.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import math
import os
import pathlib
import sys
import tempfile
import unittest

from safetensors import safe_open

from tiny_run import CONVERSION_CONFIG, TinyRuns

NARROWGAUGE = os.path.abspath(sys.argv[1])
DISTILL = "distillation.weight=0.5"


def student_config(teacher):
    """CONVERSION_CONFIG for runs that begin with a model, which brings its shape."""
    lines = [line for line in CONVERSION_CONFIG.splitlines() if not line.startswith("model:")]
    return "\n".join([*lines, f"model: {{initial_load_path: {teacher}}}", ""])


class TrainDistillation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        runs = TinyRuns(NARROWGAUGE, cls.folder, config=CONVERSION_CONFIG)
        cls.students = {}
        for name, tied in (("base", "false"), ("tied", "true")):
            runs.train(name, "training.steps=20", "export.enable=true", "model.initializer_range=0.2", f"model.tie_word_embeddings={tied}")
            cls.students[name] = TinyRuns(NARROWGAUGE, cls.folder, text=runs.text,
                                          config=student_config(cls.folder / name / "hf"))

    def losses(self, name, *overrides, ranks=1, teacher="base"):
        runs = self.students[teacher]
        runs.train(name, *overrides, ranks=ranks)
        return [(line["step"], line["loss"], line["grad_norm"]) for line in runs.metrics(name)]

    def validations(self, name):
        return [line["validation_loss"] for line in self.students["base"].lines(name) if "validation_loss" in line]

    def test_of_itself_there_is_nothing_to_learn(self):
        for teacher in ("base", "tied"):
            with self.subTest(teacher):
                step, loss, norm = self.losses(f"{teacher}-itself", "distillation.weight=1", "training.steps=1", teacher=teacher)[0]
                self.assertEqual(step, 1)
                self.assertLess(abs(loss), 1e-6)
                self.assertLess(norm, 1e-3)

    def test_the_loss_is_the_weighted_sum(self):
        def first(name, *overrides):
            return self.losses(name, "qat.scheme=intx-weight-only", "qat.bits=2", "training.steps=1", *overrides)[0][1]

        hard = first("hard")
        soft = first("soft", "distillation.weight=1", "distillation.temperature=2")
        both = first("both", "distillation.weight=0.3", "distillation.temperature=2")
        self.assertGreater(soft, 0.01)
        self.assertTrue(math.isclose(both, 0.7 * hard + 0.3 * soft, rel_tol=1e-5), (both, hard, soft))

    def test_validation_is_the_cross_entropy(self):
        still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "qat.scheme=8da4w"]
        self.losses("valid-plain", *still)
        self.losses("valid-distilled", *still, DISTILL)
        self.assertEqual(self.validations("valid-distilled"), self.validations("valid-plain"))

    def test_resumes_bit_for_bit(self):
        overrides = ["qat.scheme=8da4w", DISTILL]
        straight = self.losses("straight", *overrides)
        self.losses("again", *overrides)
        self.assertEqual(self.losses("again", *overrides, "checkpoint.load_step=6"), straight)

    def test_ranks_and_recomputation_change_no_loss(self):
        # Without clipping, whose norm is summed shard by shard: nothing else depends on the mesh.
        for teacher in ("base", "tied"):
            with self.subTest(teacher):
                overrides = ["qat.scheme=8da4w", DISTILL, "training.max_norm=0"]
                whole = self.losses(f"{teacher}-whole", *overrides, "parallelism.data_parallel_replicate_degree=2", ranks=2, teacher=teacher)
                sharded = self.losses(f"{teacher}-sharded", *overrides, ranks=2, teacher=teacher)
                self.assertEqual([loss for _, loss, _ in sharded], [loss for _, loss, _ in whole])
                for mode in ("full", "selective"):
                    recomputed = self.losses(f"{teacher}-{mode}", *overrides, f"activation_checkpoint.mode={mode}", ranks=2, teacher=teacher)
                    self.assertEqual(recomputed, sharded)

    def test_a_converted_head_is_distilled_too(self):
        overrides = ["qat.scheme=8da4w", "qat.overrides=[lm_head=int8-weight-only]", DISTILL]
        for name, ranks in (("head", 1), ("head2", 2)):
            losses = [loss for _, loss, _ in self.losses(name, *overrides, ranks=ranks)]
            self.assertTrue(all(math.isfinite(loss) for loss in losses))
        # Beside the same without distillation it is the smaller loss: the teacher's divergence is below its cross entropy.
        plain = [loss for _, loss, _ in self.losses("head-plain", *overrides[:2])]
        self.assertLess(losses[0], plain[0])

    def test_lora_learns_from_the_model_it_adapts(self):
        losses = self.losses("lora", "lora.rank=4", "qat.scheme=8da4w", DISTILL, "optimizer.lr=1e-2")
        self.assertTrue(all(math.isfinite(loss) for _, loss, _ in losses))
        self.assertGreater(losses[0][2], 0)

    def test_nothing_of_the_teacher_is_saved(self):
        names = {}
        for name, overrides in (("without", []), ("with", [DISTILL])):
            self.losses(name, "qat.scheme=8da4w", "export.enable=true", *overrides)
            with safe_open(self.folder / name / "hf/model.safetensors", "pt") as file:
                names[name] = {key: file.get_slice(key).get_shape() for key in file.keys()}
            with safe_open(self.folder / name / "quantized/quantized.safetensors", "pt") as file:
                names[name]["quantized"] = (sorted(file.keys()), file.metadata())
            step = max((self.folder / name / "checkpoints").glob("step-*"))
            names[name]["checkpoint"] = sorted((path.name, path.stat().st_size) for path in step.glob("*.safetensors"))
        self.assertEqual(names["with"], names["without"])

    def test_mistakes_are_told(self):
        plain = TinyRuns(NARROWGAUGE, self.folder, config=CONVERSION_CONFIG)
        for runs, overrides, expected in [
                (plain, [DISTILL], "expected 0 without model.initial_load_path"),
                (self.students["base"], ["distillation.weight=1.5"], "expected a number in [0.0, 1.0]"),
                (self.students["base"], [DISTILL, "distillation.temperature=0"], "above 0")]:
            with self.subTest(overrides):
                status, errors, _ = runs.run("bad", *overrides)
                self.assertEqual(status, 2, errors)
                self.assertIn(expected, errors)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
