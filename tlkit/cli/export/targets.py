"""Options of `tlkit export` that follow from the installed targets, and the combinations that it refuses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tlkit.defaults import DEFAULT_TARGET
from tlkit.plugin.contract import OptimizationProfile


class TargetFlags(click.Command):
    """A command with one flag per installed target, the same as `--target NAME`."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        return [*own[: len(self.params)], *_flags().values(), *own[len(self.params) :]]

    def invoke(self, ctx: click.Context) -> Any:
        given = [target for target, flag in _flags().items() if ctx.params.pop(str(flag.name))]
        ctx.params["targets"] = tuple(dict.fromkeys((*given, *ctx.params["targets"])))
        return super().invoke(ctx)


@functools.cache
def _flags() -> dict[str, click.Option]:
    """Return the flag of each installed target by its name."""
    from tlkit.api import list_components

    names = dict.fromkeys(component.name for component in list_components("target"))
    return {
        name: click.Option([f"--{name}", f"flag_{number}"], is_flag=True, help=f"The same as --target {name}.")
        for number, name in enumerate(names)
    }


class ProfileType(click.ParamType[OptimizationProfile]):
    """Three rising batch sizes separated by commas, as an optimization profile."""

    name = "profile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> OptimizationProfile:
        if isinstance(value, OptimizationProfile):
            return value
        numbers = [int(word) for word in value.split(",") if word.strip().isdecimal()]
        if len(numbers) != 3 or value.count(",") != 2 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
            self.fail(f"{value!r} is not three rising numbers, as in 1,8,32", param, ctx)
        return OptimizationProfile(*numbers)


def check_combination(bundles: Sequence[Path], triton: Path | None, out: Path | None, options: dict[str, Any]) -> None:
    """Refuse options of `tlkit export` that exclude each other, but those that `tlkit.export` refuses itself."""
    targets, shared = options["targets"], options["shared_trunk"]
    searched = any(options[name] for name in ("no_fallback", "refit_head")) or options["max_drop"] is not None
    built = any(options[name] for name in ("gpu", "profile", "options"))
    problems = {
        f"name a target: {', '.join(f'--{name}' for name in _flags())} or --triton DIRECTORY": not targets
        and not triton,
        "--triton goes with --precision and --data alone": bool(triton)
        and (searched or built or out is not None or shared or bool(targets)),
        "--shared-trunk is for --onnx in fp32": shared
        and (targets != (DEFAULT_TARGET,) or options["precision"] != "fp32" or searched or built),
        "--shared-trunk needs -o, where to write": shared and out is None,
        "-o is for --shared-trunk: what else is exported lies in the bundle": out is not None and not shared,
        "several bundles need --shared-trunk -o DIRECTORY": len(bundles) > 1 and not shared and not triton,
    }
    for problem, is_so in problems.items():
        if is_so:
            raise click.UsageError(problem)
