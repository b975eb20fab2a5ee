"""`tlkit serve`: speed, clients and hostile requests: `python benchmarks/serve.py speed clients hostile`.

- `speed`: throughput and latency against the bare session, LitServe and a plain FastAPI server, tensors and JPEGs from
  1, 8 and 64 clients, each a connection that sends its next request when the last is answered; twice the capacity;
  requests across reloads. Clients run on the same machine as the servers.
- `clients`: every public method of NVIDIA's clients; that what is served is what `predict` gives, to the bit.
- `hostile`: mutated requests over both protocols; slow, lying and endless ones, bombs, and a picture of 30,000 x 30,000
  pixels, while another client is served.

Each part writes results of its own. Only `speed` needs a machine that does nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _bench import DATA, SETTINGS, TLKIT, existing, exported, parsed, parser, repeated, run, shown, workspace
from serving.clients import clients
from serving.hostile import hostile
from serving.speed import speed

PARTS = ("speed", "clients", "hostile")


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument(
        "parts", nargs="*", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="class folders of JPEGs")
    options.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options.add_argument("--requests", type=int, default=10_000, help="across all reloads")
    options.add_argument("--reloads", type=int, default=20)
    options.add_argument("--bodies", type=int, default=100_000, help="that are mutated, half of them for each protocol")
    args = parsed(options, seconds=0.1, requests=40, reloads=2, bodies=200)
    images = existing(args.images, "--images")
    settings = {"images": shown(images), "turns": args.repeat, "seconds": args.seconds}
    codes = []
    with workspace() as work:
        bundle = exported(work)
        if not SETTINGS.smallest:  # where int8 falls back to another precision
            run([TLKIT, "export", str(bundle), "--onnx", "--precision", "int8"])
        jpegs = repeated(images, work / "jpegs", 12 if SETTINGS.smallest else 200)
        for part in args.parts:
            if part not in PARTS:
                sys.exit(f"there is no part {part!r}; choose of {', '.join(PARTS)}")
            codes.append(
                {
                    "speed": lambda: speed(args, settings, work, bundle, jpegs),
                    "clients": lambda: clients(work, bundle, jpegs),
                    "hostile": lambda: hostile(args.bodies, work, bundle, jpegs),
                }[part]()
            )
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
