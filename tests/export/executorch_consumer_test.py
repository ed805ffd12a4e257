"""examples/lower_to_executorch.py: an exported 8da4w model lowered to XNNPACK runs in ExecuTorch with the model's choices."""
import consumers

import subprocess
import sys

import torch
import transformers

from trained_model import TrainedModel, main


class ExecuTorch(TrainedModel):
    DTYPE = "float32"

    def test_lowered_model_chooses_the_same_tokens(self):
        quantized = self.quantize("8da4w", "group_size=32")
        exported, _ = self.export(quantized, "torchao")
        program = self.folder / "model.pte"
        done = subprocess.run([sys.executable, consumers.ROOT / "examples/lower_to_executorch.py", exported, program,
                               "--length", "64"], capture_output=True, text=True, env=None)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        print(done.stdout, flush=True)
        from executorch.runtime import Runtime
        method = Runtime.get().load_program(str(program)).load_method("forward")
        tokens = self.tokens(64)
        actual = method.execute((tokens,))[0][0].float()
        loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
        with torch.no_grad():
            expected = loaded(tokens).logits[0].float()
        largest, agreement = self.compare("executorch 8da4w", expected, actual)
        self.assertEqual(agreement, 1.0)
        self.assertLess(largest, 0.05 * expected.abs().max().item())
        self.assertIn("linear products in XNNPACK: 15 of 15", done.stdout)


if __name__ == "__main__":
    main()
