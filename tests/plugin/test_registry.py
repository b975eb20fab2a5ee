"""The questions that the host answers, with plugins made on the spot."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tlkit.errors import ArtifactError, UsageError
from tlkit.plugin import hooks
from tlkit.plugin.contract import Component, DatasetStatistics, Head, Phase, Strategy, option
from tlkit.plugin.discovery import Found
from tlkit.plugin.kinds import KINDS, by_hook
from tlkit.plugin.registry import Host


@dataclass(frozen=True)
class Plain(Strategy):
    name = "plain"
    epochs: int = option(3, "how many epochs")

    def phases(self, stages: Any, info: DatasetStatistics) -> list[Phase]:
        return [Phase(self.epochs, 1e-3)]


@dataclass(frozen=True)
class Family(Head):
    """One of a thousand, told apart by a name that is a field."""

    name: str

    def module(self, width: int, classes: int) -> Any:
        raise NotImplementedError


def found(name: str, distribution: str = "tlkit-toys", version: str = "1.2", **components: list[Component]) -> Found:
    """A plugin whose hooks return `components`, by hook without its prefix."""

    def load() -> object:
        plugin = types.SimpleNamespace()
        for hook, registered in components.items():
            setattr(plugin, f"tlkit_{hook}", hooks.hookimpl(lambda registered=registered: registered))
        return plugin

    return Found(name, distribution, version, "toys", load)


def broken(name: str = "bad", distribution: str = "tlkit-bad") -> Found:
    def load() -> object:
        raise OSError("libtoy.so.3: no such file")

    return Found(name, distribution, "0.9", "bad", load)


@pytest.fixture
def host() -> Host:
    return Host([found("toys", strategies=[Plain()]), broken()])


def test_every_hook_and_base_class_has_a_row_in_the_table_of_kinds() -> None:
    hooks = "tlkit_backbones tlkit_heads tlkit_detectors tlkit_sources tlkit_strategies tlkit_targets"
    assert set(by_hook()) == set(hooks.split())
    assert {kind.base for kind in KINDS.values()} <= set(Component.__subclasses__())
    assert [kind.base.kind for kind in KINDS.values()] == list(KINDS)


def test_a_component_is_found_by_kind_and_name(host: Host) -> None:
    assert host.names("strategy") == ("plain",)
    assert host.get("strategy", "plain") == Plain()
    assert host.get("strategy", "plain", {"epochs": 7}) == Plain(epochs=7)
    assert host.origin(Plain(epochs=7)) == ("tlkit-toys", "1.2")


def test_options_are_checked(host: Host) -> None:
    with pytest.raises(UsageError, match=r"strategy 'plain': epochs: must be int, not 'many'; epoch: no such option"):
        host.get("strategy", "plain", {"epochs": "many", "epoch": 1})


def test_an_unknown_name_brings_the_nearest_what_is_installed_and_who_might_have_had_it(host: Host) -> None:
    with pytest.raises(UsageError) as raised:
        host.get("strategy", "plane")
    assert str(raised.value) == (
        "there is no strategy 'plane' (did you mean 'plain'?); installed: plain; "
        "plugin 'bad' (tlkit-bad 0.9) is broken: it failed to load: OSError: libtoy.so.3: no such file"
    )


def test_options_of_an_older_version_are_migrated() -> None:
    @dataclass(frozen=True)
    class Renamed(Plain):
        def migrate(self, options: Mapping[str, Any], version: str) -> Mapping[str, Any]:
            return {"epochs": options["rounds"]} if version == "1.0" else options

    host = Host([found("toys", strategies=[Renamed()])])
    assert host.require("strategy", "plain", "tlkit-toys", "1.0", {"rounds": 9}).epochs == 9
    assert host.require("strategy", "plain", "tlkit-toys", "1.2", {"epochs": 8}).epochs == 8
    with pytest.raises(ArtifactError, match="rounds: no such option"):
        host.require("strategy", "plain", "tlkit-toys", "1.1", {"rounds": 9})


def test_local_options_come_back_where_they_hold() -> None:
    @dataclass(frozen=True)
    class Lying(Plain):
        place: str = option("", "folder of this machine", local=True)

    host = Host([found("toys", strategies=[Lying()])])
    recorded = {"place": "/there", "epochs": 8}
    assert host.require("strategy", "plain", "tlkit-toys", "1.2", recorded).place == ""
    assert host.require("strategy", "plain", "tlkit-toys", "1.2", recorded, local=True).place == "/there"


def test_nothing_installed_of_a_kind_is_said(host: Host) -> None:
    with pytest.raises(UsageError, match="there is no head 'ridge'; installed: none; plugin 'bad'"):
        host.get("head", "ridge")
    with pytest.raises(UsageError, match="there is no strategy 'other'"):
        host.origin(type("Other", (Plain,), {"name": "other"})())


def test_a_thousand_components_are_not_listed_in_a_message() -> None:
    host = Host([found("many", heads=[Family(f"timm/resnet{depth}.a1_in1k") for depth in range(1200)])])
    assert host.warnings == ()
    assert len(host.names("head")) == 1200
    with pytest.raises(UsageError, match=r"did you mean 'timm/resnet50.a1_in1k'\?\); installed: 1200, see `tlkit plug"):
        host.get("head", "timm/resnet50.a1_in1")


def test_plugins_of_the_same_name_from_two_distributions_both_load() -> None:
    host = Host([found("toys", heads=[Family("a")]), found("toys", "other-toys", heads=[Family("b"), Family("a")])])
    assert [plugin.state for plugin in host.plugins] == ["ok", "ok"]
    assert host.names("head") == ("a", "b")
    assert host.origin(Family("a")) == ("tlkit-toys", "1.2")
    (warning,) = host.warnings
    assert warning == (
        "plugin 'toys' (other-toys 1.2): its head 'a' was refused: "
        "both tlkit-toys 1.2 and other-toys 1.2 provide it, and the first keeps the name; "
        "TLKIT_DISABLE_PLUGINS=tlkit-toys gives it to the other"
    )


def test_a_bundle_finds_the_component_that_it_was_made_with() -> None:
    @dataclass(frozen=True)
    class Other(Family):
        pass

    host = Host([found("toys", heads=[Family("a")]), found("toys", "other-toys", heads=[Other("a")])])
    assert type(host.require("head", "a", "tlkit-toys", "1.2", {})) is Family
    second = host.require("head", "a", "other-toys", "1.2", {})
    assert type(second) is Other
    assert host.origin(second) == ("other-toys", "1.2")
    with pytest.raises(
        ArtifactError, match=r"needs head 'a' of third-toys 1\.0: here, tlkit-toys 1\.2 provides that name"
    ):
        host.require("head", "a", "third-toys", "1.0", {})


def test_many_refusals_are_one_warning() -> None:
    host = Host([found("toys", heads=[Family(f"No {number}") for number in range(5)])])
    assert len(host.warnings) == 1
    assert "4 more were refused" in host.warnings[0]
    assert [registered.state for registered in host.plugins[0].components] == ["refused"] * 5


@pytest.mark.parametrize("name", ["a", "ridge", "efficientnet-lite0", "timm/resnet50.a1_in1k", "a__b"])
def test_names_that_are_valid(name: str) -> None:
    assert Host([found("toys", heads=[Family(name)])]).names("head") == (name,)


@pytest.mark.parametrize("name", ["", "Ridge", "a b", "-a", "a-", "a//b", "../a", "a/../b", "a\n", "á", "\x1b[31m", 5])
def test_names_that_are_not_valid(name: Any) -> None:
    assert Host([found("toys", heads=[Family(name)])]).names("head") == ()


def test_an_interrupt_is_not_blamed_on_the_plugin() -> None:
    def load() -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Host([Found("toys", "tlkit-toys", "1.2", "toys", load)])


def test_a_disabled_plugin_is_said_to_be_what_might_be_missing() -> None:
    host = Host([found("toys", strategies=[Plain()])], disabled=["Tlkit_Toys"])
    assert host.warnings == ()
    with pytest.raises(UsageError, match=r"plugin 'toys' \(tlkit-toys 1.2\) is disabled: TLKIT_DISABLE_PLUGINS says"):
        host.get("strategy", "plain")


def test_a_bundle_gets_its_component_back(host: Host) -> None:
    assert host.require("strategy", "plain", "tlkit-toys", "1.2", {"epochs": 7}) == Plain(epochs=7)
    assert host.require("strategy", "plain", "Tlkit_Toys", "0.1", {}) == Plain()


@pytest.mark.parametrize(
    ("distribution", "name", "why"),
    [
        ("tlkit-gone", "x", 'it is not installed; run: pip install "tlkit-gone==2.0"'),
        ("tlkit-gone", "plain", 'here, tlkit-toys 1.2 provides that name; run: pip install "tlkit-gone==2.0"'),
        ("tlkit-toys", "x", '1.2 is installed and doesn\'t provide it; run: pip install "tlkit-toys==2.0"'),
        ("tlkit-bad", "x", "plugin 'bad' (tlkit-bad 0.9) is broken: it failed to load: OSError: libtoy.so.3: no such "),
    ],
)
def test_a_bundle_without_its_plugin_says_what_to_install(host: Host, distribution: str, name: str, why: str) -> None:
    with pytest.raises(ArtifactError, match=re.escape(f"needs strategy '{name}' of {distribution} 2.0: {why}")):
        host.require("strategy", name, distribution, "2.0", {})


def test_a_bundle_whose_plugin_is_disabled_says_how_to_enable_it() -> None:
    host = Host([found("toys", strategies=[Plain()])], disabled=["toys"])
    with pytest.raises(ArtifactError, match=r"unset TLKIT_DISABLE_PLUGINS$"):
        host.require("strategy", "plain", "tlkit-toys", "1.2", {})


def test_a_bundle_with_options_of_another_version_says_which_to_install(host: Host) -> None:
    with pytest.raises(
        ArtifactError, match=r"no such option.*installed is 1.2\); run: pip install \"tlkit-toys==2.0\""
    ):
        host.require("strategy", "plain", "tlkit-toys", "2.0", {"warmup": 3})
    with pytest.raises(ArtifactError, match=r"warmup: no such option, only epochs$"):
        host.require("strategy", "plain", "tlkit-toys", "1.2", {"warmup": 3})


@pytest.mark.parametrize(
    ("distribution", "version"), [("x; rm -rf ~", "1"), ("--index-url=http://x", "1"), ("x", '1" && reboot'), ("", "1")]
)
def test_a_hostile_bundle_puts_no_command_into_the_message(host: Host, distribution: str, version: str) -> None:
    with pytest.raises(ArtifactError) as raised:
        host.require("strategy", "x", distribution, version, {})
    assert raised.value.do is None
