"""Compares token ids with the reference libraries on every document of a file.

    tokenizer_parity.py --command "bazel-bin/trainer/narrowgauge tokenizer" --data texts.jsonl \
        [--gpt2 encoder.json] [--huggingface tokenizer.json] [--sentencepiece tokenizer.model]

Always: byte-level tokenizers like Llama 3's, Qwen's and GPT-2's, trained here on the data. Prints a line a tokenizer and
exits 1 at the first difference, with the document and the place. Texts are the "text" of .jsonl lines, else whole files.
"""
import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import typing

import sentencepiece
import tiktoken
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                  r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

# What tokenizers get wrong: spaces of every kind, marks, joined emoji, right-to-left, newlines, digits, contractions,
# code points beside the surrogates, noncharacters, special tokens inside text.
ADVERSARIAL = [
    "", " ", "  ", "\n", "\r\n", "\0", "a\0b\0\0", "a", " a", "a ", "\t\ta  b\t \n c",
    "Hello, world! It's we'Re THEY'LL i'd I'M don't DON'T 'sup ''s 'ſ 'K x'S",
    "e\u0301 \u00e9 a\u0323\u0307 \u1e9b\u0323 \u212b \u00c5 \uac00 \u1100\u1161\u11a8 \ufb01 \u2460 \u00bd",
    "\u0301\u0301\u0301 \u0301a", "q\u0307\u0323 q\u0323\u0307",
    "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 \U0001F1E9\U0001F1EA \u2764\ufe0f \U0001F44D\U0001F3FD",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u200f\u202eabc\u202c", "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\ud55c\uad6d\uc5b4",
    "\ud7ff\ue000\uf8ff\ufffd\ufffe\uffff\U00010000\U0010ffff", "\ufeffbom \ufeff",
    "a\u0085b\u00a0c\u1680d\u180ee\u2000f\u2009g\u200ah\u200bi\u2028j\u2029k\u202fl\u205fm\u2060n\u3000o",
    " \u00a0 \u2003\u2003x \u0085\u0085 \u2028\n\u2029 y\u3000\u3000", "x" + " " * 1000 + "y" + "\n" * 500 + " " * 3 + "z" + "\t" * 200,
    "7" * 1000, "1 12 123 1234 12345 123456 1,234.56 0x1F 1e-9 \u0661\u0662\u0663\u0664 \u00b2\u00b3\u2074 \u2167 \u0be7\u0be8",
    "\r\r\n\n\r \r\n x\r\ny", "   \n   \n\n  a", "!!!...???---___***\n\n$$$ \n%%%\r\n@@", "a_b__c-d--e/f\\g", "\x01\x02\x1b[0m\x7f\x80\x9f",
    "<|endoftext|>", "a<|endoftext|>b <|endoftext|> <|endoftext|><|endoftext|>", "<|endoftext|", "<|endof<|endoftext|>text|>",
    "<|begin_of_text|>x<|end_of_text|> <|im_start|>user\nhi<|im_end|>\n", "<s> </s> <unk> <pad>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababababababababababababababababababababababababababababababab" * 20,
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x**2}  # \u03bb \u2192 \u221e\n\n\n" * 3,
    "Zu\u0308rich \u0130stanbul \u0131\u017f stra\u00dfe STRASSE \u01c5 \u02b0 \u00aa\u00ba \u00b5", "\u0915\u094d\u0937\u093f \u0ba8\u0bbf \u0e01\u0e33 \u1019\u103c\u1014\u103a",
    "\u24b6\u24d0\U0001F130\U0001D54F\U00020000\U000E0041", "\u202a\u2066\u2069\u061c\u200e", "a\u0300" * 300, "\u4e00" * 700,
]


@dataclasses.dataclass
class Case:
    name: str
    arguments: list  # of the command, to name the tokenizer
    encode: typing.Callable
    encode_document: typing.Callable
    decode: typing.Callable


def run_command(command, arguments, lines):
    """The JSON lines that the command prints for `lines`, and the seconds it took."""
    start = time.time()
    done = subprocess.run([*command, *arguments], input="".join(json.dumps(line) + "\n" for line in lines).encode(),
                          stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{arguments}: exit code {done.returncode}")
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    if len(printed) != len(lines):
        raise SystemExit(f"{arguments}: expected {len(lines)} lines, got {len(printed)}")
    return printed, time.time() - start


def require_equal(name, what, texts, ours, theirs):
    for index, (text, our, their) in enumerate(zip(texts, ours, theirs, strict=True)):
        if our != their:
            place = next((i for i, (a, b) in enumerate(zip(our, their)) if a != b), min(len(our), len(their)))
            raise SystemExit(f"{name}: {what} of document {index} ({text[:60]!r}...) differ at {place}: "
                             f"{our[place:place + 8]!r} instead of {their[place:place + 8]!r}")


def check(case, command, texts):
    """Compares ids, ids of documents and decoded text; returns (number of ids, seconds of ours, of the reference)."""
    encoded, seconds = run_command(command, ["encode", "--json", *case.arguments], texts)
    start = time.time()
    expected = [list(case.encode(text)) for text in texts]
    reference_seconds = time.time() - start
    require_equal(case.name, "ids", texts, encoded, expected)
    documents, _ = run_command(command, ["encode", "--json", "--document", *case.arguments], texts)
    require_equal(case.name, "document ids", texts, documents, [list(case.encode_document(text)) for text in texts])
    # Cut ids break characters, so that U+FFFD is compared too.
    cut = [ids[1::2] for ids in expected[:200]]
    decoded, _ = run_command(command, ["decode", "--json", *case.arguments], expected + cut)
    require_equal(case.name, "text", texts + texts[:200], decoded, [case.decode(ids) for ids in expected + cut])
    return sum(map(len, expected)), seconds, reference_seconds


def huggingface(name, path):
    reference = Tokenizer.from_file(str(path))
    return Case(name, ["--tokenizer", str(path), "--kind", "huggingface"],
                lambda text: reference.encode(text, add_special_tokens=False).ids,
                lambda text: reference.encode(text).ids,
                lambda ids: reference.decode(ids, skip_special_tokens=False))


def gpt2(path):
    """tiktoken, built from the files of GPT-2."""
    encoder = json.loads(pathlib.Path(path).read_text())
    characters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    assert set(byte_of) == set(characters)
    special = {token: i for token, i in encoder.items() if token == "<|endoftext|>"}
    ranks = {bytes(byte_of[c] for c in token): i for token, i in encoder.items() if token not in special}
    reference = tiktoken.Encoding("gpt2_files", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def encode(text):
        return reference.encode(text, allowed_special="all")
    return Case("gpt2", ["--tokenizer", str(path), "--kind", "gpt2"], encode, encode, reference.decode)


def sentence_piece(path):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    bos = [reference.bos_id()] if reference.bos_id() >= 0 else []
    return Case(f"sentencepiece {pathlib.Path(path).name}", ["--tokenizer", str(path), "--kind", "sentencepiece"],
                reference.encode, lambda text: bos + reference.encode(text), reference.decode)


def train(texts, vocab_size, pattern, normalizer, special_tokens):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    return tokenizer


def save(tokenizer, path, **model):
    """Writes tokenizer.json with changed keys of its model."""
    document = json.loads(tokenizer.to_str())
    document["model"].update(model)
    path.write_text(json.dumps(document))
    return path


def llama3_like(texts, directory, vocab_size):
    tokenizer = train(texts, vocab_size, LLAMA3_PATTERN, None, ["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.add_special_tokens(["<|eot_id|>", "<|endoftext|>"])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", 0)])])
    return huggingface("llama3-like", save(tokenizer, directory / "llama3.json", ignore_merges=True))


def qwen_like(texts, directory, vocab_size):
    tokenizer = train(texts, vocab_size, QWEN_PATTERN, normalizers.NFC(), [])
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("caf\u00e9s", normalized=True)])
    return huggingface("qwen-like", save(tokenizer, directory / "qwen.json"))


def gpt2_like(texts, directory, vocab_size):
    """encoder.json and vocab.bpe, and the same as a tokenizer.json."""
    tokenizer = train(texts, vocab_size, GPT2_PATTERN, None, [])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = json.loads(tokenizer.to_str())["model"]
    # tiktoken takes ranks for ids and reads no merges, so that the ids must be the order of merging.
    merged = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in model["merges"]}
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    assert len(vocab) == 256 + len(merged), "two merges made one token: tiktoken cannot follow"
    (directory / "encoder.json").write_text(json.dumps(vocab | {"<|endoftext|>": len(vocab)}))
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (directory / "vocab.bpe").write_text("#version: 0.2\n" + "".join(pair + "\n" for pair in pairs))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return [gpt2(directory / "encoder.json"), huggingface("gpt2-like", save(tokenizer, directory / "gpt2.json"))]


def read_texts(path):
    path = pathlib.Path(path)
    if path.suffix == ".jsonl":
        return [json.loads(line)["text"] for line in path.read_bytes().decode().split("\n") if line]
    return [path.read_bytes().decode()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", required=True)
    parser.add_argument("--data", required=True, action="append")
    parser.add_argument("--vocab-size", type=int, default=8000)
    for kind in ("gpt2", "huggingface", "sentencepiece"):
        parser.add_argument("--" + kind, action="append", default=[])
    options = parser.parse_args()
    texts = [text for path in options.data for text in read_texts(path)]
    size = sum(len(text.encode()) for text in texts)
    command = options.command.split()
    print(f"{len(texts)} documents, {size / 1e6:.1f} MB, and {len(ADVERSARIAL)} adversarial texts")
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        cases = [gpt2(path) for path in options.gpt2]
        cases += [huggingface(f"huggingface {pathlib.Path(path).name}", path) for path in options.huggingface]
        cases += [sentence_piece(path) for path in options.sentencepiece]
        sample = texts[::4] if len(texts) > 4 else texts
        cases += [llama3_like(sample, directory, options.vocab_size), qwen_like(sample, directory, options.vocab_size)]
        cases += gpt2_like(sample, directory, options.vocab_size)
        for case in cases:
            check(case, command, ADVERSARIAL)
            num_ids, ours, theirs = check(case, command, texts)
            print(f"{case.name}: {num_ids} ids equal; {size / 1e6 / ours:.1f} MB/s with start-up and JSON, "
                  f"reference {size / 1e6 / theirs:.1f} MB/s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
