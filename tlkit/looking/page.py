"""The page of a look into a network: pictures alone, no script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import load
from tlkit.pages import html, svg
from tlkit.pages.html import text
from tlkit.plugin.contract import Preprocessing
from tlkit.runtime.evidence import LEFT_OUT, overlay
from tlkit.util.text import counted

if TYPE_CHECKING:
    from tlkit.looking.run import Channel, Look, Stage

FILTER, TILE, SMALL, STEP, PICTURE = 56, 72, 60, 84, 224  # sides of pictures in pixels
PALETTE = np.array([(10, 8, 24), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32)


def page(look: Look, preprocessing: Preprocessing) -> str:
    """Return the page."""
    title = f"What the network sees in {html.short(str(look.image))}"
    sections = [_top(look), *_depth(look), *_filters(look), *_stages(look, preprocessing)]
    return html.document(title, "\n".join(sections), "look")


def _top(look: Look) -> str:
    """Return the verdict, the image, and the evidence for the most probable labels."""
    found, shown = look.prediction, svg.resized(look.pixels, PICTURE)
    bars = "".join(
        f'<span>{text(label)}</span><i style="width:{100 * share:.1f}%"></i><span>{share:.1%}</span>'
        for label, share in zip(found.labels, found.probabilities, strict=True)
    )
    novelty = "" if found.novelty is None else f"novelty {found.novelty:.2f}"
    novelty += {None: "", True: ": an image of no known class", False: ": an image like those it knows"}[found.unknown]
    how = look.method if look.method == LEFT_OUT else f"{look.method} (its features are no mean over positions)"
    figures = [_figure(svg.picture(shown), "the image as the network gets it", PICTURE)]
    figures += [
        _figure(svg.picture(overlay(shown, evidence)), f"evidence for {label}", PICTURE)
        for label, evidence in look.evidence.items()
    ]
    unknown = " inconclusive" if found.unknown else ""
    return (
        f'<div class="top"><section class="verdict{unknown}"><p class="what">{text(found.label)}, '
        f'{found.probability:.1%}</p><div class="bars">{bars}</div>{novelty and f"<p>{text(novelty)}</p>"}'
        f"<p>Evidence, in color: {text(how)}.</p></section>{''.join(figures)}</div>"
    )


def _depth(look: Look) -> Iterator[str]:
    yield "<h2>Through the depth</h2>"
    if not look.stages:
        yield "<p>No stage gives a map with positions.</p>"
        return
    yield "<p>Mean activation of all channels at each stage, in magnitude; bright is strong.</p>"
    figures = [_figure(svg.picture(svg.resized(look.pixels, STEP)), "image", STEP)]
    for stage in look.stages:
        height, width, count = stage.maps.shape
        caption = f"{stage.name}: {height} x {width}, {counted(count, 'channel')}"
        figures.append(_figure(svg.pixelated(_colored(np.abs(stage.maps).mean(-1))), caption, STEP, "exact"))
    yield f'<div class="steps">{"".join(figures)}</div>'


def _filters(look: Look) -> Iterator[str]:
    yield "<h2>Filters of the first layer</h2>"
    if not len(look.filters):
        yield "<p>The first layer is no convolution of colors.</p>"
        return
    yield "<p>Gray is a weight of zero; each filter has a scale of its own.</p>"
    tiles = []
    for number, each in enumerate(look.filters):
        levels = 127.5 + 127.5 * each / max(float(np.abs(each).max()), 1e-12)
        drawn = svg.pixelated(np.rint(levels).astype(np.uint8))
        tiles.append(html.image(drawn, f"filter {number}", FILTER, "exact"))
    yield f'<div class="tiles">{"".join(tiles)}</div>'


def _stages(look: Look, preprocessing: Preprocessing) -> Iterator[str]:
    yield "<h2>Channels</h2>"
    if look.images:
        yield (
            "<p>Of each stage, the channels that this image excites most, compared with the images of the dataset: "
            "their activations in it, and beside them the patches that excite them most, of "
            f"{counted(look.images, 'image')}, at most one of each.</p>"
        )
    else:
        yield "<p>Of each stage, the channels with the highest activations; there is no dataset to find patches in.</p>"
    loaded = cache(partial(_loaded, preprocessing))
    for stage in look.stages:
        cards = (_channel(stage, channel, loaded) for channel in stage.channels)
        yield f'<h3>{text(stage.name)}</h3><div class="channels">{"".join(cards)}</div>'


def _loaded(preprocessing: Preprocessing, file: Path) -> NDArray[np.uint8] | None:
    try:
        return load(file, preprocessing)
    except UnreadableImage:  # gone since
        return None


def _channel(stage: Stage, channel: Channel, loaded: Callable[[Path], NDArray[np.uint8] | None]) -> str:
    """Return the activations of the image and the patches of others."""
    tiles = []
    for patch in channel.patches:
        pixels, (left, top, right, bottom) = loaded(patch.sample.path), patch.box
        if pixels is not None:
            drawn = svg.picture(svg.resized(pixels[top:bottom, left:right], SMALL))
            tiles.append(html.image(drawn, f"{html.short(patch.sample.name)}: {patch.activation:.3g}", SMALL))
    own = _figure(
        svg.pixelated(_colored(stage.maps[..., channel.number])),
        f"channel {channel.number}: {channel.peak:.3g}",
        TILE,
        "exact",
    )
    return f'<div class="channel">{own}<div class="tiles">{"".join(tiles)}</div></div>'


def _figure(source: str, caption: str, size: int, kind: str = "") -> str:
    return f"<figure>{html.image(source, caption, size, kind)}<figcaption>{text(caption)}</figcaption></figure>"


def _colored(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return values `(h, w)` in colors `(h, w, 3)`, from dark for the lowest to light for the highest."""
    share = (values - values.min()) / max(float(np.ptp(values)), 1e-12) * (len(PALETTE) - 1)
    channels = [np.interp(share, np.arange(len(PALETTE)), column) for column in PALETTE.T]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), np.uint8)
