"""Networks are taken apart into chains that compute the same, or refused with the reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tlkit.model.stages import NotAChain, take_apart
from tlkit.model.trunk import TokenPool

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Convolutions(nn.Module):
    """A stem, blocks in a container, a layer behind them, and calls of functions between them."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
        self.top = nn.Linear(4, 6)

    def forward(self, x):
        x = torch.relu_(self.norm(self.stem(x)))
        x = torch.relu(self.blocks(x)) + 1
        return torch.nn.functional.hardswish(self.top(x.mean((2, 3))))


class Tokens(nn.Module):
    """A class token, positions, rotations that every block gets, and code that depends on shapes."""

    def __init__(self, width=6, depth=2):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("angles", torch.randn(5, 1), persistent=False)

    def forward(self, x):
        batch, channels, height, width = x.shape
        if height != width or channels != 3:
            raise ValueError(f"images of {height} x {width}")
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.positions
        rotation = self.angles.cos()
        for block in self.blocks:
            x = block(x, rotation=rotation)
        return self.norm(x)[:, 0]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x, rotation):
        return x + self.layer(x * rotation)


class Skips(nn.Module):
    """The first map is used again at the end."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        first = self.first(x)
        return (self.third(self.second(first)) + first).mean((2, 3))


class Recurrent(Skips):
    """One layer is used at the beginning and at the end."""

    def forward(self, x):
        return self.first(self.second(self.first(x))).mean((2, 3))


class Deciding(Skips):
    def forward(self, x):
        return (self.first(x) if x.mean() > 0 else self.second(x)).mean((2, 3))


def chained(stages, x):
    for stage in stages.values():
        x = stage(x)
    return x


@torch.no_grad()
def test_calls_between_layers_belong_to_the_stage_before():
    network = Convolutions().eval()
    stages = take_apart(network, IMAGE)
    assert list(stages) == ["stem", "stage1", "stage2", "stage3", "last"]
    assert stages["stage1"] is network.blocks[0]
    assert torch.equal(chained(stages, IMAGE), network(IMAGE))
    assert stages["stem"](IMAGE).min() == 0
    assert torch.allclose(chained(stages, IMAGE[:1]), network(IMAGE[:1]))  # another batch size


@torch.no_grad()
def test_tokens_are_added_in_the_stem_and_pooled_outside():
    network = Tokens().eval()
    stages = take_apart(network, IMAGE, TokenPool(1, first=True))
    assert list(stages) == ["stem", "stage1", "stage2"]
    tokens = chained(stages, IMAGE)
    assert tokens.shape == (2, 5, 6)
    assert torch.equal(tokens[:, 0], network(IMAGE))
    assert torch.allclose(chained(stages, IMAGE[:1])[:, 0], network(IMAGE[:1]))


def test_stages_share_no_tensor_and_can_be_copied():
    stages = take_apart(Tokens().eval(), IMAGE, TokenPool(1, first=True))
    owners = {}
    for name, stage in stages.items():
        for tensor in (*stage.parameters(), *stage.buffers()):
            assert owners.setdefault(tensor.data_ptr(), name) == name
    again = {name: copy.deepcopy(stage) for name, stage in stages.items()}
    assert torch.equal(chained(again, IMAGE), chained(stages, IMAGE))
    assert [*again["stage1"].state_dict()] == [*stages["stage1"].state_dict()]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Recurrent(), "no place to be cut"),
        (Deciding(), "depends on the content"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), r"gives \(3, 8, 8\) for an image, not features"),
    ],
)
def test_what_is_no_chain_is_refused(network, reason):
    with pytest.raises(NotAChain, match=reason):
        take_apart(network.eval(), IMAGE)


def test_between_the_ends_of_a_skip_there_is_no_cut():
    network = Skips().eval()
    stages = take_apart(network, IMAGE)
    assert list(stages) == ["stem", "stage1"]
    assert stages["stem"] is network.first


def test_a_pooling_that_is_not_the_networks_is_refused():
    class Shallow(Tokens):
        def forward(self, x):
            return self.patches(x).flatten(1)

    with pytest.raises(NotAChain):
        take_apart(Shallow().eval(), IMAGE)
