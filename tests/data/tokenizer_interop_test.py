"""Our tokenizers against the reference libraries: Hugging Face tokenizers, tiktoken, sentencepiece.

    tokenizer_interop_test.py NARROWGAUGE
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

import sentencepiece
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import tokenizer_parity as parity

COMMAND = [str(pathlib.Path(sys.argv.pop(1)).resolve()), "tokenizer"]


def corpus():
    """Documents of words, code, numbers and other scripts, the same each time."""
    generator = random.Random(1)
    syllables = ["the", "ing", "re", "con", "ti", "on", "er", "qu", "is", "'s", "\u00e9", "\u0448\u043b\u0430", "\u4f60\u597d", "\u05e9\u05dc", "\U0001F600"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(400)]
    separators = [" "] * 8 + ["\n", ", ", ".\n\n", "  ", "(", ") = ", "\t", "_"]
    documents = []
    for _ in range(60):
        parts = []
        for _ in range(200):
            parts += [generator.choice(words), generator.choice(separators)]
            if generator.random() < 0.1:
                parts.append(str(generator.randint(0, 10**generator.randint(1, 7))))
        documents.append("".join(parts))
    return documents


def random_unicode(count):
    """Texts of characters from everywhere, some of them new in Unicode 15 and 16."""
    generator = random.Random(2)
    ranges = [(0x20, 0x7E), (0x20, 0x7E), (0x9, 0xD), (0x80, 0x24F), (0x300, 0x36F), (0x391, 0x3A1), (0x5D0, 0x5EA),
              (0x627, 0x64A), (0x905, 0x939), (0xE01, 0xE2E), (0x1100, 0x1112), (0x2000, 0x206F), (0x2070, 0x2071),
              (0x2150, 0x218B), (0x2460, 0x24FF), (0x3000, 0x30FF), (0x4E00, 0x9FFC), (0xAC00, 0xD7A3), (0xE000, 0xE010),
              (0xFB00, 0xFB06), (0xFF01, 0xFF5E), (0x1D400, 0x1D454), (0x1F300, 0x1F5FF), (0x20000, 0x2A6D6),
              (0x31350, 0x323AF), (0x10D40, 0x10D85), (0x11F00, 0x11F59), (0x1D2C0, 0x1D2D3), (0x1C89, 0x1C8A)]
    return ["".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(generator.randint(1, 60)))
            for _ in range(count)]


CORPUS = corpus()
TEXTS = CORPUS[:20] + parity.ADVERSARIAL + random_unicode(300)


class Interop(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = pathlib.Path(temporary.name)

    def check(self, case, texts=None):
        num_ids, _, _ = parity.check(case, COMMAND, texts or TEXTS)
        self.assertGreater(num_ids, 10 * len(texts or TEXTS), "too few ids to mean anything")

    def check_tokenizer(self, name, tokenizer, **model):
        self.check(parity.huggingface(name, parity.save(tokenizer, self.directory / "tokenizer.json", **model)))

    def trained(self, **changes):
        return parity.train(CORPUS, 700, changes.get("pattern", parity.LLAMA3_PATTERN), changes.get("normalizer"),
                            changes.get("special_tokens", ["<|endoftext|>"]))

    def test_llama3(self):
        self.check(parity.llama3_like(CORPUS, self.directory, 800))

    def test_qwen(self):
        self.check(parity.qwen_like(CORPUS, self.directory, 800))

    def test_gpt2_against_tiktoken_and_tokenizers(self):
        for case in parity.gpt2_like(CORPUS, self.directory, 800):
            self.check(case)

    def test_prefix_space(self):
        tokenizer = self.trained()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self.check_tokenizer("prefix space", tokenizer)

    def test_digits_and_punctuation(self):
        tokenizer = self.trained()
        texts = TEXTS[15:200]
        for individual in (True, False):
            for behavior in ("isolated", "contiguous", "merged_with_previous", "merged_with_next", "removed"):
                tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                    pre_tokenizers.Digits(individual_digits=individual), pre_tokenizers.Punctuation(behavior=behavior),
                    pre_tokenizers.ByteLevel(add_prefix_space=False)])
                path = parity.save(tokenizer, self.directory / "tokenizer.json")
                reference = Tokenizer.from_file(str(path))
                ours, _ = parity.run_command(COMMAND, ["encode", "--json", "--tokenizer", str(path)], texts)
                parity.require_equal(behavior, "ids", texts, ours, [reference.encode(text).ids for text in texts])

    def test_split_behaviors(self):
        tokenizer = self.trained()
        texts = TEXTS[15:100]
        # Each behavior meets each pattern, and in turn both values of invert.
        for i, pattern in enumerate((Regex(r"[\p{N}\s]|\P{M}\p{M}+"), Regex(r"\w+|[^\w\s]+"), Regex(r"\d{2}|(?<=a)b|x*"),
                                     "on", ".")):
            for k, behavior in enumerate(("isolated", "contiguous", "merged_with_previous", "merged_with_next", "removed")):
                invert = (i + k) % 2 == 1
                tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                    pre_tokenizers.Split(pattern, behavior, invert),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
                path = parity.save(tokenizer, self.directory / "tokenizer.json")
                reference = Tokenizer.from_file(str(path))
                ours, _ = parity.run_command(COMMAND, ["encode", "--json", "--tokenizer", str(path)], texts)
                parity.require_equal(f"{pattern} {behavior} {invert}", "ids", texts, ours,
                                     [reference.encode(text).ids for text in texts])

    def test_normal_forms(self):
        for normalizer in (normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(),
                           normalizers.Sequence([normalizers.NFC(), normalizers.Replace("e", "<|endoftext|>"),
                                                 normalizers.Replace(Regex(r"\s+"), "\n"), normalizers.Prepend("_")])):
            tokenizer = self.trained()
            tokenizer.normalizer = normalizer
            self.check_tokenizer(str(normalizer), tokenizer)

    def test_added_token_flags(self):
        for normalizer in (None, normalizers.NFKC()):
            tokenizer = self.trained(special_tokens=[])
            tokenizer.normalizer = normalizer
            for flags in range(16):
                tokenizer.add_tokens([AddedToken(f"t{flags}t", lstrip=bool(flags & 1), rstrip=bool(flags & 2),
                                                 single_word=bool(flags & 4), normalized=bool(flags & 8))])
            tokenizer.add_tokens(["  ", "   ", "\n\n", "the", "\ufb01x", "e"])
            tokenizer.add_special_tokens(["<|endoftext|>", "<|endoftext|>x", "th"])
            generator = random.Random(3)
            parts = [f"t{i}t" for i in range(16)] + [" ", "  ", "\n", "\u3000", "a", "_", "\u00b2", "\u24b6", "\u200d", "-", "th", "the", "e\u0301",
                                                    "fix", "\ufb01x", "<|endoftext|>", "x"]
            texts = ["".join(generator.choices(parts, k=40)) for _ in range(200)]
            path = parity.save(tokenizer, self.directory / "tokenizer.json")
            self.check(parity.huggingface("flags", path), texts)

    def test_character_model_with_byte_fallback(self):
        """The layout of Llama 2's tokenizer.json."""
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(" ", 1, 0)])
        words = [word for document in CORPUS[:10] for word in document.split()]
        tokenizer.train_from_iterator(words, trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False))
        document = json.loads(tokenizer.to_str())
        document["added_tokens"] = document["added_tokens"][:3]
        path = self.directory / "tokenizer.json"
        path.write_text(json.dumps(document))
        self.check(parity.huggingface("llama2-like", path))

    def test_sentencepiece(self):
        # Runs of one character tie in unigram models; a long text makes the sums of scores large.
        ruled = [character * length for character in "=-*#" for length in range(1, 80)]
        (self.directory / "text.txt").write_text("\n".join(CORPUS + ruled))
        texts = TEXTS[::2] + ruled[::3] + ["\n".join(CORPUS + ruled)]
        for model_type, byte_fallback in (("bpe", True), ("unigram", False)):
            prefix = self.directory / model_type
            sentencepiece.SentencePieceTrainer.train(
                input=str(self.directory / "text.txt"), model_prefix=str(prefix), vocab_size=700, model_type=model_type,
                byte_fallback=byte_fallback, minloglevel=2, hard_vocab_limit=False, num_threads=1)
            self.check(parity.sentence_piece(f"{prefix}.model"), texts)

    def test_training_equals_tokenizers(self):
        text = self.directory / "text.jsonl"
        text.write_text("".join(json.dumps({"text": document}) + "\n" for document in CORPUS))
        for name, pre_tokenizer in (("gpt2", pre_tokenizers.ByteLevel(add_prefix_space=False)), ("llama3", None)):
            path = self.directory / name / "tokenizer.json"
            subprocess.run([*COMMAND, "train", "--output", str(path), "--vocab-size", "900", "--pre-tokenizer", name, "--threads",
                            "2", str(text)], check=True, stderr=subprocess.PIPE)
            reference = Tokenizer(models.BPE())
            reference.pre_tokenizer = pre_tokenizer or parity.train(["a"], 300, parity.LLAMA3_PATTERN, None, []).pre_tokenizer
            reference.train_from_iterator(CORPUS, trainers.BpeTrainer(
                vocab_size=900, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False))
            ours = Tokenizer.from_file(str(path))
            self.assertEqual(ours.get_vocab(), reference.get_vocab())
            self.assertEqual(ours.get_vocab_size(), 900)
            self.assertEqual([tuple(merge) for merge in json.loads(ours.to_str())["model"]["merges"]],
                             [tuple(merge) for merge in json.loads(reference.to_str())["model"]["merges"]])
            self.check(parity.huggingface(name, path))
            # And transformers loads the directory, end of documents included.
            loaded = transformers.AutoTokenizer.from_pretrained(str(path.parent))
            self.assertEqual(loaded.eos_token_id, 0)
            self.assertEqual(loaded.encode(CORPUS[0]), reference.encode(CORPUS[0]).ids)

    def run_command(self, *arguments, text=b""):
        done = subprocess.run([*COMMAND, *arguments], input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def fails(self, code, error, *arguments, text=b""):
        got, _, errors = self.run_command(*arguments, text=text)
        self.assertEqual((got, error in errors), (code, True), f"{arguments} {text}: {errors}")

    def test_command_line(self):
        run = self.run_command
        self.assertEqual(run("encode", "--tokenizer", "bytes", text=b"a\n\n\xc3"), (0, "[97]\n[]\n[195]\n", ""))
        self.assertEqual(run("decode", "--tokenizer", "bytes", text=b"[97]\n[]\n[104, 105]\n"), (0, "a\n\nhi\n", ""))
        path = str(parity.save(self.trained(), self.directory / "tokenizer.json"))
        self.fails(1, "No such file", "encode", "--tokenizer", path + "x")
        self.fails(2, "expected vocab_size from 257", "train", "--output", path, "--vocab-size", "10", path + "x")
        self.fails(1, path + "x", "train", "--output", path, "--vocab-size", "300", path + "x")

    def test_bad_lines(self):
        path = str(parity.save(self.trained(), self.directory / "tokenizer.json"))
        self.fails(1, "line 2: expected UTF-8 text, got byte 0xFF at offset 2 of 3; convert the text or replace its invalid bytes (--invalid-utf8 replace)", "encode",
                   "--tokenizer", path, text=b"fine\nba\xff\n")
        for bad in (b"\xff", b"a\xe2\x82b"):
            replaced = self.run_command("encode", "--tokenizer", path, "--invalid-utf8", "replace", text=bad)
            good = self.run_command("encode", "--tokenizer", path, text=bad.decode(errors="replace").encode())
            self.assertEqual(replaced, good)
        self.fails(1, "line 1: expected a JSON string such as \"text\", got", "encode", "--json", "--tokenizer", path, text=b"5\n")
        for line in ("[1, 2", "", "x", "5", "{}", "null", '"[1]"'):
            self.fails(1, "line 2: expected a JSON array of ids such as [1, 2], got ", "decode", "--tokenizer", path,
                       text=b"[1]\n" + line.encode() + b"\n")
        for kind, size in (("bytes", 256), (path, 700)):
            for bad in ("4294967401", "1.9", "true", "-1", str(size), "99999999999999999999999", "null", '"1"', "[1]"):
                self.fails(1, f"line 2: expected a token id in [0, {size}), got ", "decode", "--tokenizer", kind,
                           text=f"[1]\n[0, {bad}]\n".encode())
            self.assertEqual(self.run_command("decode", "--tokenizer", kind, "--json", text=f"[0, {size - 1}]".encode())[0], 0)

    def test_training_reports_its_stages(self):
        text = self.directory / "text.jsonl"
        text.write_text("".join(json.dumps({"text": document}) + "\n" for document in CORPUS))
        code, output, errors = self.run_command("train", "--output", str(self.directory / "x" / "tokenizer.json"),
                                                "--vocab-size", "300", str(text))
        self.assertEqual((code, output), (0, ""), errors)
        for stage in ("reading text: ", "counting words: ", "merging: ", "300 entries, from 60 documents, "):
            self.assertIn(errors.count(stage), range(1, 5), errors)
        self.assertTrue((self.directory / "x" / "tokenizer_config.json").exists())


if __name__ == "__main__":
    unittest.main()
