"""`tlkit serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, Number, shared

LIMIT = "Maximum number of {}."


@click.command()
@click.argument("bundles", type=FilePath, nargs=-1, required=True)
@click.option("--target", default="onnx", help="Target whose export is served.")
@click.option("--precision", default="fp32", help="Precision of the export that is served.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is reachable from other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port of HTTP; 0 is any that is free.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Port of gRPC, which needs tlkit[serve-grpc].")
@click.option("--workers", type=click.IntRange(1), help="Concurrent calls, each on a core; all cores by default.")
@click.option("--watch", is_flag=True, help="Exchange a bundle that changes, once the new one is verified.")
@click.option("--token-file", type=FilePath, help="File with the bearer token that clients must send.")
@click.option("--certificate", type=FilePath, help="File with the certificate of TLS.")
@click.option("--key", type=FilePath, help="File with the private key of the certificate.")
@click.option("--max-images", type=click.IntRange(1), default=256, help=LIMIT.format("images per request"))
@click.option("--max-queue", type=click.IntRange(1), default=512, help=LIMIT.format("unanswered images; more get 503"))
@click.option("--max-body", type=click.IntRange(1), default=64 << 20, help=LIMIT.format("bytes per request"))
@click.option("--deadline", type=Number(0, min_open=True), default=10.0, help="Seconds until an answer.")
@click.option("--access-log", is_flag=True, help="Write a line of JSON per request to stderr.")
@shared("device")
def command(bundles: tuple[Path, ...], token_file: Path | None, access_log: bool, **options: Any) -> None:
    """Serve BUNDLES, or folders of bundles, over the Open Inference Protocol until SIGTERM or Ctrl-C.

    A model is ready once its golden images are replayed; one that fails ends the server with exit code 6, or with
    --watch leaves the one before in its place. http://127.0.0.1:8000 is a page to drop a picture on, /docs lists the
    routes, /metrics is for Prometheus. Needs tlkit[serve], and neither torch nor plugins.

    \b
    Examples:
      tlkit serve run/
      tlkit serve run/ pets/ --precision int8 --grpc-port 8001
      tlkit serve models/ --watch --access-log
    """
    from tlkit.errors import DataError, UsageError
    from tlkit.server import serve

    names = {"images": "max_images", "queue": "max_queue", "body": "max_body", "deadline": "deadline"}
    limits = {limit: options.pop(name) for limit, name in names.items()}
    try:
        token = "" if token_file is None else token_file.read_text("utf-8", errors="replace").strip()
    except OSError as error:
        raise DataError(f"can't be read: {(error.strerror or str(error)).lower()}", file=token_file) from error
    if token_file is not None and not (token and token.isascii() and token.isprintable()):
        raise UsageError("it holds no token of printable ASCII characters", file=token_file)

    def say(text: str) -> None:
        click.echo(text, err=True)

    serve(bundles, token=token, limits=limits, said=say, log=say if access_log else None, **options)
