"""The verb `serve` of the Python API."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit import defaults, resolve
from tlkit.errors import DataError, UsageError
from tlkit.resolve import CPU, StrPath
from tlkit.util.files import local_path

if TYPE_CHECKING:
    from tlkit.runtime.model import Model
    from tlkit.serving.limits import Limits


def serve(
    bundles: Sequence[StrPath] | StrPath,
    *,
    target: str = defaults.DEFAULT_TARGET,
    precision: str = "fp32",
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    workers: int | None = None,
    watch: bool = False,
    token: str = "",
    certificate: StrPath | None = None,
    key: StrPath | None = None,
    limits: Mapping[str, float] | None = None,
    device: str = CPU,
    allow_cpu: bool = False,
    log: Callable[[str], object] | None = None,
    said: Callable[[str], object] | None = None,
) -> None:
    """Serve bundles, or folders of bundles, over HTTP and gRPC until SIGTERM or Ctrl-C; ready once they are verified.

    `workers` concurrent calls use a core each; None uses every core, or what `benchmark(tune=True)` found. With `watch`
    a bundle that is added or changed is verified and then replaces the one before. `limits` sets some of
    `tlkit.serving.limits.Limits` by name: `{"deadline": 2.0}`. `log` is given a line of JSON per request, `said` what
    happens. Raises GateError for a bundle whose export does not give what was trained.
    """
    opened_by = resolve.opener(device, allow_cpu, trust=False)
    from tlkit.serving.run import ServeOptions, Server

    options = ServeOptions(
        host=host,
        port=port,
        grpc_port=grpc_port,
        watch=watch,
        token=token,
        tls=_tls(certificate, key),
        limits=_limits(limits or {}),
        log=log,
        said=said or (lambda _text: None),
    )

    def open_graph(root: Path, graph: str) -> Model:
        return resolve.open_model(root, graph, target, precision, head=None, workers=workers, opener=opened_by)

    paths = [bundles] if isinstance(bundles, str | os.PathLike) else bundles
    Server([local_path(path) for path in paths], open_graph, f"{target}/{precision}", options).run()


def _limits(given: Mapping[str, float]) -> Limits:
    """Return the default limits, with those that are given in their place."""
    from dataclasses import asdict, replace

    from tlkit.serving.limits import Limits

    known = asdict(Limits())
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"there is no limit {name!r}", do=f"choose one of {', '.join(known)}")
        if not value > 0:
            raise UsageError(f"the limit {name} must be positive, not {value}")
    changed: Any = {name: type(known[name])(value) for name, value in given.items()}
    return replace(Limits(), **changed)


def _tls(certificate: StrPath | None, key: StrPath | None) -> dict[str, str]:
    """Return the files of TLS as uvicorn names them."""
    if (certificate is None) != (key is None):
        raise UsageError("a certificate and its key go together")
    named = {"ssl_certfile": certificate, "ssl_keyfile": key}
    found = {name: local_path(path) for name, path in named.items() if path is not None}
    for path in found.values():
        if not path.is_file():
            raise DataError("no such file", file=path)
    if found:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(found["ssl_certfile"], found["ssl_keyfile"], "")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"it and the key can't be used: {reason}", file=found["ssl_certfile"]) from error
    return {name: str(path) for name, path in found.items()}
