"""A small model that transformers trains, for tests of what is done to trained models."""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SEQ_LEN = 32


def train(folder):
    """A model of a text with few patterns, which it knows after a few seconds, in bf16."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
                                         max_position_embeddings=64))
    words = ["".join(chr(97 + c) for c in torch.randint(0, 26, (4,)).tolist()) for _ in range(60)]
    follow = torch.randint(0, 60, (60, 3))

    def text(num_words):
        at, out = 0, []
        for choice in torch.randint(0, 3, (num_words,)).tolist():
            at = follow[at][choice].item()
            out.append(words[at])
        return " ".join(out)

    (folder / "train.txt").write_text(text(6000))
    (folder / "held_out.txt").write_text(text(1500))
    tokens = torch.tensor(list((folder / "train.txt").read_bytes()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(250):
        starts = torch.randint(0, len(tokens) - SEQ_LEN, (16,))
        batch = torch.stack([tokens[start:start + SEQ_LEN] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.bfloat16().save_pretrained(folder / "model")
