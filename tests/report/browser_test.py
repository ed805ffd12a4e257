"""The page as a browser shows it: headless Chromium draws pages of made-up runs, light and dark, wide and on a phone.

    browser_test.py NARROWGAUGE

Needs Debian's package chromium and fails without it. With SCREENSHOTS=FOLDER in the environment the pictures stay there.
"""
import json
import math
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

NARROWGAUGE = os.path.abspath(sys.argv.pop(1))
PROBE = """<!DOCTYPE html><body style="margin:0"><iframe id="f" src="report.html" style="border:0;width:%dpx;height:%dpx"></iframe>
<script>
f.onload = () => {
  const d = f.contentDocument, root = d.documentElement, seen = [];
  for (const e of d.querySelectorAll('main *')) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > root.clientWidth + 1 && !e.closest('.scroll')) seen.push(e.tagName + '.' + e.className);
  }
  const small = [...d.querySelectorAll('.tick text')].map(e => e.getBoundingClientRect().height);
  document.title = JSON.stringify({overflow: root.scrollWidth - root.clientWidth, beyond: seen.slice(0, 5),
    charts: d.querySelectorAll('svg').length, lines: [...d.querySelectorAll('.line')].filter(e => e.getTotalLength() > 0).length,
    smallest_text: Math.min(...small), parse_errors: d.querySelectorAll('parsererror').length});
};
</script>"""


def make_run(folder, seed, steps=4000, diverges=False):
    noise = random.Random(seed)
    folder.mkdir()
    with open(folder / "metrics.jsonl", "w") as log:
        for step in range(1, steps + 1):
            loss = 2.5 + 6 * math.exp(-step / 300) + 0.3 * seed * math.exp(-step / 2000) + noise.gauss(0, 0.06)
            line = {"step": step, "loss": loss if not (diverges and step > steps - 3) else math.nan,
                    "grad_norm": math.exp(noise.gauss(0, 0.4)) * (1 + 40 * math.exp(-step / 50)),
                    "lr": 3e-4 * min(step / 200, 0.5 * (1 + math.cos(math.pi * step / steps))),
                    "tokens_per_second": 151_000 + noise.gauss(0, 2500) - (40_000 if step % 700 == 0 else 0),
                    "step_seconds": 0.4, "peak_memory_bytes": 41.2e9 + (2e9 if step > 500 else 0), "tokens_seen": step * 65536}
            if step % 50 == 0:
                line["float8"] = {f"layers.{i}.mlp.down_proj": {"saturated": 1e-5 * (i + 1) * (1 + noise.random()),
                                                               "underflowed": 2e-3 / (i + 1)} for i in range(12)}
            log.write(json.dumps(line) + "\n")
            if step % 500 == 0:
                log.write(json.dumps({"step": step, "validation_loss": loss + 0.05}) + "\n")
        log.write('{"step": 4001, "lo')
    (folder / "samples.jsonl").write_text("".join(json.dumps(
        {"step": step, "prompt": "def forward(self, ", "text": f"x):\n    # <b>step {step}</b> & more\n    return x\n" + "y" * 300}) + "\n"
        for step in (1000, 2000, 4000)))
    (folder / "config.yaml").write_text(
        f"job:\n  run_dir: runs/{folder.name}\nmodel:\n  dim: 4096\n  num_layers: 12\noptimizer:\n  lr: 3.0e-04\n"
        f"float8:\n  recipe_name: {'none' if seed == 0 else 'tensorwise'}\ntraining:\n  seed: {seed}\n")


def decode_png(path):
    """(width, height, pixel(x, y) -> (r, g, b)) of an 8-bit image without interlace."""
    data = path.read_bytes()
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, color, *_ = struct.unpack(">IIBBBBB", body)
            channels = {2: 3, 6: 4}[color]
            assert depth == 8
        elif kind == b"IDAT":
            packed += body
        at += length + 12
    raw, stride, rows, before = zlib.decompress(packed), width * channels, [], bytes(width * channels)
    for row in range(height):
        begin = row * (stride + 1)
        method, line = raw[begin], bytearray(raw[begin + 1:begin + 1 + stride])
        for i in range(stride):
            left = line[i - channels] if i >= channels else 0
            corner = before[i - channels] if i >= channels else 0
            if method == 1:
                line[i] = (line[i] + left) & 255
            elif method == 2:
                line[i] = (line[i] + before[i]) & 255
            elif method == 3:
                line[i] = (line[i] + (left + before[i]) // 2) & 255
            elif method == 4:
                guess = left + before[i] - corner
                nearest = min((left, before[i], corner), key=lambda value: abs(guess - value))
                line[i] = (line[i] + nearest) & 255
        rows.append(bytes(line))
        before = rows[-1]
    return width, height, lambda x, y: tuple(rows[y][x * channels:x * channels + 3])


class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chromium = shutil.which("chromium")
        assert cls.chromium, "expected the program chromium, got none; apt-get install chromium"
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        make_run(cls.folder / "bf16", 0)
        make_run(cls.folder / "fp8", 1, diverges=True)
        cls.pages = {"one": cls.page("one", "fp8"), "two": cls.page("two", "bf16", "fp8")}

    @classmethod
    def page(cls, name, *runs):
        (cls.folder / name).mkdir()
        path = cls.folder / name / "report.html"
        subprocess.run([NARROWGAUGE, "report", *(cls.folder / run for run in runs), "--output", path], check=True,
                       capture_output=True, timeout=60)
        return path

    def browse(self, *arguments):
        return subprocess.run([self.chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                               "--allow-file-access-from-files", f"--user-data-dir={self.folder}/profile", *arguments],
                              capture_output=True, text=True, timeout=120)

    def shoot(self, name, page, width, height, *arguments):
        picture = pathlib.Path(os.environ.get("SCREENSHOTS", self.folder)) / f"{name}.png"
        result = self.browse(*arguments, f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri())
        self.assertTrue(picture.exists(), result.stderr)
        return decode_png(picture)

    def probe(self, page, width):
        probe = page.parent / f"probe{width}.html"
        probe.write_text(PROBE % (width, 4000))
        result = self.browse("--virtual-time-budget=5000", "--window-size=1600,1200", "--dump-dom", probe.as_uri())
        title = re.search(r"<title>(.*?)</title>", result.stdout)
        self.assertIsNotNone(title, result.stdout[-500:] + result.stderr)
        return json.loads(title[1].replace("&gt;", ">").replace("&amp;", "&"))

    def test_nothing_is_cut_off_at_any_width(self):
        for name, page in self.pages.items():
            for width in (320, 390, 768, 1440):
                with self.subTest(name, width=width):
                    seen = self.probe(page, width)
                    self.assertEqual((seen["overflow"], seen["beyond"], seen["parse_errors"]), (0, [], 0))
                    self.assertEqual(seen["charts"], 7)
                    self.assertGreaterEqual(seen["lines"], 18 if name == "one" else 23)
                    self.assertGreater(seen["smallest_text"], 9)  # CSS pixels, on the narrowest phone

    def test_light_and_dark(self):
        _, _, light = self.shoot("one-light", self.pages["one"], 1280, 1500)
        _, _, dark = self.shoot("one-dark", self.pages["one"], 1280, 1500, "--blink-settings=preferredColorScheme=0")
        self.assertEqual((light(3, 3), dark(3, 3)), ((255, 255, 255), (15, 19, 24)))

    def test_curves_are_drawn_in_the_colours_of_their_runs(self):
        width, height, pixel = self.shoot("two-light", self.pages["two"], 1280, 1500)
        colors = {pixel(x, y) for x in range(0, width, 2) for y in range(0, height, 2)}
        self.assertIn((0x00, 0x72, 0xb2), colors)
        self.assertIn((0xb4, 0x53, 0x09), colors)
        self.shoot("two-phone", self.pages["two"], 500, 1600)


if __name__ == "__main__":
    unittest.main()
