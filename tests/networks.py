"""Networks of the kinds people serve, to look inside of. None of them is an example model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.definition import Definition, InputOptions


class Residual(nn.Module):
    """A residual block with batch norm; its ReLU runs twice, once in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


class ResidualNet(nn.Module):
    """A small residual CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList([Residual(4), Residual(4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """A transformer block whose tensors have time before rows inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).transpose(0, 1)
        attended, _ = self.attention(y, y, y)
        y = y + attended
        y = y + self.mlp(y)
        return self.head(y.mean(0))


class Encoder(nn.Module):
    """torch's own transformer layers, which skip the layers inside them when nobody looks."""

    def __init__(self) -> None:
        super().__init__()
        own = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True)
        first = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(own, 2)
        self.last = first
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        # Some rows have padding; what the encoder puts there is in the answer.
        padding = x[:, :, 0] > 2
        padding[:, 0] = False
        encoded = self.encoder(x, src_key_padding_mask=padding)
        return self.head(self.last(encoded))


class Recurrent(nn.Module):
    """Recurrent layers, with states passed in and out, and activations around them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 6), nn.Tanh())
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.gru = nn.GRU(5, 4, num_layers=2, bidirectional=True)
        self.rnn = nn.RNN(8, 4, nonlinearity="relu")
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out, (hidden, cell) = self.lstm(self.inner(x))
        out, _ = self.lstm(self.inner(x), (hidden, cell))
        out, _ = self.gru(out.transpose(0, 1))
        out, _ = self.rnn(out)
        return self.gate(out[-1])


class Packed(nn.Module):
    """An LSTM over sequences of unequal lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x[:, :, 0] != 0).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, False)
        _, (hidden, _) = self.lstm(packed)
        return self.relu(hidden[0])


class Branching(nn.Module):
    """Takes one of two paths for each request."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.relu(self.fc(x))
        return self.tanh(self.fc(x))


class Parts(nn.Module):
    """A layer with a tuple, an optional and a dict in what it returns."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        return x + 1, None, {"half": x.half(), "sign": x > 0, "count": x.long()}


class ManyTypes(nn.Module):
    """Layers with outputs of other dtypes, rows flattened into shares, and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = Parts()
        self.flat = nn.Linear(2, 2)
        self.relu = nn.ReLU()
        self.again = self.relu
        self.spectrum = Spectrum()

    def forward(self, x: Tensor) -> Tensor:
        a, _, d = self.parts(x)
        b = self.relu(self.flat(a.reshape(-1, 2)).reshape(x.shape))
        c = self.again(b - 1) + self.spectrum(x).real
        return F.relu(c) + d["half"].float()


class Spectrum(nn.Module):
    """Returns complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x * 2)


SHAPES = {
    ResidualNet: (1, 6, 6),
    Transformer: (5, 8),
    Encoder: (5, 8),
    Recurrent: (4, 3),
    Packed: (4, 3),
    Branching: (4,),
    ManyTypes: (6,),
}


def definition(kind: type[nn.Module], rows: int = 6) -> Definition:
    """Define one of the networks, with random weights that are always the same."""
    with torch.random.fork_rng():
        module = _module(kind)
        examples = [torch.randn(count, *SHAPES[kind]) for count in (rows, 1, 3)]
    return _definition(module, examples)


def define(kind: type[nn.Module], *examples: Tensor) -> Definition:
    """Define any network of one input, with random weights that are always the same."""
    with torch.random.fork_rng():
        return _definition(_module(kind), examples)


def _module(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    module = kind().eval()
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return module


def _definition(module: nn.Module, examples: Sequence[Tensor]) -> Definition:
    return Definition(
        name=type(module).__name__,
        version="1.0",
        description="",
        source=Path(__file__),
        module=module,
        examples=tuple((example,) for example in examples),
        inputs=(InputOptions("x"),),
    )
