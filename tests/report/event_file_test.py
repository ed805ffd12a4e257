"""Event files as TensorBoard itself reads them.

    event_file_test.py WRITE_EVENTS
"""
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

WRITER = os.path.abspath(sys.argv.pop(1))


class EventFile(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        subprocess.run([WRITER, self.folder / "tb"], check=True, timeout=60)
        self.files = sorted((self.folder / "tb").iterdir())

    def accumulate(self):
        events = event_accumulator.EventAccumulator(str(self.folder / "tb"), size_guidance={"scalars": 0, "tensors": 0})
        return events.Reload()

    def test_scalars_and_text(self):
        events = self.accumulate()
        self.assertEqual(set(events.Tags()["scalars"]), {"loss", "lr", "throughput(tps)"})
        self.assertEqual(len(events.Scalars("lr")), 10)
        self.assertTrue(math.isnan(events.Scalars("loss")[-1].value))
        self.assertEqual(events.Scalars("loss")[-1].step, 10**12)
        text = events.Tensors("sample")[0]
        self.assertEqual(text.step, 15)
        self.assertEqual(text.tensor_proto.string_val[0].decode(), "Grüße\nzweite Zeile")
        self.assertEqual(events.SummaryMetadata("sample").plugin_data.plugin_name, "text")

    def test_a_resumed_run_replaces_the_steps_it_repeats(self):
        loss = self.accumulate().Scalars("loss")
        self.assertEqual([event.step for event in loss], [*range(1, 16), 10**12])
        for event in loss[:10]:
            self.assertAlmostEqual(event.value, 1 / event.step, places=6)
        for event in loss[10:15]:
            self.assertEqual(event.value, -event.step)

    def test_each_start_has_a_file_of_its_own_in_order(self):
        self.assertEqual(len(self.files), 2)
        self.assertTrue(all(file.name.startswith("events.out.tfevents.") for file in self.files))

    def test_checksums_are_right_and_guard(self):
        """TensorBoard's reader in Python compares both checksums of every record."""
        def records(path):
            reader = pywrap_tensorflow.PyRecordReader_New(str(path))
            count = 0
            while True:
                try:
                    reader.GetNext()
                except Exception as error:  # its own OutOfRangeError and DataLossError
                    return count, type(error).__name__
                count += 1
        self.assertEqual(records(self.files[0]), (22, "OutOfRangeError"))
        data = bytearray(self.files[0].read_bytes())
        (length,) = struct.unpack("<Q", data[:8])
        data[12 + length // 2] ^= 1
        damaged = self.folder / "damaged"
        damaged.write_bytes(data)
        self.assertEqual(records(damaged), (0, "DataLossError"))

    def test_a_full_disk_is_told_once_and_ends_nothing(self):
        # A file size limit stands for the full disk; its signal is ignored as train does not set one.
        import resource, signal
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        result = subprocess.run([WRITER, self.folder / "small"], capture_output=True, text=True, timeout=60, preexec_fn=limit)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count("events are lost"), 2, result.stderr)  # one a file
        events = event_accumulator.EventAccumulator(str(self.folder / "small")).Reload()
        self.assertGreater(len(events.Scalars("loss")), 0)


if __name__ == "__main__":
    unittest.main()
