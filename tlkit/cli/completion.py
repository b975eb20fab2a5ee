"""`tlkit completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print the shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes tlkit's commands and options in SHELL.

    \b
    Examples:
      eval "$(tlkit completion bash)"
      tlkit completion fish > ~/.config/fish/completions/tlkit.fish
    """
    from tlkit.cli import cli

    if completion := get_completion_class(shell):
        click.echo(completion(cli, {}, "tlkit", "_TLKIT_COMPLETE").source())
