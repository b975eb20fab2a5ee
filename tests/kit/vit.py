"""A vision transformer small enough to train, trace and run in a moment: patches, a class token and attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlkit.plugin.contract import Backbone, Preprocessing, Weights

WIDTH, PATCH, SIZE = 16, 8, 32


class Patches(nn.Module):
    """Images to tokens, the class token first: `(N, T, WIDTH)`."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + 1, WIDTH) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.project(images).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1) + self.position


class Block(nn.Module):
    """Attention with two heads and a perceptron, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        query, key, value = self.qkv(self.before(x)).reshape(count, tokens, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        x = x + self.out(mixed.reshape(count, tokens, WIDTH))
        return x + self.mlp(self.between(x))


class ClassToken(nn.Module):
    """Tokens `(N, T, C)` to the class token `(N, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@dataclass(frozen=True)
class TinyVit(Backbone):
    """Two blocks behind patches; the class token is the feature."""

    name = "tiny-vit"
    preprocessing = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=1.0, crop_mode="squash")
    weights = Weights("nowhere: random weights", "Apache-2.0")

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        """Return patches and blocks with weights that are random, and the same each time where `pretrained`."""
        with torch.random.fork_rng():
            torch.manual_seed(1 if pretrained else torch.seed() % 2**31)
            return {"patches": Patches().eval(), "first": Block().eval(), "second": Block().eval()}

    def pool(self) -> nn.Module:
        """Return the class token."""
        return ClassToken()
