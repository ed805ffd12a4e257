"""transformers reads what --format fine-grained-fp8 writes of a run trained with float8.recipe_name=blockwise."""
import consumers  # noqa: F401

import json

import torch
import transformers
from safetensors.torch import load_file

from trained_model import TrainedModel, main


class FineGrainedFp8(TrainedModel):
    STEPS = 60
    # 128 rows of q and 128 of k and v each: no square of 128 x 128 is shared.
    EXTRA = "float8: {recipe_name: blockwise}\n"
    SHAPE = "dim: 128, num_layers: 2, num_heads: 4, num_kv_heads: 4, ffn_dim: 256"

    def test_transformers_reads_the_values_of_training(self):
        exported, _ = self.export(self.run_dir, "fine-grained-fp8")
        config = json.loads((exported / "config.json").read_text())["quantization_config"]
        self.assertEqual((config["quant_method"], config["weight_block_size"]), ("fp8", [128, 128]))
        tensors = load_file(exported / "model.safetensors")
        plain = load_file(self.plain / "model.safetensors")
        values = {}
        for name, weight in plain.items():
            if "proj" not in name:
                values[name] = tensors[name]
                continue
            codes, scale = tensors[name], tensors[name.replace(".weight", ".weight_scale_inv")]
            self.assertEqual((codes.dtype, scale.dtype), (torch.float8_e4m3fn, torch.float32))
            # torchao's casts (prototype/blockwise_fp8_training): fp64 scale from the bf16 weight that forward reads.
            blocks = weight.float().unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
            amax = blocks.abs().amax((1, 3), keepdim=True).double().clamp(min=1e-12)
            multiplier = (448 / amax).float()
            expected = (blocks * multiplier).clamp(-448, 448).to(torch.float8_e4m3fn)
            expected = expected.reshape(weight.shape)
            self.assertTrue(torch.equal(codes.view(torch.uint8), expected.view(torch.uint8)), name)
            self.assertTrue(torch.equal(scale, (1 / multiplier).reshape(scale.shape)), name)
            values[name] = (codes.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)).bfloat16()
        loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.bfloat16).eval()
        for name, weight in loaded.named_parameters():
            difference = (weight.float() - values[name].float()).abs().max() / values[name].float().abs().max()
            self.assertLess(difference.item(), 2**-7, name)  # transformers multiplies in bf16
        _, agreement = self.compare("transformers fine-grained fp8", self.logits(self.reference(values)), self.logits(loaded))
        self.assertGreaterEqual(agreement, 0.97)

    def test_other_models_are_refused(self):
        with self.assertRaisesRegex(AssertionError, "expected a run for fine-grained-fp8"):
            self.export(self.plain, "fine-grained-fp8")
        with self.assertRaisesRegex(AssertionError, "has none; train with qat.scheme"):
            self.export(self.run_dir, "torchao")


if __name__ == "__main__":
    main()
