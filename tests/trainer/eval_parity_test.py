"""eval's tasks and comparison beside lm-evaluation-harness's formulas, computed with transformers.

Argument: narrowgauge_torch (binary).
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NARROWGAUGE = sys.argv[1]
# fp32 on both sides with other orders of summation.
TOLERANCE = 2e-4
MAX_SEQ_LEN = 48

WORDS = "the man roof sits on a level and looks up at tiles he is pulling ripping off away water dish cage".split()


def sentence(generator, count):
    return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (count,), generator=generator))


def make_tokenizer(folder, text):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    return fast


def make_model(folder, vocab_size, seed):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
                                         max_position_embeddings=MAX_SEQ_LEN)).eval()
    model.save_pretrained(folder)
    return model


def encode_pair(tokenizer, context, continuation):
    """lm_eval/api/model.py, TemplateLM._encode_pair."""
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole = tokenizer.encode(context + continuation, add_special_tokens=False)
    context_ids = tokenizer.encode(context, add_special_tokens=False)
    return context_ids, whole[len(context_ids):]


def log_likelihood(model, context, continuation):
    """lm_eval/models/huggingface.py, _loglikelihood_tokens, one request at a time; in pieces what it refuses."""
    if len(continuation) > MAX_SEQ_LEN:
        half = MAX_SEQ_LEN // 2
        scores = [log_likelihood(model, context + continuation[:begin], continuation[begin:begin + half])
                  for begin in range(0, len(continuation), half)]
        return sum(score for score, _ in scores), all(greedy for _, greedy in scores)
    tokens = (context + continuation)[-(MAX_SEQ_LEN + 1):][:-1]
    with torch.no_grad():
        scores = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)[-len(continuation):]
    target = torch.tensor(continuation)
    return scores.gather(1, target[:, None]).sum().item(), bool((scores.argmax(-1) == target).all())


def preprocess(text):
    """lm_eval/tasks/hellaswag/utils.py."""
    text = text.strip()
    text = text.replace(" [title]", ". ")
    text = re.sub("\\[.*?\\]", "", text)
    return text.replace("  ", " ")


class EvalParity(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.generator = torch.Generator().manual_seed(7)
        self.tokenizer = make_tokenizer(self.folder / "model", " ".join(sentence(self.generator, 9) for _ in range(60)))
        self.model = make_model(self.folder / "model", len(self.tokenizer), 1)

    def write(self, name, objects):
        (self.folder / name).write_text("".join(json.dumps(item) + "\n" for item in objects))
        return self.folder / name

    def eval(self, *arguments):
        done = subprocess.run([NARROWGAUGE, "eval", "--model", self.folder / "model", "--json", *arguments],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def choices(self, questions):
        """acc, acc_norm of (context, choices, gold)."""
        right = right_normalised = 0
        for context, choices, gold in questions:
            scores = [log_likelihood(self.model, *encode_pair(self.tokenizer, context, " " + choice))[0] for choice in choices]
            right += np.argmax(scores) == gold
            right_normalised += np.argmax(scores / np.array([float(len(choice)) for choice in choices])) == gold
        return right / len(questions), right_normalised / len(questions)

    def test_hellaswag(self):
        items = [{"ctx_a": sentence(self.generator, 5 + i), "ctx_b": sentence(self.generator, 2),
                  "activity_label": "Roof [x] work", "label": str(i % 4),
                  "endings": [sentence(self.generator, 1 + (i + 3 * j) % 7) + " [title] é." for j in range(4)]}
                 for i in range(40)]  # the longest go beyond the model's positions
        result, = self.eval("--tasks", "hellaswag", "--data", self.write("h.jsonl", items))
        questions = [(preprocess(item["activity_label"] + ": " + item["ctx_a"] + " " + item["ctx_b"].capitalize()),
                      [preprocess(ending) for ending in item["endings"]], int(item["label"])) for item in items]
        acc, acc_norm = self.choices(questions)
        self.assertEqual((result["items"], result["acc"], result["acc_norm"]), (40, acc, acc_norm))
        self.assertNotEqual(acc, acc_norm)  # else the test would not tell them apart
        self.assertAlmostEqual(result["acc_stderr"], np.std([1] * round(40 * acc) + [0] * round(40 * (1 - acc)), ddof=1) / 40**0.5)

    def test_piqa_and_limit(self):
        items = [{"goal": sentence(self.generator, 4), "sol1": sentence(self.generator, 1 + i % 5),
                  "sol2": sentence(self.generator, 5 - i % 5), "label": i % 2} for i in range(30)]
        items[3]["sol1"] = sentence(self.generator, 130)  # alone longer than the model's positions
        self.assertGreater(len(self.tokenizer.encode(items[3]["sol1"])), 2 * MAX_SEQ_LEN)
        result, = self.eval("--tasks", "piqa", "--limit", "25", "--data", self.write("p.jsonl", items))
        acc, acc_norm = self.choices([(f"Question: {item['goal']}\nAnswer:", [item["sol1"], item["sol2"]], item["label"])
                                      for item in items[:25]])
        self.assertEqual((result["items"], result["acc"], result["acc_norm"]), (25, acc, acc_norm))

    def test_lambada(self):
        texts = [sentence(self.generator, 6 + i % 9) for i in range(29)]
        # One whose last word is what the model would say, so that greedy decoding is right once.
        prompt = self.tokenizer.encode(texts[0], add_special_tokens=False)
        for word in WORDS:
            target = encode_pair(self.tokenizer, texts[0], " " + word)[1]
            if log_likelihood(self.model, prompt, target)[1]:
                texts.append(texts[0] + " " + word)
        result, = self.eval("--tasks", "lambada", "--data", self.write("l.jsonl", [{"text": text} for text in texts]))
        scores = [log_likelihood(self.model, *encode_pair(self.tokenizer, " ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]))
                  for text in texts]
        self.assertEqual(result["acc"], sum(greedy for _, greedy in scores) / len(scores))
        expected = np.exp(-np.mean([score for score, _ in scores]))
        self.assertAlmostEqual(result["perplexity"] / expected, 1.0, delta=TOLERANCE)

    def test_comparison(self):
        other = make_model(self.folder / "other", len(self.tokenizer), 2)
        text = " ".join(sentence(self.generator, 8) for _ in range(30))
        (self.folder / "text.txt").write_text(text)
        perplexity, result = self.eval("--compare", f"{self.folder / 'other'},{self.folder / 'model'}",
                                       "--data", self.folder / "text.txt", "--seq-len", "16")
        tokens = torch.tensor(self.tokenizer.encode(text, add_special_tokens=False))
        divergences, same, loss = [], [], 0.0
        with torch.no_grad():
            for begin in range(0, len(tokens) - 1, 16):
                window = tokens[begin:begin + 17]
                base, scores = (model(window[None, :-1]).logits[0].double().log_softmax(-1) for model in (self.model, other))
                divergences += (base.exp() * (base - scores)).sum(-1).tolist()
                same += (base.argmax(-1) == scores.argmax(-1)).tolist()
                loss -= scores.gather(1, window[1:, None]).sum().item()
        base, theirs, itself = result["models"]
        self.assertEqual(result["tokens"], len(divergences))
        self.assertAlmostEqual(theirs["kl_mean"] / np.mean(divergences), 1.0, delta=TOLERANCE)
        self.assertAlmostEqual(theirs["kl_max"] / np.max(divergences), 1.0, delta=TOLERANCE)
        self.assertAlmostEqual(theirs["kl_stderr"] / (np.std(divergences, ddof=1) / len(divergences)**0.5), 1.0, delta=TOLERANCE)
        self.assertAlmostEqual(theirs["kl_median"] / np.quantile(divergences, 0.5, method="inverted_cdf"), 1.0, delta=TOLERANCE)
        self.assertAlmostEqual(theirs["loss"], loss / len(divergences), delta=TOLERANCE)
        self.assertEqual(theirs["same_top1"], np.mean(same))
        for same_model in (base, itself):
            self.assertEqual((same_model["kl_max"], same_model["same_top1"]), (0.0, 1.0))
            self.assertAlmostEqual(same_model["loss"], perplexity["loss"], delta=1e-6)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
