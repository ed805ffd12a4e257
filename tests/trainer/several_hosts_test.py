"""One run over two hosts: network namespaces joined by a veth pair, mpirun starting its daemon on the other one.

Arguments: narrowgauge (the binary; narrowgauge_torch beside it), two_hosts.sh. Where network namespaces cannot be
made the test says so and fails.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

NARROWGAUGE, TWO_HOSTS = (os.path.abspath(argument) for argument in sys.argv[1:3])

CONFIG = """
job:          {run_dir: %(run)s}
model:        {architecture: llama, vocab_size: 64, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64,
               max_seq_len: 64}
tokenizer:    {kind: none}
data:         {train: [random_tokens]}
training:     {steps: 8, seq_len: 16, local_batch_size: 2, global_batch_size: 16, num_threads: 1, device: cpu}
checkpoint:   {interval: 4}
"""
# Open MPI over TCP between the two, by nothing else.
MCA = ["--mca", "oob_tcp_if_include", "10.77.0.0/24", "--mca", "btl_tcp_if_include", "10.77.0.0/24"]


def mpirun(ranks_of_host, folder, *overrides):
    config = folder / "run.yaml"
    run = folder / ("-".join(map(str, ranks_of_host)) + "".join(overrides).replace("=", "-"))
    config.write_text(CONFIG % dict(run=run))
    ranks = sum(ranks_of_host)
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
    if len(ranks_of_host) > 1:
        hosts = ",".join(f"10.77.0.{i + 1}:{n}" for i, n in enumerate(ranks_of_host))
        inside = " ".join([*command, "--mca plm_rsh_agent $TWO_HOSTS_RSH", *MCA, "--host", hosts, '"$@"'])
        command = [TWO_HOSTS, "bash", "-c", inside, "bash"]
    process = subprocess.run([*command, NARROWGAUGE, "train", config, *overrides], capture_output=True, text=True,
                             timeout=120,
                             env=dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1"))
    return process, run


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


class SeveralHosts(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def train(self, ranks_of_host, *overrides):
        process, run = mpirun(ranks_of_host, self.folder, *overrides)
        self.assertNotEqual(process.returncode, 77, process.stderr)
        self.assertEqual(process.returncode, 0, process.stderr)
        return process, run

    def test_two_hosts_train_as_one_bit_for_bit(self):
        _, alone = self.train([4])
        process, together = self.train([2, 2])
        self.assertEqual(losses(together), losses(alone))
        self.assertEqual(len(losses(alone)), 8)
        self.assertRegex(process.stderr, r"4 ranks on 2 hosts \(2 each\)")
        model = "hf/model.safetensors"
        self.assertEqual((together / model).read_bytes(), (alone / model).read_bytes())

    def test_replicas_on_hosts_and_uneven_hosts(self):
        _, alone = self.train([4], "parallelism.data_parallel_replicate_degree=2")
        _, together = self.train([2, 2], "parallelism.data_parallel_replicate_degree=2")
        self.assertEqual(losses(together), losses(alone))
        _, alone = self.train([4], "training.seq_len=8")
        process, together = self.train([1, 3], "training.seq_len=8")
        self.assertEqual(losses(together), losses(alone))
        self.assertRegex(process.stderr, r"4 ranks on 2 hosts \(1 to 3 each\)")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
