"""A component that fails is named, and what it changed for the whole process is put back."""

from __future__ import annotations

import copy
import errno
import functools
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tlkit.errors import DataError, PluginError, ResourceError, TlkitWarning, UsageError
from tlkit.plugin import blame, loading
from tlkit.plugin.component import Reader, Record, Source
from tlkit.plugin.contract import Backbone, Head, Preprocessing, Session, Strategy, Target, Weights, option
from tlkit.plugin.discovery import Found
from tlkit.plugin.kinds import KINDS
from tlkit.plugin.options import configure
from tlkit.plugin.registry import Host


@dataclass(frozen=True)
class Toy(Backbone):
    """Runs what it is given."""

    act: Callable[[], Any]
    name = "toy"
    preprocessing = Preprocessing(64, (0.5,) * 3, (0.5,) * 3)

    def stages(self, *, pretrained: bool) -> Any:
        return self.act()

    @functools.cached_property
    def weights(self) -> Weights:  # type: ignore[override]
        return self.act()


def fail(error: BaseException) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


class Odd(BaseException):
    pass


class TestNames:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (ValueError("no such file"), "ValueError: no such file"),
            (SystemExit(0), "SystemExit: 0"),
            (Odd("x"), "tests.plugin.test_blame.Odd: x"),
            (KeyError("a"), "KeyError: 'a'"),
        ],
    )
    def test_the_component_and_the_method(self, error: BaseException, said: str) -> None:
        with pytest.raises(PluginError) as raised:
            Toy(fail(error)).stages(pretrained=False)
        assert raised.value.what == f"backbone 'toy' failed in stages(): {said}"
        assert raised.value.exit_code == 7
        assert raised.value.__cause__ is error

    def test_the_distribution(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(blame._origins, "tests", ("tlkit-toy", "1.2"))
        with pytest.raises(PluginError, match=r"^backbone 'toy' \(tlkit-toy 1\.2\) failed in stages\(\): OSError"):
            Toy(fail(OSError())).stages(pretrained=False)

    def test_a_property(self) -> None:
        with pytest.raises(PluginError, match="failed in weights: OSError: offline"):
            _ = Toy(fail(OSError("offline"))).weights

    def test_what_is_returned(self) -> None:
        with pytest.raises(PluginError, match=r"failed in stages\(\): it returned list, not a mapping from names to"):
            Toy(list).stages(pretrained=False)

    def test_a_package_that_is_not_installed(self) -> None:
        def act() -> None:
            import no_such_package  # noqa: F401

        with pytest.raises(ResourceError, match=r'needs the package no_such_package.*; pip install "no_such_package"'):
            Toy(act).stages(pretrained=False)

    def test_a_session(self) -> None:
        class Broken(Session):
            def run(self, array: Any, outputs: Any = None) -> Any:
                raise RuntimeError("lost the device")

        with pytest.raises(PluginError, match=r"^Broken failed in run\(\): RuntimeError: lost the device"):
            Broken().run(None)

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt(), MemoryError(), DataError("x"), OSError(errno.ENOSPC, "disk full")]
    )
    def test_not_what_isn_t_its_fault(self, error: BaseException) -> None:
        with pytest.raises(type(error)) as raised:
            Toy(fail(error)).stages(pretrained=False)
        assert raised.value is error

    def test_once_where_methods_call_each_other(self) -> None:
        outer = Toy(lambda: Toy(fail(ValueError("inner"))).stages(pretrained=False))
        with pytest.raises(PluginError) as raised:
            outer.stages(pretrained=False)
        assert raised.value.what == "backbone 'toy' failed in stages(): ValueError: inner"

    def test_code_that_no_method_of_the_contract_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(blame._origins, "tests", ("tlkit-toy", "1.2"))
        with pytest.raises(ValueError, match="forward") as raised:
            fail(ValueError("forward"))()
        named = blame.attributed(raised.value)
        assert named is not None
        assert named.what.startswith("plugin tlkit-toy 1.2 (test_blame.py, line ")
        assert named.what.endswith(") failed in act(): ValueError: forward")
        monkeypatch.delitem(blame._origins, "tests")
        assert blame.attributed(raised.value) is None


METHODS = [
    (kind, name)
    for kind in (*(each.base for each in KINDS.values()), Session, Reader)
    for name in sorted({name for base in kind.__mro__ for name in vars(base)})
    if not name.startswith("_") and inspect.isfunction(getattr(kind, name))
]
DECLARED = [(Backbone, "preprocessing"), (Backbone, "weights")]


def broken(kind: type, method: str, act: Callable[..., Any]) -> Any:
    """Return an instance of a kind whose `method` does `act`, and whose other abstract methods do nothing."""
    abstract = dict.fromkeys(kind.__abstractmethods__, lambda *_args, **_more: None)  # type: ignore[attr-defined]

    def run(*args: Any, **more: Any) -> Any:
        return act(*args, **more)

    run.__name__ = method
    namespace = {**abstract, "name": "odd", method: property(run) if (kind, method) in DECLARED else run}
    return type("Odd", (kind,), namespace)()


def called(component: Any, kind: type, method: str) -> Any:
    if (kind, method) in DECLARED:
        return getattr(component, method)
    parameters = list(inspect.signature(getattr(kind, method)).parameters.values())[1:]
    keywords = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
    return getattr(component, method)(*[None] * (len(parameters) - len(keywords)), **keywords)


class TestEveryKind:
    """No method of the contract is called unguarded, whatever it raises or gives."""

    def test_there_are_methods_to_try(self) -> None:
        assert len(METHODS) >= 30
        assert {"backbone", "head", "strategy", "target", "source"} <= {kind.name for kind in KINDS.values()}

    @pytest.mark.parametrize(("kind", "method"), METHODS + DECLARED)
    def test_what_a_method_raises(self, kind: Any, method: str) -> None:
        component = broken(kind, method, lambda *_args, **_more: {}["no such key"])
        with pytest.raises(PluginError) as raised:
            called(component, kind, method)
        who = f"{kind.kind} 'odd'" if hasattr(kind, "kind") else "Odd"
        bare = method if (kind, method) in DECLARED else f"{method}()"
        assert raised.value.what == f"{who} failed in {bare}: KeyError: 'no such key'"

    @pytest.mark.parametrize(("kind", "method"), METHODS + DECLARED)
    def test_what_a_method_gives(self, kind: Any, method: str) -> None:
        if "-> None" in str(inspect.signature(getattr(kind, method, called))).replace("'", ""):
            return
        with pytest.raises(PluginError, match=r"it returned object, not|failed in run\(\): "):
            called(broken(kind, method, lambda *_args, **_more: object()), kind, method)

    @pytest.mark.parametrize(
        ("kind", "method", "given"),
        [
            (Backbone, "stages", {"first": 3}),
            (Strategy, "phases", ("not a phase",)),
            (Strategy, "candidates", [3]),
            (Head, "stand_in", 3),
        ],
    )
    def test_what_is_in_it(self, kind: Any, method: str, given: Any) -> None:
        with pytest.raises(PluginError, match=f"failed in {method}"):
            called(broken(kind, method, lambda *_args, **_more: given), kind, method)

    def test_records_of_other_types(self) -> None:
        for wrong in (
            "a.png",
            Record(3),
            Record("a.png", size="9"),
            Record("a.png", size=2**63),
            Record("a.png", label=1),
        ):  # type: ignore[arg-type]
            records = broken(Source, "records", lambda *_args, wrong=wrong: [wrong]).records("place")
            with pytest.raises(
                PluginError, match=r"^source 'odd' failed in records\(\): TypeError: it yielded .*Record"
            ):
                next(records)

    @pytest.mark.parametrize("form", [classmethod, staticmethod, functools.cache, functools.partialmethod, "mixed in"])
    def test_a_method_in_any_form(self, form: Any) -> None:
        def phases(*_args: Any) -> Any:
            raise KeyError("x")

        mixin = type("Mixin", (), {"phases": phases})
        own = {"name": "odd"} | ({} if form == "mixed in" else {"phases": form(phases)})
        bases = (mixin, Strategy) if form == "mixed in" else (Strategy,)
        for kind in (odd := type("Odd", bases, own), type("Heir", (odd,), {"name": "odd"})):
            with pytest.raises(PluginError, match=r"^strategy 'odd' failed in phases\(\): KeyError: 'x'"):
                kind().phases((), None)

    def test_what_is_no_method(self) -> None:
        with pytest.raises(PluginError, match=r"^strategy 'odd' failed in phases\(\): TypeError: .int. object is not"):
            type("Odd", (Strategy,), {"name": "odd", "phases": 3})().phases((), None)

    def test_records_that_come_to_an_end_early(self) -> None:
        def records(*_args: Any) -> Iterator[Record]:
            yield Record("one.png")
            raise OSError("the server is gone")

        found = broken(Source, "records", records).records("place")
        assert next(found).key == "one.png"
        with pytest.raises(PluginError, match=r"^source 'odd' failed in records\(\): OSError: the server is gone"):
            next(found)

    def test_the_function_that_prepare_returns(self) -> None:
        merge = broken(Strategy, "prepare", lambda *_args: fail(ValueError("no way back"))).prepare({})
        with pytest.raises(PluginError, match=r"^strategy 'odd' failed in the function of prepare\(\): .*no way back"):
            merge()

    def test_a_session_that_a_target_opened(self) -> None:
        class Short(Session):
            input, outputs, metadata = "images", ("logits",), {}  # type: ignore[assignment]

            def run(self, array: Any, outputs: Any = None) -> Any:
                return {"logits": np.zeros((len(array) - 1, 2), np.float32)}

        class Listing(Short):
            def run(self, array: Any, outputs: Any = None) -> Any:
                return {"logits": [0.5] * len(array)}

        session = broken(Target, "open", lambda *_args: Short()).open("place")
        with pytest.raises(PluginError, match=r"^target 'odd' failed in run\(\): .*it gives 1 rows of logits for 2"):
            session.run([1, 2])
        with pytest.raises(PluginError, match=r"it gives logits of <class 'list'>, not float32"):
            broken(Target, "open", lambda *_args: Listing()).open("place").run([1, 2])
        with pytest.raises(PluginError, match=r"^target 'odd' failed in run\(\): KeyError: 'features'"):
            session.run([1, 2], ["features"])

        for wrong in ({"outputs": None}, {"outputs": "logits"}, {"input": ""}, {"metadata": ()}, {"batch_size": 0}):
            silent = type("Silent", (Short,), wrong)
            with pytest.raises(PluginError, match="it returned Silent, not a Session with its input, outputs"):
                broken(Target, "open", lambda *_args, silent=silent: silent()).open("place")

    def test_its_own_check_of_options(self) -> None:
        @dataclass(frozen=True)
        class Checked(Strategy):
            name = "checked"
            epochs: int = option(1, "epochs")

            def __post_init__(self) -> None:
                if self.epochs == 2:
                    raise ValueError("an odd number is needed")
                if self.epochs > 2:
                    raise KeyError(self.epochs)

            def phases(self, stages: Any, info: Any) -> Any:
                return ()

        with pytest.raises(UsageError, match="strategy 'checked': an odd number is needed"):
            configure(Checked(), {"epochs": 2})
        with pytest.raises(PluginError, match=r"^strategy 'checked' failed in __post_init__\(\): KeyError: 3"):
            configure(Checked(), {"epochs": 3})


class TestModules:
    """Modules that a component made name it, wherever they run."""

    def trunk(self, second: Any) -> Any:
        from torch import nn

        from tlkit.model.trunk import build

        toy = Toy(lambda: {"first": nn.Conv2d(3, 4, 3).eval(), "second": second})
        return build(toy)

    def named(self, trunk: Any) -> str:
        with pytest.raises(RuntimeError, match=r"no such layer|Given groups") as raised:
            _ = trunk.width
        found = blame.attributed(raised.value)
        assert isinstance(found, PluginError)
        return found.what

    def test_layers_of_a_library(self) -> None:
        from torch import nn

        trunk = self.trunk(nn.Conv2d(8, 4, 3).eval())
        for each in (trunk, copy.deepcopy(trunk), trunk.upto("second")):
            said = self.named(each)
            assert said.startswith("backbone 'toy' failed in forward() of Conv2d: RuntimeError: Given groups=1")

    def test_layers_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch import nn

        def helped(_x: Any) -> Any:
            raise RuntimeError("no such layer")

        class Own(nn.Module):
            def forward(self, x: Any) -> Any:
                return helped(x)

        monkeypatch.setitem(blame._origins, "tests", ("tlkit-toy", "1.2"))
        said = self.named(self.trunk(Own().eval()))
        assert said.startswith("backbone 'toy' (tlkit-toy 1.2) failed in helped() (test_blame.py, line ")
        assert said.endswith("RuntimeError: no such layer")

    def test_a_module_that_another_component_was_given(self) -> None:
        (stage,) = Toy(lambda: {"first": _raising()}).stages(pretrained=False).values()
        strategy = broken(Strategy, "prepare", lambda *_: stage(None))
        with pytest.raises(
            PluginError, match=r"^backbone 'toy' failed in prepare\(\) of strategy 'odd': KeyError: 'x'"
        ):
            strategy.prepare({})

    def test_layers_that_call_tlkit_for_a_function_of_theirs(self) -> None:
        from torch import nn

        from tlkit.training.gradients import fast_gradients

        trunk = self.trunk(nn.Conv2d(8, 4, 3).eval())
        with fast_gradients(__import__("torch").device("cpu"), trunk.pool):
            assert self.named(trunk).startswith("backbone 'toy' failed in forward() of Conv2d: RuntimeError")


def _raising() -> Any:
    from torch import nn

    class Raising(nn.Module):
        def forward(self, _x: Any) -> Any:
            raise KeyError("x")

    return Raising().eval()


class TestPutsBack:
    def changed(self, act: Callable[[], Any]) -> str:
        def then() -> dict[str, Any]:
            act()
            return {}

        with pytest.warns(TlkitWarning) as warned:
            Toy(then).stages(pretrained=False)
        (warning,) = warned
        return str(warning.message)

    def test_the_working_directory(self) -> None:
        before = os.getcwd()
        said = self.changed(lambda: os.chdir("/"))
        assert said == "backbone 'toy' in stages() changed the working directory; it was put back"
        assert os.getcwd() == before

    def test_standard_output(self) -> None:
        before = sys.stdout
        assert "changed sys.stdout" in self.changed(lambda: setattr(sys, "stdout", None))
        assert sys.stdout is before

    def test_the_default_dtype(self) -> None:
        import torch

        assert "default dtype" in self.changed(lambda: torch.set_default_dtype(torch.float64))
        assert torch.get_default_dtype() is torch.float32
        assert "gradient mode" in self.changed(lambda: torch.set_grad_enabled(False))
        assert torch.is_grad_enabled()

    def test_the_default_device(self) -> None:
        import torch

        assert "default device" in self.changed(lambda: torch.set_default_device("meta"))
        assert torch.zeros(1).device.type == "cpu"

    def test_after_a_failure_too(self) -> None:
        before = os.getcwd()

        def act() -> None:
            os.chdir("/")
            raise ValueError

        with pytest.warns(TlkitWarning, match="working directory"), pytest.raises(PluginError):
            Toy(act).stages(pretrained=False)
        assert os.getcwd() == before


def test_a_call_costs_microseconds() -> None:
    @dataclass(frozen=True)
    class Quick(Strategy):
        name = "quick"

        def phases(self, stages: Any, info: Any) -> Any:
            return ()

    quick, start = Quick(), time.perf_counter()
    for _ in range(1000):
        quick.phases((), None)
    assert time.perf_counter() - start < 1.0  # 0.01 s on an idle machine


class TestLoading:
    def test_what_doesn_t_end_is_ended(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(loading, "LOAD_LIMIT", 0.3)
        monkeypatch.setattr(loading, "SLOW", 0.05)
        monkeypatch.setattr(loading, "AGAIN", 0.1)
        caught = list[BaseException]()

        def load() -> object:
            while True:
                try:
                    time.sleep(0.01)
                except BaseException as error:
                    if caught:
                        raise
                    caught.append(error)

        (plugin,) = Host([Found("endless", "tlkit-endless", "1.0", "endless", load)]).plugins
        assert plugin.state == "broken"
        assert plugin.reason is not None
        assert plugin.reason.startswith(
            "it doesn't finish loading within 0.3 s; TLKIT_DISABLE_PLUGINS=endless skips it"
        )
        assert "plugin 'endless' (tlkit-endless 1.0) takes long to load" in capfd.readouterr().err

    def test_in_another_thread_too(self) -> None:
        hosts: list[Host] = []
        found = Found("broken", "tlkit-broken", "1.0", "broken", fail(ValueError("x")))
        thread = threading.Thread(target=lambda: hosts.append(Host([found])))
        thread.start()
        thread.join()
        assert hosts[0].plugins[0].reason == "it failed to load: ValueError: x"
