"""transformers with torchao loads what --format torchao writes: same tensors as torchao's own files, same values, same logits."""
import consumers  # noqa: F401

import json
import unittest

import torch
import transformers
from safetensors import safe_open
from torchao.core.config import config_from_dict
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (Float8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
                                  Int8DynamicActivationIntxWeightConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig,
                                  MappingType, PerAxis, PerGroup, quantize_)

from trained_model import TrainedModel, main

# scheme and options of ours, torchao's configuration: what both write from the same weights is compared. torchao's
# post-training quantization clamps intx scales at the epsilon of bf16.
EPS = "eps=0.0078125"
PAIRS = [
    (("8da4w", "group_size=32", EPS), Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))),
    (("int8-dynamic-act-intx-weight", "bits=3", "group_size=-1", EPS),
     Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int3, weight_granularity=PerAxis(0))),
    (("intx-weight-only", "bits=2", "group_size=64", EPS), IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(64))),
    (("intx-weight-only", "bits=4", "group_size=32", "asymmetric", EPS),
     IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32), mapping_type=MappingType.ASYMMETRIC)),
    (("int8-weight-only",), Int8WeightOnlyConfig(version=2)),
    (("int8-dynamic-act-int8-weight",), Int8DynamicActivationInt8WeightConfig(version=2)),
    (("float8-weight-only",), Float8WeightOnlyConfig()),
]


class Torchao(TrainedModel):
    def load(self, directory):
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()

    def test_files_are_those_of_torchao(self):
        for scheme, config in PAIRS:
            with self.subTest(scheme=scheme):
                exported, _ = self.export(self.quantize(*scheme), "torchao")
                peer = transformers.AutoModelForCausalLM.from_pretrained(self.plain, dtype=torch.bfloat16)
                quantize_(peer.model, config)
                tensors, metadata = flatten_tensor_state_dict(peer.state_dict())
                with safe_open(exported / "model.safetensors", "pt") as file:
                    ours = file.metadata()
                    names = json.loads(ours["tensor_names"])
                    self.assertEqual(sorted(names), sorted(json.loads(metadata["tensor_names"])))
                    for name in names:
                        self.assertEqual(json.loads(ours[name]), json.loads(metadata[name]), name)
                    self.assertEqual(sorted(file.keys()), sorted(tensors))
                    for name, tensor in tensors.items():
                        self.assertEqual(file.get_tensor(name).dtype, tensor.dtype, name)
                        self.assertTrue(torch.equal(file.get_tensor(name).contiguous().view(torch.uint8),
                                                    tensor.contiguous().view(torch.uint8)), f"{scheme} {name}")

    def test_configurations_are_read_as_version_2(self):
        for scheme, config in PAIRS:
            exported, _ = self.export(self.quantize(*scheme), "torchao")
            entry = json.loads((exported / "config.json").read_text())["quantization_config"]["quant_type"]["default"]
            self.assertEqual(entry["_version"], 2)
            self.assertEqual(type(config_from_dict(entry)), type(config))

    def test_loaded_models_compute_what_the_weights_say(self):
        for scheme, config in PAIRS:
            with self.subTest(scheme=scheme):
                quantized = self.quantize(*scheme)
                exported, _ = self.export(quantized, "torchao")
                loaded = self.load(exported)
                values = self.values(quantized)
                self.assertNotEqual(type(loaded.model.layers[0].mlp.up_proj.weight.data), torch.Tensor)
                for name, weight in loaded.named_parameters():
                    dense = weight.dequantize() if hasattr(weight, "dequantize") and "proj" in name else weight
                    self.assertTrue(torch.equal(dense.to(torch.bfloat16), values[name]), f"{scheme} {name}")
                peer = transformers.AutoModelForCausalLM.from_pretrained(self.plain, dtype=torch.bfloat16)
                quantize_(peer.model, config)  # inputs quantized as in the loaded model
                largest, agreement = self.compare(f"torchao {' '.join(scheme)}", self.logits(peer.eval()),
                                                  self.logits(loaded))
                self.assertEqual((largest, agreement), (0.0, 1.0))

    def test_mx_and_fp8_with_activations_load_with_their_values(self):
        for scheme in ("mxfp8", "mxfp4", "float8-dynamic-act-float8-weight"):
            with self.subTest(scheme=scheme):
                quantized = self.quantize(scheme)
                exported, _ = self.export(quantized, "torchao")
                loaded = self.load(exported)
                weight = loaded.model.layers[1].mlp.down_proj.weight
                expected = self.values(quantized)["model.layers.1.mlp.down_proj.weight"]
                self.assertTrue(torch.equal(weight.dequantize(torch.bfloat16) if "mx" in scheme else weight.dequantize(),
                                            expected), scheme)

    def test_a_quantized_head_loads(self):
        quantized = self.quantize("intx-weight-only", "bits=8", "lm_head")
        exported, _ = self.export(quantized, "torchao")
        loaded = self.load(exported)
        self.assertTrue(torch.equal(loaded.lm_head.weight.dequantize(), self.values(quantized)["lm_head.weight"]))
        _, agreement = self.compare("torchao intx-weight-only, head too", self.logits(self.reference(self.values(quantized))),
                                    self.logits(loaded))
        self.assertEqual(agreement, 1.0)

    def test_layers_of_several_schemes_load(self):
        quantized = self.quantize("8da4w", "group_size=32", EPS, "down_proj=int8-weight-only")
        exported, _ = self.export(quantized, "torchao")
        config = json.loads((exported / "config.json").read_text())["quantization_config"]["quant_type"]["default"]
        by_module = config_from_dict(config).fqn_to_config
        self.assertEqual(type(by_module["model.layers.0.mlp.down_proj"]), Int8WeightOnlyConfig)
        self.assertEqual(type(by_module["model.layers.0.mlp.up_proj"]), Int8DynamicActivationIntxWeightConfig)
        loaded = self.load(exported)
        values = self.values(quantized)
        for name, weight in loaded.named_parameters():
            if "proj" in name:
                self.assertEqual(type(weight.data).__name__,
                                 "Int8Tensor" if "down_proj" in name else "IntxUnpackedToInt8Tensor")
                self.assertTrue(torch.equal(weight.dequantize(), values[name]), name)
        self.assertEqual(self.logits(loaded).shape, (192, 256))

    def test_another_grid_or_dtype_is_refused(self):
        with self.assertRaisesRegex(AssertionError, "torchao has no blocks of GGUF"):
            self.export(self.quantize("gguf-q8_0"), "torchao")
        with self.assertRaisesRegex(AssertionError, "the weights were quantized from BFloat16"):
            self.export(self.quantize("8da4w"), "torchao", "--dtype", "float32")


if __name__ == "__main__":
    main()
