"""A file with a user's own model, which is none of transformers."""

OWN_MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.to_query, self.to_key, self.to_value = (nn.Linear(size, size) for _ in range(3))
        self.to_out = nn.Linear(size, size)

    def forward(self, x):
        query, key, value = self.to_query(x), self.to_key(x), self.to_value(x)
        return self.to_out(F.scaled_dot_product_attention(query, key, value, is_causal=True))


class FeedForward(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.wide = nn.Linear(size, 3 * size)
        self.narrow = nn.Linear(3 * size, size)

    def forward(self, x):
        return self.narrow(F.gelu(self.wide(x)))


class Net(nn.Module):
    def __init__(self, size=32, layers=2):
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(100, size)
        self.attentions = nn.ModuleList(Attention(size) for _ in range(layers))
        self.mlps = nn.ModuleList(FeedForward(size) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2 * layers))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer, (attention, mlp) in enumerate(zip(self.attentions, self.mlps)):
            x = x + attention(self.norms[2 * layer](x))
            x = x + mlp(self.norms[2 * layer + 1](x))
        return x
"""
