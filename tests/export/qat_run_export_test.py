"""Runs trained with qat and with lora: what narrowgauge export takes from their checkpoints is what training left behind."""
import consumers  # noqa: F401

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from trained_model import CONFIG, NARROWGAUGE, TEXT, TrainedModel, main, run


class QatRun(TrainedModel):
    STEPS = 60
    EXTRA = "qat: {scheme: int8-dynamic-act-int4-weight, group_size: 32}\n"

    def test_the_checkpoint_gives_the_codes_of_training(self):
        left = load_file(self.run_dir / "quantized/quantized.safetensors")
        exported, report = self.export(self.run_dir, "torchao")
        self.assertIn("14 quantized weights", report)
        tensors = load_file(exported / "model.safetensors")
        names = [name.removesuffix(".codes") for name in left if name.endswith(".codes")]
        self.assertEqual(len(names), 14)
        for name in names:
            self.assertTrue(torch.equal(tensors[f"{name}._weight_qdata"], left[f"{name}.codes"]), name)
            self.assertTrue(torch.equal(tensors[f"{name}._weight_scale"], left[f"{name}.scale"]), name)
        again, _ = self.export(self.run_dir / "quantized", "torchao")
        self.assertEqual((again / "model.safetensors").read_bytes(), (exported / "model.safetensors").read_bytes())
        loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.bfloat16).eval()
        self.assertEqual(self.logits(loaded).shape, (192, 256))

    def test_the_other_grid_is_refused(self):
        with self.assertRaisesRegex(AssertionError, "with the numbers it was trained with"):
            self.export(self.run_dir, "gguf")

    def test_adapters_are_merged(self):
        tuned = self.folder / "tuned"
        config = CONFIG % dict(run=tuned, cache=self.folder / "cache", dtype=self.DTYPE, text=TEXT, tokenizer="bytes",
                               steps=20, shape="")
        lines = [line for line in config.splitlines() if not line.startswith("model:")]
        (self.folder / "tuned.yaml").write_text("\n".join(lines) + f"""
model: {{initial_load_path: {self.plain}}}
lora: {{rank: 4}}
qat: {{scheme: gguf-q8_0}}
""")
        run(NARROWGAUGE, "train", self.folder / "tuned.yaml")
        exported, _ = self.export(tuned, "gguf")
        self.assertEqual(len(gguf.GGUFReader(exported).fields["tokenizer.ggml.tokens"].contents()), 256)
        left = load_file(tuned / "quantized/quantized.safetensors")
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported).tensors}
        blocks = tensors["blk.1.ffn_down.weight"].data.reshape(-1, 34)[:, 2:].view(np.int8)
        codes = left["model.layers.1.mlp.down_proj.codes"].numpy()
        self.assertTrue(np.array_equal(blocks.reshape(codes.shape), codes))
        before = load_file(self.plain / "model.safetensors")
        run(NARROWGAUGE, "export", tuned, "--output", self.folder / "merged", "--dtype", "bfloat16")
        merged = load_file(self.folder / "merged/model.safetensors")
        after = load_file(tuned / "hf/model.safetensors")
        for name, weight in after.items():
            self.assertTrue(torch.equal(merged[name], weight), name)
        self.assertFalse(torch.equal(before["model.layers.1.self_attn.q_proj.weight"],
                                     merged["model.layers.1.self_attn.q_proj.weight"]))


if __name__ == "__main__":
    main()
