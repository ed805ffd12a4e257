"""jinja/ beside transformers, which renders chat templates with Jinja itself: the same text and the same marked answers
for templates of the usual families, and for thousands of damaged ones the same text or an error, never another text.

Argument: the program that renders_templates.cc is.
"""
import itertools
import json
import random
import subprocess
import sys
import unittest

from transformers.utils.chat_template_utils import render_jinja_template

from chat_templates import ALL

PROGRAM = sys.argv[1]
TOOL = {"type": "function", "function": {"name": "f", "description": "of \u00e9", "parameters": {
    "type": "object", "properties": {"\u00e9": {"type": "number", "default": 1.5}}, "required": []}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


CALL = [{"function": {"name": "f", "arguments": {"a": 1, "b": [True, None], "c": "\u65e5\u672c\n\"q\""}}}]
CONVERSATIONS = [
    [user("hi")],
    [user("hi"), assistant("hello")],
    [system(" be brief \n"), user("  a\nb "), assistant(" c "), user("\u65e5\u672c \U0001f600"),
     assistant("<think>\nhm\n</think>\n\nok")],
    [user("x"), assistant(""), user("{{ x }} {% if %}"), assistant("y<|im_end|>z")],
    [user("q"), assistant("<think>w</think>v"), user("r"), assistant("t"), user("last")],
    [user("q"), assistant("", tool_calls=CALL), {"role": "tool", "content": "4"}, {"role": "tool", "content": "5"},
     assistant("so 4")],
    [user("q"), assistant("r", reasoning_content="because")],
    [user([{"type": "text", "text": " parts "}]), assistant("p")],
    [assistant("out of turn")],
]


def render_peer(template, variables):
    """Text and marked answers; None where it refuses."""
    variables = dict(variables)
    messages, tools = variables.pop("messages"), variables.pop("tools")
    try:
        texts, marked = render_jinja_template([messages], tools=tools, chat_template=template,
                                              return_assistant_tokens_mask=True, **variables)
    except Exception:
        return None
    return texts[0], [texts[0][begin:end] for begin, end in marked[0]]


class Renderer:
    """The program, one question at a time: an answer that does not come is a crash, and named."""

    def __init__(self):
        self.process = subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, template, variables):
        self.process.stdin.write(json.dumps({"template": template, "variables": variables}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"crashed on {template!r} with {variables!r}"
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def variables_of(messages, tools=None, add_generation_prompt=False, **more):
    return dict(messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt,
                bos_token="<s>", eos_token="</s>", **more)


class TemplateTransformers(unittest.TestCase):
    def setUp(self):
        self.ours = Renderer()
        self.addCleanup(self.ours.close)

    def test_families(self):
        agreed = 0
        for (name, template), messages, tools, prompt, more in itertools.product(
                ALL.items(), CONVERSATIONS, (None, [TOOL]), (False, True), ({}, {"enable_thinking": False})):
            with self.subTest(name, messages=messages, tools=bool(tools), prompt=prompt):
                variables = variables_of(messages, tools, prompt, **more)
                ours, peer = self.ours.ask(template, variables), render_peer(template, variables)
                # A list written as Python writes it is no prompt that anybody wants: refused here.
                if peer is None or "[{'type'" in peer[0]:
                    self.assertIn("error", ours)
                else:
                    self.assertEqual((ours.get("text"), ours.get("generation")), peer, ours.get("error"))
                    agreed += 1
        self.assertGreater(agreed, 150)

    def assert_never_another_text(self, template, variables):
        ours, peer = self.ours.ask(template, variables), render_peer(template, variables)
        # Jinja looks for the names of filters before it renders, and refuses more.
        if "text" not in ours or peer is None:
            return False
        self.assertEqual((ours["text"], ours["generation"]), peer, template)
        return True

    def test_truncated(self):
        variables = variables_of(CONVERSATIONS[2], [TOOL], True)
        for name, template in ALL.items():
            with self.subTest(name):
                for size in range(0, len(template), 3):
                    self.assert_never_another_text(template[:size], variables)

    def test_mutated(self):
        pieces = ["{%", "%}", "{{", "}}", "-", "+", "'", '"', "(", ")", "[", "]", "|", ".", ",", ":", "not ", "loop", "\n",
                  " ", "0", "-1", "#}", "{#", "messages", "=", "==", "%", "~", "/", "*", "if ", "else", "\\", "\u00fc", "\0"]
        choose = random.Random(7)
        rendered = 0
        for _ in range(2500):
            text = choose.choice(list(ALL.values()))
            for _ in range(choose.choice((1, 1, 1, 2, 3))):
                at, end = sorted((choose.randrange(len(text)), choose.randrange(len(text))))
                end = min(end, at + choose.choice((0, 1, 2, 5)))
                text = text[:at] + choose.choice([*pieces, "", ""]) + text[end:]
            messages = choose.choice(CONVERSATIONS)
            rendered += self.assert_never_another_text(text, variables_of(messages, choose.choice((None, [TOOL])), True))
        self.assertGreater(rendered, 300)  # else the mutations were too wild to say anything


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
