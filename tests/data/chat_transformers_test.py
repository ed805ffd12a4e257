"""Token ids and targets of conversations beside transformers' apply_chat_template: the built-in templates, whose answers
both take from {% generation %}, and one without, whose answers transformers cannot find and we must.

Argument: narrowgauge.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from transformers import PreTrainedTokenizerFast

PROGRAM = sys.argv[1]
SPECIAL = ["<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]
CONVERSATIONS = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " what?\n"},
     {"role": "assistant", "content": "  the cat \u65e5\u672c \U0001f600 "}, {"role": "user", "content": "hi"},
     {"role": "assistant", "content": "hi"}],
    [{"role": "user", "content": "<|im_end|> \u00e9\u00e8"}, {"role": "assistant", "content": "a"},
     {"role": "user", "content": "b"}],
]
UNMARKED = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'
+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def built_in(name):
    """As the program has it: the run keeps the one it was written with."""
    source = pathlib.Path("data/chat_template.cc").read_text()
    return re.search(r'\{"%s", R"\((.*?)\)"\}' % name, source, re.S).group(1)


class ChatTransformers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "text.txt").write_text("the cat is hello brief what user assistant system model " * 50)
        self.run_program("tokenizer", "train", "--vocab-size", 300, "--output", self.folder / "tokenizer.json",
                         *[argument for token in SPECIAL for argument in ("--special-token", token)],
                         self.folder / "text.txt")
        config = json.loads((self.folder / "tokenizer_config.json").read_text())
        config |= {"bos_token": "<s>", "eos_token": "</s>"}
        (self.folder / "tokenizer_config.json").write_text(json.dumps(config))
        (self.folder / "chat.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n"
                                                        for messages in CONVERSATIONS))
        self.peer = PreTrainedTokenizerFast.from_pretrained(self.folder)

    def run_program(self, *arguments):
        ended = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return ended.stdout

    def prepared(self, template):
        """Ids, and for each whether it is a target."""
        output = self.run_program("data", "prepare", "--tokenizer", self.folder / "tokenizer.json", "--chat-template",
                                  template, "--cache-dir", self.folder / "cache", self.folder / "chat.jsonl")
        cache = re.search(r"^cache +(\S+)", output, re.M).group(1)
        lines = self.run_program("data", "inspect", cache, "--window", 1 << 20, "--windows", 1).splitlines()
        ids = next(json.loads(line) for line in lines if line.startswith("  ["))
        marks = next(line.split(": ")[1] for line in lines if line.startswith("  targets: "))
        return ids, [mark == "*" for mark in marks]

    def test_built_in_templates(self):
        for name in ("chatml", "llama3", "mistral", "gemma"):
            with self.subTest(name):
                ids, targets = [], []
                for messages in CONVERSATIONS:
                    encoded = self.peer.apply_chat_template(messages, chat_template=built_in(name), tokenize=True,
                                                            return_dict=True, return_assistant_tokens_mask=True)
                    ids += encoded["input_ids"]
                    targets += [mark == 1 for mark in encoded["assistant_masks"]]
                self.assertGreater(sum(targets), 5)
                self.assertEqual(self.prepared(name), (ids, targets))

    def test_template_without_marks(self):
        (self.folder / "unmarked.jinja").write_text(UNMARKED)
        ids, targets = self.prepared(self.folder / "unmarked.jinja")
        self.assertEqual(ids, [token for messages in CONVERSATIONS for token in self.peer.apply_chat_template(
            messages, chat_template=UNMARKED, tokenize=True, return_dict=False)])
        # The same tokens as where the template marks them.
        self.assertEqual((ids, targets), self.prepared("chatml"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
