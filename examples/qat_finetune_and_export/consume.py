"""Loads a directory of `narrowgauge export --format torchao` with transformers and torchao, and continues a text.

    tools/python.sh examples/qat_finetune_and_export/consume.py runs/qat_finetune/hf-torchao 'def forward(self, '
"""
import sys

import torch
import transformers

directory, prompt = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
print(type(model.model.layers[0].mlp.down_proj.weight.data).__name__)
ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
with torch.no_grad():
    print(tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0]))
