"""Places that images are read from."""

from __future__ import annotations

from tlkit.plugin.contract import Source
from tlkit_standard.sources.folder import Folder
from tlkit_standard.sources.parquet import Parquet
from tlkit_standard.sources.table import Table
from tlkit_standard.sources.tar import Tar
from tlkit_standard.sources.zip import Zip

SOURCES: tuple[Source, ...] = (Folder(), Table(), Tar(), Parquet(), Zip())
