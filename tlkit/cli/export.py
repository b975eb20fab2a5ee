"""`tlkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli.common import FilePath, host, json_option, show, wrote
from tlkit.files import quoted

if TYPE_CHECKING:
    from tlkit.deploy.publish import Published
    from tlkit.model.bundle import Bundle


@click.command(short_help="Turn a bundle into graphs for deployment, each checked on real images.")
@click.argument("bundle", type=FilePath)
@click.option("--onnx", is_flag=True, help="Write trunk.onnx, head.onnx and model.onnx; the same as --target onnx.")
@click.option("--tensorrt", is_flag=True, help="Build TensorRT engines for this machine's GPU.")
@click.option("--tensorrt-rtx", is_flag=True, help="Build TensorRT-RTX engines; needs no GPU.")
@click.option("--target", "named", multiple=True, metavar="NAME", help="Any target that a plugin offers; repeatable.")
@click.option("--set", "settings", multiple=True, metavar="target.OPTION=VALUE", help="An option of the target.")
@click.option("--data", type=FilePath, help="Images to check on, labelled as those in training; default: the latter.")
@json_option
def command(
    bundle: Path,
    onnx: bool,
    tensorrt: bool,
    tensorrt_rtx: bool,
    named: tuple[str, ...],
    settings: tuple[str, ...],
    data: Path | None,
    as_json: bool,
) -> None:
    """Turn BUNDLE into graphs for deployment, each checked on real images.

    Every graph must give what the trained modules give, at several batch sizes; otherwise nothing is written and the
    exit code is 6. Every other target starts from the ONNX graphs, which are written first if they are not there.

    \b
    Examples:
      tlkit export run/ --onnx
      tlkit export run/ --onnx --data more-photos/ --json
      tlkit export run/ --tensorrt-rtx --set target.gpu=sm86,sm89
    """
    flags = {"onnx": onnx, "tensorrt": tensorrt, "tensorrt-rtx": tensorrt_rtx}
    names = list(dict.fromkeys([*(name for name, given in flags.items() if given), *named]))
    if not names:
        raise click.UsageError("name a target: --onnx, --tensorrt, --tensorrt-rtx or --target NAME")
    from tlkit.plugin.settings import parse

    targets = [parse(settings, {"target": host().get("target", name)})["target"] for name in names]

    from tlkit.deploy import built
    from tlkit.model.bundle import open_bundle

    opened = open_bundle(bundle)
    published = []
    if "onnx" in names or not built.current(opened):
        published.append(_onnx(opened, data))
    if len(names) > ("onnx" in names):
        from tlkit.deploy.publish import publish_target

        published += [publish_target(opened, target, data=data) for target in targets if target.name != "onnx"]

    golden = bool(opened.record.golden)
    then = f"tlkit verify {quoted(bundle)}" if golden else f"tlkit predict {quoted(bundle)} IMAGE..."
    show(
        {"exported": [_facts(each) for each in published], "next": then},
        [line for each in published for line in _lines(each)],
        as_json,
    )
    for each in published[:-1]:
        click.echo(f"wrote {each.place}", err=True)
    wrote(published[-1].place, then=then)


def _onnx(bundle: Bundle, data: Path | None) -> Published:
    """The ONNX graphs, traced from the modules of the plugins that the bundle names."""
    made = {"backbone": bundle.record.backbone, "head": bundle.record.head}
    backbone, head = (
        host().require(kind, offer.name, offer.distribution, offer.version, offer.options)
        for kind, offer in made.items()
    )

    from tlkit.deploy.publish import publish_onnx

    return publish_onnx(bundle, backbone, head, data=data)


def _facts(published: Published) -> dict[str, Any]:
    return {
        "place": str(published.place),
        "images": published.images,
        "drawn_from": published.drawn_from,
        "parity": {name: verdict.to_json() for name, verdict in published.verdicts.items()},
        "unproven": published.unproven,
    }


def _lines(published: Published) -> list[str]:
    if published.unproven is not None:
        return [f"{published.place}: built, but not proven here: {published.unproven}"]
    return [
        f"{published.place}: checked on {published.images} images from {published.drawn_from}",
        *(f"  {name}: {verdict.summary()}" for name, verdict in published.verdicts.items()),
    ]
