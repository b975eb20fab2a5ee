"""`tlkit completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes tlkit's commands and options in SHELL.

    \b
    Examples:
      eval "$(tlkit completion bash)"
      tlkit completion fish > ~/.config/fish/completions/tlkit.fish
    """
    from tlkit.cli import COMPLETION_VARIABLE, cli, result
    from tlkit.util.ending import PROGRAM

    if completion := get_completion_class(shell):
        result(completion(cli, {}, PROGRAM, COMPLETION_VARIABLE).source())
