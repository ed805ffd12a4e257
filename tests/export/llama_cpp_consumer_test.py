"""llama.cpp, built from its source package, computes with the GGUF files of --format gguf and gives our token ids."""
import consumers  # noqa: F401

import os
import pathlib
import subprocess
import sys
import unittest

import numpy as np
import torch

sys.path.append(subprocess.run([consumers.ROOT / "tools/build_llama_cpp.sh"], check=True, capture_output=True,
                               text=True).stdout.strip())
import llama_cpp  # noqa: E402

from trained_model import NARROWGAUGE, TrainedModel, main, run  # noqa: E402

TEXTS = ["def forward(self, x):\n    return x", "It's 12345 o'clock,\r\n\r\n\tdon't   wait  ", "naïve Ω≈ç√ 東京 🙂 \u200bzero",
         " leading", "trailing ", "\n\n\n", "x=1;y==2!=3", "<|endoftext|> is text here", "A'S b'Ll C'RE"]


class LlamaCpp(TrainedModel):
    DTYPE = "float32"
    TOKENIZER = "bytes"

    def open(self, path, **options):
        return llama_cpp.Llama(str(path), n_ctx=256, n_batch=256, n_threads=1, verbose=False, logits_all=True, **options)

    def llama_logits(self, path):
        # The cache in fp32: its default is fp16.
        model = self.open(path, type_k=0, type_v=0, flash_attn=False)
        tokens = self.tokens()[0].tolist()
        model.eval(tokens)
        return torch.from_numpy(np.array(model.scores[:len(tokens)]))

    def test_plain_files_compute_the_models_logits(self):
        reference = self.logits(self.reference(self.plain_values(), torch.float32))
        for dtype, bound, least in (("float32", 2e-4, 1.0), ("float16", 1e-2, 0.99)):
            exported, _ = self.export(self.run_dir, "gguf", "--dtype", dtype)
            largest, agreement = self.compare(f"llama.cpp {dtype}", reference, self.llama_logits(exported))
            self.assertLess(largest, bound)
            self.assertGreaterEqual(agreement, least)

    def plain_values(self):
        from safetensors.torch import load_file
        return load_file(self.plain / "model.safetensors")

    def test_quantized_files_compute_the_models_logits(self):
        # llama.cpp rounds the inputs of quantized products to 8 bits; nothing else differs.
        for scheme, bound in (("gguf-q8_0", 0.2), ("gguf-q4_0", 0.2)):
            quantized = self.quantize(scheme)
            exported, _ = self.export(quantized, "gguf", "--tokenizer", "bytes")
            reference = self.logits(self.reference(self.values(quantized), torch.float32))
            largest, agreement = self.compare(f"llama.cpp {scheme}", reference, self.llama_logits(exported))
            self.assertLess(largest, bound)
            self.assertGreaterEqual(agreement, 0.99)  # one token of 192 may be a tie

    def test_bytes_are_tokens(self):
        exported, _ = self.export(self.run_dir, "gguf", "--dtype", "float16")
        model = self.open(exported)
        for text in TEXTS:
            self.assertEqual(model.tokenize(text.encode(), add_bos=False, special=False), list(text.encode()))
            self.assertEqual(model.detokenize(list(text.encode())), text.encode())


class Tokenizers(unittest.TestCase):
    """Ids of llama.cpp with an exported tokenizer against those of narrowgauge tokenizer encode."""

    @classmethod
    def setUpClass(cls):
        import tempfile
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        (cls.folder / "text.txt").write_text(pathlib.Path(torch.__file__).parent.joinpath("functional.py").read_text())

    def check(self, name, tokenizer, vocab_size, ids_of):
        import transformers
        config = transformers.LlamaConfig(vocab_size=vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                          num_attention_heads=2, num_key_value_heads=2)
        directory = self.folder / name
        transformers.LlamaForCausalLM(config).save_pretrained(directory)
        for file in tokenizer:
            (directory / file.name).write_bytes(file.read_bytes())
        run(NARROWGAUGE, "export", directory, "--format", "gguf", "--output", self.folder / f"{name}.gguf")
        model = llama_cpp.Llama(str(self.folder / f"{name}.gguf"), vocab_only=True, verbose=False)
        long_text = (self.folder / "text.txt").read_text()
        for text in [*TEXTS, long_text[:20000]]:
            ids = model.tokenize(text.encode(), add_bos=False, special=False)
            self.assertEqual(ids, ids_of(text), f"{name}: {text[:60]!r}")
        print(f"{name}: ids equal on {len(TEXTS)} texts and 20,000 characters", flush=True)

    def test_trained_bpe(self):
        import tokenizers
        for pattern in ("llama3", "gpt2"):
            folder = self.folder / f"tok-{pattern}"
            folder.mkdir()
            run(NARROWGAUGE, "tokenizer", "train", "--vocab-size", "1000", "--pre-tokenizer", pattern, "--output",
                folder / "tokenizer.json", self.folder / "text.txt")
            peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            peer.encode_special_tokens = True
            self.check(f"bpe-{pattern}", list(folder.iterdir()), 1024,
                       lambda text: peer.encode(text, add_special_tokens=False).ids)

    def test_sentencepiece_bpe(self):
        import sentencepiece
        prefix = self.folder / "spm"
        sentencepiece.SentencePieceTrainer.train(
            input=str(self.folder / "text.txt"), model_prefix=str(prefix), vocab_size=600, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
        model = prefix.with_suffix(".model").rename(self.folder / "tokenizer.model")
        peer = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.check("sentencepiece", [model], 600, peer.encode)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
