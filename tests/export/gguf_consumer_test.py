"""gguf-py, llama.cpp's own reader, and transformers read what --format gguf writes."""
import consumers  # noqa: F401

import gguf
import numpy as np
import torch
import transformers

from trained_model import TrainedModel, main

NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight"}


def gguf_name(name):
    if name in ENDS:
        return ENDS[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permuted(name, weight, heads=4, kv_heads=2):
    """What llama.cpp's conversion script (LlamaModel.permute) makes of q and k."""
    count = heads if "q_proj" in name else kv_heads if "k_proj" in name else None
    if count is None:
        return weight
    return weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


class Gguf(TrainedModel):
    def check(self, path, values, type):
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.assertEqual(len(tensors), len(values))
        for name, value in values.items():
            tensor = tensors[gguf_name(name)]
            plain = value.dim() == 1 or name in ENDS
            self.assertEqual(tensor.tensor_type.name, "F32" if value.dim() == 1 else "BF16" if plain else type)
            read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            expected = permuted(name, value.float().numpy())
            if plain or type not in ("Q4_0", "Q8_0"):
                self.assertTrue(np.array_equal(read, expected), name)
            else:  # the values of the file are fp32, ours were rounded to bf16
                self.assertTrue(np.array_equal(torch.from_numpy(read).bfloat16().float().numpy(), expected), name)
        return reader

    def test_gguf_py_reads_codes_and_values(self):
        for scheme, type in (("gguf-q4_0", "Q4_0"), ("gguf-q8_0", "Q8_0")):
            with self.subTest(scheme=scheme):
                quantized = self.quantize(scheme)
                exported, _ = self.export(quantized, "gguf", "--tokenizer", "bytes")
                reader = self.check(exported, self.values(quantized), type)
                fields = {name: field.contents() for name, field in reader.fields.items()}
                self.assertEqual(fields["general.architecture"], "llama")
                self.assertEqual(fields["llama.embedding_length"], 128)
                self.assertEqual(fields["llama.attention.head_count_kv"], 2)
                self.assertEqual(len(fields["tokenizer.ggml.tokens"]), 256)
                self.assertEqual(fields["tokenizer.ggml.tokens"][ord("a")], "a")

    def test_codes_are_those_of_gguf_py(self):
        # The grid itself: gguf-py quantizes the plain weights to the same bytes. It rounds x * (1 / d) before it adds
        # 8.5, where llama.cpp's compiled code (and ours) rounds the sum once: a tie in ten thousand falls otherwise.
        plain = transformers.AutoModelForCausalLM.from_pretrained(self.plain, dtype=torch.float32).state_dict()
        for scheme, type in (("gguf-q4_0", gguf.GGMLQuantizationType.Q4_0), ("gguf-q8_0", gguf.GGMLQuantizationType.Q8_0)):
            exported, _ = self.export(self.quantize(scheme), "gguf")
            tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported).tensors}
            for name, weight in plain.items():
                if "proj" in name:
                    expected = gguf.quants.quantize(permuted(name, weight.numpy()), type)
                    different = tensors[gguf_name(name)].data != expected
                    self.assertLessEqual(different.sum(), 0 if type.name == "Q8_0" else 2 + 1e-3 * different.size,
                                         f"{scheme} {name}")

    def test_plain_types(self):
        model = transformers.AutoModelForCausalLM.from_pretrained(self.plain, dtype=torch.float32)
        for source in (self.plain, self.run_dir):
            for dtype, type, torch_dtype in (("float32", "F32", torch.float32), ("float16", "F16", torch.float16),
                                             ("bfloat16", "BF16", torch.bfloat16)):
                with self.subTest(dtype=dtype, source=source.name):
                    exported, _ = self.export(source, "gguf", "--dtype", dtype)
                    for tensor in gguf.GGUFReader(exported).tensors:
                        self.assertEqual(tensor.tensor_type.name, type if len(tensor.shape) == 2 else "F32")
                    if source == self.plain:
                        read = gguf.GGUFReader(exported)
                        tensors = {tensor.name: tensor for tensor in read.tensors}
                        for name, weight in model.state_dict().items():
                            actual = gguf.quants.dequantize(tensors[gguf_name(name)].data, tensors[gguf_name(name)].tensor_type)
                            self.assertTrue(np.array_equal(actual, permuted(name, weight.to(torch_dtype).float().numpy())))

    def test_transformers_computes_with_the_file(self):
        quantized = self.quantize("gguf-q4_0")
        exported, _ = self.export(quantized, "gguf")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            exported.parent, gguf_file=exported.name, dtype=torch.float32,
            config=transformers.AutoConfig.from_pretrained(self.plain)).eval()
        values = self.values(quantized)
        for name, weight in loaded.state_dict().items():
            self.assertTrue(torch.equal(weight.bfloat16(), values[name]), name)
        reference = self.reference({name: weight.float() for name, weight in values.items()}, torch.float32)
        _, agreement = self.compare("transformers gguf-q4_0", self.logits(reference), self.logits(loaded))
        self.assertEqual(agreement, 1.0)

    def test_another_grid_is_refused(self):
        with self.assertRaisesRegex(AssertionError, "with the numbers it was trained with: scheme int8-dynamic-act-int4"):
            self.export(self.quantize("8da4w"), "gguf")


if __name__ == "__main__":
    main()
