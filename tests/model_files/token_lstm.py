"""Classifies sequences of token ids with an embedding and an LSTM."""

import torch
from torch import Tensor, nn

VERSION = "2.1"
INPUTS = {"tokens": {"shape": [-1, -1], "minimum": 0, "maximum": 49}}
OUTPUTS = ["logits"]
LABELS = {"logits": ["no", "yes", "maybe"]}


class TokenLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(tokens))
        return self.head(states[:, -1])


def build() -> nn.Module:
    torch.manual_seed(1)
    return TokenLstm()


def examples() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(2)
    return [(torch.randint(0, 50, (2, 7)),), (torch.randint(0, 50, (3, 4)),)]
