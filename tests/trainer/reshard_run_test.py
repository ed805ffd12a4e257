"""A run saved at one world size or mesh goes on at any other: the same state, the same data, the next 20 losses.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).

What is equal bit for bit (parameters, optimizer states and amax histories as loaded at every layout) is checked by run_checkpoint_test;
sums over ranks round differently, so losses are compared to a few units of fp32.
"""
import shutil
import sys
import tempfile
import unittest

from tiny_run import TinyRuns

PROGRAM = sys.argv[1]
# Replicas x shards.
SHARDED = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 8)]
REPLICATED = [(2, 2), (2, 4)]
PAIRS = ([(a, b) for a in SHARDED for b in SHARDED if a != b] + [(a, b) for a in REPLICATED for b in [(1, 1), (1, 3)]] +
         [((1, 3), (2, 2)), ((1, 4), (2, 4)), ((2, 4), (2, 2)), ((2, 2), (2, 4))])
SAVED = 6  # behind the warm-up
STEPS = SAVED + 20
TOLERANCE = 2e-6  # relative; fp32 sums of 24 x 16 losses and of gradients in another order, over 20 steps


def mesh(layout):
    return [f"parallelism.data_parallel_replicate_degree={layout[0]}",
            f"parallelism.data_parallel_shard_degree={layout[1]}"]


class ReshardRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.runs = TinyRuns(PROGRAM, folder.name)
        cls.runs.train("straight", f"training.steps={STEPS}")
        cls.straight = cls.runs.metrics("straight")

    def go_on(self, before, after):
        saved = "saved %dx%d" % before
        run = "%dx%d then %dx%d" % (*before, *after)
        if not (self.runs.folder / saved).exists():
            self.runs.train(saved, f"training.steps={SAVED}", *mesh(before), ranks=before[0] * before[1])
        shutil.copytree(self.runs.folder / saved, self.runs.folder / run)
        self.runs.train(run, f"training.steps={STEPS}", *mesh(after), ranks=after[0] * after[1])
        lines = self.runs.metrics(run)
        self.assertEqual([line["step"] for line in lines], list(range(1, STEPS + 1)))
        return lines

    def test_every_layout_into_every_other(self):
        for before, after in PAIRS:
            with self.subTest(before=before, after=after):
                # The straight run saw the same windows in the same order, or its losses would differ.
                for line, expected in zip(self.go_on(before, after), self.straight):
                    self.assertAlmostEqual(line["loss"], expected["loss"], delta=TOLERANCE * expected["loss"])
                    self.assertEqual(line["tokens_seen"], expected["tokens_seen"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
