"""Options: described, read from `--set`, checked, and carried through JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.plugin.contract import DatasetStatistics, Head, Phase, Strategy, option
from tlkit.plugin.options import configure, configure_all, describe, from_json, option_fault, to_json

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True)
class Every(Head):
    """An option of each type."""

    name = "every"
    cache: ClassVar[dict[str, Decimal]] = {}  # never resolved: it is no option

    pca: int | None = option(None, "components")
    scale: float = option(1.0, "factor")
    whiten: bool = option(False, "whether to whiten")
    metric: Literal["cosine", "l2"] = option("cosine", "distance")
    weights: Optional[Path] = option(None, "a file")  # noqa: UP045  # plugins may spell it so
    label: str | None = option(None, "a text")
    gamma: Literal["auto"] | float = option("auto", "kernel width")
    neighbors: int = option(5, "how many", choices=(1, 5, 10))
    dropout: float = option(0.2, "probability", minimum=0.0, maximum=1.0)
    layers: tuple[str, ...] = option(("a",), "names of layers")
    sides: tuple[str, ...] | None = option(None, "names of sides", choices=("left", "right"))
    file: Path | None = option(None, "a file of this machine", local=True)

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, not {self.scale}")
        if self.whiten and self.pca is None:
            raise DataError("whiten needs pca")

    def module(self, width: int, classes: int) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Bare(Strategy):
    name = "bare"

    def phases(self, stages: Any, info: DatasetStatistics) -> list[Phase]:
        return []


COMPONENTS = {"head": Every(), "strategy": Bare()}


def set_(*pairs: str) -> Any:
    split = (pair.partition("=") for pair in pairs)
    return configure_all(COMPONENTS, {key: value for key, _, value in split})["head"]


def test_what_is_not_set_stays() -> None:
    assert configure_all(COMPONENTS, {}) == COMPONENTS


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("pca=128", 128),
        ("pca=none", None),
        ("scale=2", 2.0),
        ("scale=1e-3", 1e-3),
        ("metric=l2", "l2"),
        ("weights=a/b=c.npz", Path("a/b=c.npz")),
        ("weights=none", None),
        ("label=none", None),
        ("label=12", "12"),
        ("gamma=auto", "auto"),
        ("gamma=0.5", 0.5),
        ("neighbors=10", 10),
        ("scale = 3 ", 3.0),
    ],
)
def test_a_text_becomes_what_the_option_is_annotated_with(pair: str, value: object) -> None:
    set_to = getattr(set_(f"head.{pair}"), pair.partition("=")[0].strip())
    assert set_to == value
    assert type(set_to) is type(value)


@pytest.mark.parametrize(("words", "value"), [(("true", "yes", "on", "1"), True), (("false", "no", "off", "0"), False)])
def test_switches(words: tuple[str, ...], value: bool) -> None:
    for word in words:
        assert set_("head.pca=3", f"head.whiten={word}").whiten is value


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        ("pca=3", "is not of the form kind.option"),
        ("haed.pca=3", "no 'haed' to set here, only head, strategy (did you mean 'head'?)"),
        ("target.x=3", "no 'target' to set here, only head, strategy"),
        ("strategy.epochs=3", "no such option, it has none"),
        ("head.pcs=3", "(did you mean 'pca'?)"),
        ("head.pca=many", "must be int | none, not 'many'"),
        ("head.pca=1.5", "must be int | none, not '1.5'"),
        ("head.scale=nan", "must be float, not 'nan'"),
        ("head.scale=inf", "must be float, not 'inf'"),
        ("head.whiten=maybe", "must be bool, not 'maybe'"),
        ("head.metric=l1", "must be cosine | l2, not 'l1'"),
        ("head.gamma=scale", "must be auto | float, not 'scale'"),
        ("head.neighbors=3", "must be one of 1, 5, 10, not '3'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(pair: str, problem: str) -> None:
    with pytest.raises(UsageError) as raised:
        set_(pair)
    assert str(raised.value).startswith(f"option {pair.partition('=')[0]}: ")
    assert problem in str(raised.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as raised:
        set_("head.pca=x", "nonsense=1", "head.pcb=1", "head.metric=l1", "head.scale=-1")
    for part in ("head.pca: ", "nonsense: ", "head.pcb: ", "head.metric: ", "scale must be above 0"):
        assert part in str(raised.value)


def test_values_may_be_python_s_own() -> None:
    configured = configure_all(COMPONENTS, {"head.scale": 2, "head.pca": None, "head.whiten": False})["head"]
    assert (configured.scale, configured.pca, configured.whiten) == (2.0, None, False)
    with pytest.raises(UsageError, match=r"option head.pca: must be int \| none, not 1.5"):
        configure_all(COMPONENTS, {"head.pca": 1.5})


def test_what_a_component_itself_refuses_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="head 'every': whiten needs pca"):
        set_("head.whiten=yes")


@pytest.mark.parametrize(
    "values",
    [{"pca": True}, {"pca": 1.0}, {"pca": "3"}, {"whiten": 1}, {"scale": "1"}, {"scale": 10**400}, {"metric": "l1"}],
)
def test_values_are_checked_like_texts_but_never_converted_from_them(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="must be"):
        configure(Every(), values)
    with pytest.raises(ArtifactError, match="must be"):
        from_json(Every(), values)


def test_an_int_is_a_float_and_a_str_a_path_where_that_is_meant() -> None:
    component = configure(Every(), {"scale": 2, "weights": "a.npz"})
    assert (component.scale, component.weights) == (2.0, Path("a.npz"))
    assert type(component.scale) is float


@given(
    pca=st.none() | st.integers(),
    scale=st.floats(min_value=1e-300, allow_infinity=False),
    metric=st.sampled_from(["cosine", "l2"]),
    weights=st.none() | st.sampled_from([Path("a"), Path("/b/c.npz")]),
    label=st.none() | st.text(),
    gamma=st.just("auto") | st.floats(allow_nan=False, allow_infinity=False),
    neighbors=st.sampled_from([1, 5, 10]),
    layers=st.lists(st.text()).map(tuple),
)
def test_options_survive_json(**values: Any) -> None:
    component = Every(**values)
    assert from_json(Every(), json.loads(json.dumps(to_json(component)))) == component


def test_an_option_that_a_bundle_has_and_the_component_has_not() -> None:
    with pytest.raises(ArtifactError, match=r"head 'every': warmup: no such option, only pca, scale"):
        from_json(Every(), {"warmup": 3})


def test_describe() -> None:
    options = {option.name: option for option in describe(Every(pca=3))}
    names = ["pca", "scale", "whiten", "metric", "weights", "label", "gamma", "neighbors"]
    assert list(options) == [*names, "dropout", "layers", "sides", "file"]
    assert (options["pca"].type, options["pca"].default, options["pca"].help) == ("int | none", 3, "components")
    assert options["weights"].type == "path | none"
    assert options["neighbors"].choices == (1, 5, 10)
    assert options["metric"].type == "cosine | l2"
    assert (options["dropout"].limits, options["pca"].limits) == ("from 0 to 1", "")
    assert options["layers"].type == "str,str,..."
    assert options["file"].local


def test_limits_hold_for_texts_and_values() -> None:
    assert configure(Every(), {"dropout": 1}).dropout == 1.0
    with pytest.raises(UsageError, match=r"dropout: must be float from 0 to 1, not 1.5"):
        configure(Every(), {"dropout": 1.5})
    with pytest.raises(UsageError, match=r"dropout: must be float from 0 to 1, not '-0.1'"):
        set_("head.dropout=-0.1")

    @dataclass(frozen=True)
    class Outside(Bare):
        epochs: int = option(0, "how many", minimum=1)

    assert option_fault(Outside()) == "option epochs: its default must be int of at least 1, not 0"


def test_several_strings_are_joined_by_commas() -> None:
    head = set_("head.layers= conv1,conv2 ", "head.sides=left")
    assert (head.layers, head.sides) == (("conv1", "conv2"), ("left",))
    assert set_("head.layers=", "head.sides=none").layers == ()
    with pytest.raises(UsageError, match="sides: must be one of left, right"):
        set_("head.sides=left,up")
    with pytest.raises(UsageError, match="layers: must be"):
        configure(Every(), {"layers": ["a", 1]})


def test_local_options_are_not_stored_and_not_read_from_a_bundle() -> None:
    component = configure(Every(), {"file": "/here/weights.pt", "layers": ["b"]})
    stored = to_json(component)
    assert "file" not in stored
    assert to_json(component, local=True)["file"] == "/here/weights.pt"
    assert from_json(Every(), stored | {"file": "/there/weights.pt"}) == Every(layers=("b",))


def test_an_option_that_can_t_be_set_is_explained_to_its_author() -> None:
    @dataclass(frozen=True)
    class Unresolved(Bare):
        rate: Decimal = option(1, "rate")

    @dataclass(frozen=True)
    class Tuple(Bare):
        sizes: tuple[int, ...] = option((), "sizes")

    @dataclass(frozen=True)
    class Endless(Bare):
        rate: float = option(float("inf"), "rate")

    assert option_fault(Every()) is None
    assert "can't be resolved (name 'Decimal' is not defined)" in str(option_fault(Unresolved()))
    assert "its type tuple[int, ...] can't be set; use bool, int" in str(option_fault(Tuple()))
    assert option_fault(Endless()) == "option rate: its default must be float, not inf"
    for name, wrong in {"help": None, "minimum": "0", "maximum": (1,), "choices": 3}.items():
        field = option(**{"default": 1, "help": "rate", name: wrong})
        odd = dataclass(frozen=True)(type("Odd", (Bare,), {"__annotations__": {"rate": "int"}, "rate": field}))
        assert str(option_fault(odd())).startswith(f"option rate: its {name} is {wrong!r}, not ")
