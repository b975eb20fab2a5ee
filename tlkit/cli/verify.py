"""`tlkit verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlkit.cli.common import (
    FilePath,
    components,
    device_options,
    json_option,
    on_device,
    progress_bars,
    rejected,
    show,
    target_of,
    trust_option,
    wrote,
)
from tlkit.errors import ArtifactError, GateError, ResourceError
from tlkit.util.text import quoted

if TYPE_CHECKING:
    from tlkit.model.bundle import Bundle
    from tlkit.plugin.contract import Session
    from tlkit.verification.dataset import Survey
    from tlkit.verification.replay import Replay

    Opener = Callable[[Path], Session]


@click.command(short_help="Replay a bundle's golden images on what was exported from it.")
@click.argument("path", type=FilePath, metavar="BUNDLE|GRAPH")
@click.option("--target", help="Only what was exported for this target; default: all that can be run here.")
@click.option("--precision", help="Only what was exported in this precision; default: all.")
@click.option("--data", type=FilePath, help="Also run all images of this labelled folder, against the trained modules.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of data with a split of its own.")
@click.option("--against", type=FilePath, metavar="BUNDLE", help="The bundle that GRAPH is said to come from.")
@device_options
@trust_option
@json_option
def command(
    path: Path,
    target: str | None,
    precision: str | None,
    data: Path | None,
    split: str | None,
    against: Path | None,
    device: str,
    allow_cpu: bool,
    trust_engine: bool,
    as_json: bool,
) -> None:
    """Replay the golden images of BUNDLE, from their bytes to probabilities, on every graph exported from it.

    The exit code is the verdict: 0 if labels, pixels, features and logits are those of the training, 6 if not. What was
    built for another machine is named and passed over. With --against, one GRAPH is verified, wherever it lies now.

    With --data every image of a folder goes through the trained modules in PyTorch and through what was exported: the
    worst cosine and error, the share that is called the same, labels flipped that were no ties, the points of accuracy.

    \b
    Examples:
      tlkit verify run/
      tlkit verify run/ --target onnx --precision int8 --json
      tlkit verify deployed/model.onnx --against run/
      tlkit verify run/ --data photos/ --split val
    """
    if split is not None and data is None:
        raise click.UsageError("--split is of --data")
    from tlkit.model import exports

    where = partial(on_device, device=device, allow_cpu=allow_cpu)
    if against is not None:
        if data is not None:
            raise click.UsageError("--data is for a bundle; to measure one graph on a folder, use: tlkit eval")
        _file(path, against, _opener(exports.TARGET, trust_engine, where), as_json)
    elif path.is_file():
        raise click.UsageError(f"say with --against which bundle {path} comes from")
    else:
        _bundle(path, target, precision, data, split, partial(_opener, trust=trust_engine, where=where), as_json)


def _file(file: Path, against: Path, opener: Opener, as_json: bool) -> None:
    from tlkit.model import exports
    from tlkit.model.bundle import open_bundle
    from tlkit.verification.replay import replay_file

    opened = open_bundle(against)
    result = replay_file(opened, exports.graph_file(file, "model"), opener)
    show(result.to_json(), list(_lines(str(file), result)), as_json)
    if not result.passed:
        raise GateError(f"it does not give what was trained in {against}", file=file, do=exports.command(against))
    wrote(None, then=f"tlkit predict {quoted(file)} IMAGE...")


def _bundle(
    bundle: Path,
    target: str | None,
    precision: str | None,
    data: Path | None,
    split: str | None,
    opener: Callable[[str], Opener],
    as_json: bool,
) -> None:
    from tlkit.model import exports
    from tlkit.model.bundle import GOLDEN, open_bundle
    from tlkit.runtime.engine import IncompatibleEngine
    from tlkit.verification.replay import replay

    opened = open_bundle(bundle)
    again = exports.command(bundle, target or exports.TARGET, precision or exports.PRECISION)
    found = [place for place in exports.found(bundle) if target in (None, place[0]) and precision in (None, place[1])]
    if not found:
        asked = "".join(f" {each}" for each in (target, precision) if each)
        raise ArtifactError(f"nothing was exported from it{' for' if asked else ''}{asked} yet", file=bundle, do=again)
    replays, elsewhere = {}, {}
    for name, chosen in found:
        try:
            replays[f"{name}/{chosen}"] = replay(opened, name, chosen, opener(name))
        except (ResourceError, IncompatibleEngine) as error:
            if target is not None or len(found) == 1:
                raise
            elsewhere[f"{name}/{chosen}"] = error.what

    lines = [f"{place}: not verified here: {why}" for place, why in elsewhere.items()]
    lines += [line for place, result in replays.items() for line in _lines(place, result)]
    facts = {place: result.to_json() for place, result in replays.items()}
    surveys = {} if data is None else _survey(opened, list(replays), data, split, opener)
    for place, each in surveys.items():
        facts[place]["data"] = each.to_json()
        lines += _surveyed(place, each)
    show({**facts, **{place: {"passed": None, "why": why} for place, why in elsewhere.items()}}, lines, as_json)
    failed = [place for place, each in replays.items() if not (each.passed and (not surveys or surveys[place].passed))]
    if failed:
        raise GateError(f"{', '.join(failed)} does not give what was trained", file=bundle, do=again)
    model = exports.graph_file(bundle, "model")
    wrote(None, then=f"tlkit predict {quoted(model)} {quoted(bundle / GOLDEN)}")


def _survey(
    bundle: Bundle, places: Sequence[str], data: Path, split: str | None, opener: Callable[[str], Opener]
) -> dict[str, Survey]:
    """What each by-product answers for a folder, against the modules of the plugins that the bundle names."""
    from tlkit.evaluation.evaluate import answers, labelled
    from tlkit.exporting import head_refit
    from tlkit.model import exports
    from tlkit.runtime.model import Model
    from tlkit.verification.dataset import OUTPUTS, survey
    from tlkit.verification.parity import TOLERANCES
    from tlkit.verification.trained import TrainedSession

    _, samples = labelled(data, bundle.record.labels, split)
    found = {}
    with progress_bars() as bars:
        backbone, head = components(bundle)
        model = Model(TrainedSession(bundle, backbone, head), bundle.root)
        trained = answers(model, samples, bars("trained modules", len(samples)), OUTPUTS)
        for place in places:
            target, precision = place.split("/")
            file = exports.graph_file(bundle.root, "model", target, precision)
            deployed = answers(Model(opener(target)(file), file), samples, bars(place, len(samples)), OUTPUTS)
            its_head = head_refit.deployed(bundle, head, target, precision) if precision != exports.PRECISION else None
            found[place] = survey(trained, deployed, TOLERANCES[precision], its_head)
    for name, reason in trained.rejected.items():
        rejected(name, reason)
    return found


def _surveyed(place: str, each: Survey) -> Iterator[str]:
    figures, (low, high) = each.comparison, each.interval
    yield f"{place}: {each.images} images against the trained modules: {'same' if each.passed else 'DIFFERS'}"
    yield (
        f"  worst cosine {figures.cosine:.6f}, largest error of features {figures.feature_error:.3g} and of logits "
        f"{figures.logit_error:.3g}"
    )
    share = f"{figures.agreement:.2%} (95 %: {low:.2%} to {high:.2%})"
    yield f"  called the same {share}; flipped and no tie: {figures.flips}"
    yield f"  accuracy {each.accuracy:.2%}, trained {each.trained_accuracy:.2%}: {each.drop:.2f} points lost"


def _lines(place: str, result: Replay) -> Iterator[str]:
    from tlkit.model.exports import FROM_BUNDLE

    wrong = f"pixels differ for {', '.join(result.changed_images)}" if result.changed_images else "pixels identical"
    yield f"{place}: {result.images} golden images, {wrong}"
    if result.head_from != FROM_BUNDLE:
        yield "  its head was fitted again at export"
    yield from (f"  {problem}" for problem in result.problems)
    for name, verdict in result.verdicts.items():
        yield f"  {name}: {'same' if verdict.passed else 'DIFFERS'} ({verdict.summary()})"


def _opener(target: str, trust: bool, where: Callable[[Callable[[str], Session]], Session]) -> Opener:
    """What opens a file of a target; ONNX needs no plugin, and is opened on the device that was asked for."""
    from tlkit.runtime.engine import open_target
    from tlkit.runtime.session import OnnxSession

    if target == "onnx":
        return lambda file: where(lambda device: OnnxSession(file, device=device))
    return lambda file: open_target(target_of(target), file, trust=trust)
