"""`tlkit export`."""

from __future__ import annotations

from pathlib import Path

import click

from tlkit.cli.common import FilePath, host, json_option, shell_path, show, wrote


@click.command(short_help="Turn a bundle into graphs for deployment, each checked on real images.")
@click.argument("bundle", type=FilePath)
@click.option("--onnx", is_flag=True, help="Write trunk.onnx, head.onnx and model.onnx.")
@click.option("--data", type=FilePath, help="Images to check on, labelled as those in training; default: the latter.")
@json_option
def command(bundle: Path, onnx: bool, data: Path | None, as_json: bool) -> None:
    """Turn BUNDLE into graphs for deployment, each checked on real images.

    Every graph must give what the trained modules give, at several batch sizes; otherwise nothing is written and the
    exit code is 6.

    \b
    Examples:
      tlkit export run/ --onnx
      tlkit export run/ --onnx --data more-photos/ --json
    """
    if not onnx:
        raise click.UsageError("name a target: --onnx")
    from tlkit.model.bundle import open_bundle

    opened = open_bundle(bundle)
    made = {"backbone": opened.record.backbone, "head": opened.record.head}
    backbone, head = (
        host().require(kind, offer.name, offer.distribution, offer.version, offer.options)
        for kind, offer in made.items()
    )

    from tlkit.deploy.publish import publish_onnx

    published = publish_onnx(opened, backbone, head, data=data)
    then = f"tlkit verify {shell_path(bundle)}"
    show(
        {
            "place": str(published.place),
            "images": published.images,
            "drawn_from": published.drawn_from,
            "parity": {name: verdict.to_json() for name, verdict in published.verdicts.items()},
            "next": then,
        },
        [
            f"checked on {published.images} images from {published.drawn_from}",
            *(f"{name}.onnx: {verdict.summary()}" for name, verdict in published.verdicts.items()),
        ],
        as_json,
    )
    wrote(published.place, then=then)
