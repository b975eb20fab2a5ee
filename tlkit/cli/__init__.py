"""The command line: one module per verb, imported only when that verb is used."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from tlkit import __version__
from tlkit.errors import ResourceError, TlkitError

# The one-line helps stand here so that `tlkit --help` imports no verb; a test holds them against the verbs' own.
VERBS = {
    "train": "Train on a folder of labelled images and write a bundle.",
    "export": "Turn a bundle into graphs for deployment, each checked on real images.",
    "verify": "Replay a bundle's golden images on what was exported from it.",
    "predict": "Label images with an exported model.",
    "embed": "Write the features of images to a Parquet or npy file.",
    "eval": "Measure an exported model on labelled images.",
    "inspect": "Show what a bundle or an exported graph is.",
    "plugins": "List the plugins and what they offer.",
    "completion": "Print the shell's completion script.",
}
DEBUG = "--debug"


class Verbs(click.Group):
    """A group whose commands are modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"tlkit.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            raise click.UsageError(
                f"there is no command {args[0]!r}; " + (f"did you mean {near[0]!r}?" if near else "see: tlkit --help")
            )
        return super().resolve_command(ctx, args)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tlkit")
@click.option(DEBUG, is_flag=True, help="Show the traceback of an error (works after a command as well).")
def cli(debug: bool) -> None:
    """Turn a folder of labelled images and a pretrained network into a proven, deployed classifier.

    \b
    Examples:
      tlkit train photos/ -o run/
      tlkit export run/ --onnx
      tlkit verify run/
      tlkit predict run/onnx/fp32/model.onnx a.jpg
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code."""
    given = list(sys.argv[1:] if args is None else args)
    sys.exit(run([arg for arg in given if arg != DEBUG], debug=DEBUG in given))


def run(args: Sequence[str], *, debug: bool = False) -> int:
    """Run a command line; returns the exit code. This is the one place where errors become lines and codes."""
    try:
        result: Any = cli.main(list(args), prog_name="tlkit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except BrokenPipeError:  # whoever read the results has had enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", 130)
    except Exception as error:
        if debug:
            raise
        return _complain(*_explain(error))


def _explain(error: Exception) -> tuple[str, int]:
    """The line and the exit code of an error."""
    match error:
        case TlkitError():
            return str(error), error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            return error.format_message(), 2
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "tlkit"
            return f"{error.format_message()} (see: {command} --help)", 2
        case click.ClickException():
            return error.format_message(), 2
        case MemoryError():
            return "not enough memory; use fewer images or a smaller model", ResourceError.exit_code
        case _:
            kind = type(error).__name__
            return f"a bug in tlkit: {kind}: {error}; run again with {DEBUG} and report what it shows", 1


def _complain(line: str, code: int) -> int:
    click.echo(line if code == 2 and "\n" in line else f"tlkit: {' '.join(line.split())}", err=True)
    return code
