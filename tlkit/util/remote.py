"""Files at an address, such as s3://bucket/photos, through fsspec and the package of the storage."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tlkit.errors import ResourceError

# Packages whose errors are those of a storage, where they are no OSError.
_STORAGES = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google")
_CREDENTIALS = ("credential", "access key", "access denied", "forbidden", "signature", "unauthorized")


@functools.cache
def file_system(place: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it. Raises ResourceError if a package is missing."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        what = f"{place} needs fsspec and the package for this kind of address"
        raise ResourceError(what, do="run: pip install fsspec, and s3fs, gcsfs or adlfs") from error
    try:
        found, path = url_to_fs(place, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ResourceError(f"{place} can't be reached: {error}", do="install the package that it names") from error
    return found, path


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Raise what a storage answers as a ResourceError, each has errors of its own.

    FileNotFoundError and FileExistsError stay as they are.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _STORAGES:
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        do = "see that the storage can be reached, and give the same command again"
        if isinstance(error, PermissionError) or any(word in reason.lower() for word in _CREDENTIALS):
            do = "check the credentials of this storage, and what they allow"
        raise ResourceError(f"the storage refuses or does not answer: {reason}", file=place, do=do) from error
