"""Distributions on `sys.path` as pip would leave them, without installing anything."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, distribution: str, source: str, entry_points: str | None = None) -> None:
    """A distribution as pip leaves it: its module, its metadata, its entry points."""
    module = distribution.replace("-", "_")
    site.joinpath(f"{module}.py").write_text(source)
    describe(site, distribution, entry_points or f"[tlkit]\n{distribution} = {module}\n")


def describe(site: Path, distribution: str, entry_points: str, version: str = "1.0") -> None:
    """The metadata alone, of a distribution whose modules are on the path already."""
    metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    metadata.joinpath("entry_points.txt").write_text(entry_points)
