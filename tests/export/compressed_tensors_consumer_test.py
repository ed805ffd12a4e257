"""transformers with compressed-tensors loads what --format compressed-tensors writes, with exactly the model's values."""
import consumers  # noqa: F401

import json

import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig

from trained_model import TrainedModel, main

SCHEMES = [
    (("intx-weight-only", "bits=4", "group_size=32"), "pack-quantized"),
    (("intx-weight-only", "bits=8"), "pack-quantized"),
    (("intx-weight-only", "bits=4", "group_size=32", "asymmetric"), "pack-quantized"),
    (("int8-weight-only",), "pack-quantized"),
    (("8da4w", "group_size=32"), "pack-quantized"),
    (("int8-dynamic-act-int8-weight",), "int-quantized"),
    (("float8-weight-only",), "float-quantized"),
    (("float8-dynamic-act-float8-weight",), "float-quantized"),
]
# transformers' own dequantization at load knows one scheme a model; compressed-tensors itself knows several.
MIXED = [
    (("intx-weight-only", "bits=4", "group_size=32", "down_proj=float8-weight-only"), "mixed-precision"),
    (("intx-weight-only", "bits=4", "group_size=32", "down_proj=int8-weight-only"), "pack-quantized"),
]


class CompressedTensors(TrainedModel):
    def test_loaded_weights_are_the_models(self):
        for scheme, format in SCHEMES:
            with self.subTest(scheme=scheme):
                quantized = self.quantize(*scheme)
                exported, _ = self.export(quantized, "compressed-tensors")
                config = json.loads((exported / "config.json").read_text())["quantization_config"]
                self.assertEqual(config["format"], format)
                QuantizationConfig.model_validate(config)
                values = self.values(quantized)
                loaded = transformers.AutoModelForCausalLM.from_pretrained(
                    exported, dtype=torch.bfloat16,
                    quantization_config=transformers.CompressedTensorsConfig(run_compressed=False, dequantize=True)).eval()
                for name, weight in loaded.named_parameters():
                    if name.endswith("_scale") or name.endswith("_zero_point"):
                        continue
                    self.assertTrue(torch.equal(weight.to(torch.bfloat16), values[name]), f"{scheme} {name}")
                largest, agreement = self.compare(f"compressed-tensors {' '.join(scheme)}",
                                                  self.logits(self.reference(values)), self.logits(loaded))
                if "dynamic" not in scheme[0] and scheme[0] != "8da4w":
                    self.assertEqual((largest, agreement), (0.0, 1.0))

    def test_compressed_tensors_computes_with_the_files(self):
        # Weights stay compressed until the first forward; inputs are quantized where the scheme says so.
        for scheme, format in SCHEMES + MIXED:
            with self.subTest(scheme=scheme):
                quantized = self.quantize(*scheme)
                exported, _ = self.export(quantized, "compressed-tensors")
                config = json.loads((exported / "config.json").read_text())["quantization_config"]
                self.assertEqual(config["format"], format)
                loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.bfloat16).eval()
                largest, agreement = self.compare(f"compressed-tensors {' '.join(scheme)}, compressed",
                                                  self.logits(self.reference(self.values(quantized))), self.logits(loaded))
                if "dynamic" in scheme[0] or scheme[0] == "8da4w":
                    self.assertGreaterEqual(agreement, 0.95)
                else:
                    self.assertEqual((largest, agreement), (0.0, 1.0))

    def test_what_it_cannot_hold_is_refused(self):
        for scheme in ("int4-weight-only", "mxfp4", "gguf-q4_0"):
            with self.assertRaisesRegex(AssertionError, "cannot hold 14 weights"):
                self.export(self.quantize(scheme), "compressed-tensors")


if __name__ == "__main__":
    main()
