"""Values that the contract refuses where they are declared, before something far away meets them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from tlkit.plugin.contract import Preprocessing, Target, Weights
from tlkit.plugin.validation import fault


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 0}, "size must be at least 1 pixel, not 0"),
        ({"size": 224.0}, "size must be int"),
        ({"size": True}, "size must be int"),
        ({"crop_pct": "1"}, "crop_pct must be float"),
        ({"crop_pct": math.nan}, r"crop_pct must lie in \(0, 1\], not nan"),
        ({"crop_mode": "naflex"}, "crop_mode must be one of center, squash, border, not 'naflex'"),
        ({"interpolation": None, "size": "64"}, "size must be int; interpolation must be str"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean and std must be tuples of three finite numbers"),
        ({"mean": (0.5, 0.5)}, "mean and std must be tuples"),
        ({"mean": ("a", "b", "c")}, "mean and std must be tuples"),
        ({"std": (math.nan, 1.0, 1.0)}, "mean and std must be tuples"),
        ({"std": (0, 1, 1)}, "std above 0"),
    ],
)
def test_preprocessing(wrong: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"size": 64, "mean": (0, 0.5, 1), "std": (0.5, 0.5, 0.5)}
    Preprocessing(**good)
    with pytest.raises(ValueError, match=f"preprocessing: .*{said}"):
        Preprocessing(**good | wrong)


def test_weights() -> None:
    with pytest.raises(ValueError, match="weights: license must be str; sha256 must be str"):
        Weights("a seed", None, sha256=b"12")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"suffix": 3}, "its suffix is 3, not str"),
        ({"precisions": "fp32"}, "its precisions is 'fp32', not a tuple of str"),
        ({"precisions": ("fp32", 8)}, "its precisions is ('fp32', 8), not a tuple of str"),
        ({"executable": "no"}, "its executable is 'no', not bool"),
    ],
)
def test_attributes_of_a_class(wrong: dict[str, Any], said: str) -> None:
    methods = {"build": lambda *_: None, "open": lambda *_: None}
    good = {"name": "toy", "suffix": ".toy", **methods}
    assert fault(dataclass(frozen=True)(type("Toy", (Target,), good))(), Target) is None
    assert str(fault(dataclass(frozen=True)(type("Toy", (Target,), good | wrong))(), Target)).startswith(said)
