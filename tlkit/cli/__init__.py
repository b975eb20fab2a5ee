"""The command line: one module per verb, imported only when that verb is used."""

from __future__ import annotations

import codecs
import contextlib
import functools
import gc
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import IO, Any

import click

from tlkit.errors import ResourceError, TlkitError, TlkitNote, TlkitWarning, UsageError, missing_package, one_line
from tlkit.util import ending
from tlkit.util.ending import PROGRAM
from tlkit.util.text import nearest
from tlkit.version import __version__

# Each verb is a module of this package. Its one-line help stands here, so that `tlkit --help` imports no verb.
VERBS = {
    "advise": "Recommend a strategy, cut and head for a folder of labelled images, with reasons.",
    "train": "Train on a folder of labelled images and write a bundle.",
    "export": "Export a bundle to graphs for deployment, each checked on real images.",
    "verify": "Replay a bundle's golden images on its exports.",
    "predict": "Label images with an exported model.",
    "embed": "Write the features of images to a Parquet or npy file, or as a job that resumes.",
    "index": "Index features for an approximate search, with its recall.",
    "search": "Find the images that are most similar to others, by their features.",
    "eval": "Evaluate an exported model on labelled images.",
    "report": "Write a page about what a model gets right and wrong, and why.",
    "look": "Write a page about what a network sees in an image, stage by stage.",
    "suggest": "Suggest which unlabelled images to label next, and why.",
    "card": "Write a model card in the format of Hugging Face.",
    "serve": "Serve bundles over HTTP and gRPC, each verified before it is ready.",
    "bench": "Measure latency and throughput of a bundle's exports.",
    "inspect": "Show the facts about a bundle or an exported graph.",
    "plugins": "List plugins and components; show or check one, or start a new plugin.",
    "doctor": "Report what this machine can run, and problems of the installation.",
    "completion": "Print the shell's completion script.",
}
DEBUG = "--debug"
COMPLETION_VARIABLE = "_TLKIT_COMPLETE"


class Verbs(click.Group):
    """A group whose commands are modules of a package; `verbs` has their one-line helps."""

    def __init__(self, *args: Any, package: str, verbs: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.package, self.verbs = package, verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        command: click.Command = import_module(f"{self.package}.{cmd_name}").command
        command.short_help = self.verbs[cmd_name]
        if command.callback is not None and not hasattr(command.callback, "prints_results"):
            command.callback = _printing_results(command.callback)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.verbs.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.verbs and not args[0].startswith("-"):
            near = nearest(args[0], self.verbs)
            then = f"did you mean {near!r}?" if near else f"see: {ctx.command_path} --help"
            raise click.UsageError(f"there is no command {args[0]!r}; {then}", ctx)
        return super().resolve_command(ctx, args)


_stdout: list[IO[str]] = []  # while a verb runs: the stream of its results


def result(text: str) -> None:
    """Print a result of a verb on stdout, where nothing else is printed."""
    click.echo(text, file=_stdout[-1] if _stdout else None)


def _printing_results(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Have what a verb prints, and the plugins that it runs, go to stderr; `result` alone prints on stdout."""

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> Any:
        _stdout.append(sys.stdout)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return verb(*args, **kwargs)
        finally:
            _stdout.pop()

    run.prints_results = True  # type: ignore[attr-defined]
    return run


@click.command(
    cls=Verbs,
    package=__name__,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name=PROGRAM)
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
    if args is None:
        _be_utf8()
    given = list(sys.argv[1:] if args is None else args)
    end = given.index("--") if "--" in given else len(given)  # what follows are names of files
    debug = DEBUG in given[:end]
    if not (debug or sys.warnoptions):
        warnings.simplefilter("ignore")  # libraries warn who calls them; users get errors and reports
    # Imports and traces make objects by the million that stay: looking through them again and again for garbage takes
    # a tenth of the time of `tlkit train`.
    gc.set_threshold(100_000)
    if not _check_streams():
        sys.exit(_complain("stdout is closed; redirect it to a file or to /dev/null", ResourceError.exit_code))
    _keep_stdout_for_results()
    _let_any_name_through()
    ending.end_on_signals()
    ending.leave(run([arg for arg in given[:end] if arg != DEBUG] + given[end:], debug=debug))


def _be_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: names of files are UTF-8 there too."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the command that this process is


def run(args: Sequence[str], *, debug: bool = False) -> int:
    """Run a command line; returns the exit code. This is the one place where errors become lines and codes."""
    try:
        with _warnings_as_lines():
            return _dispatch(args)
    except BrokenPipeError:  # whoever read the results has had enough of them
        _discard_output(sys.stdout, sys.stderr)
        return 0
    except KeyboardInterrupt as interrupt:
        return _complain(*ending.told(interrupt))
    except click.Abort:
        return _complain(*ending.told(KeyboardInterrupt()))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except Exception as error:  # noqa: BLE001  # nobody would see it above this
        if debug and not isinstance(error, click.ClickException):
            traceback.print_exc()
        if isinstance(error, OSError) and error.filename is None:
            _discard_output(sys.stdout)  # it may be full, and would be flushed again at the end
        problem = _problem(error)
        return _complain(str(problem), problem.exit_code)


def _dispatch(args: Sequence[str]) -> int:
    """Invoke a command as `click.Command.main` does, without its error handling: it makes a closed pipe a failure."""
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    try:
        with cli.make_context(PROGRAM, list(args)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as end:  # of --help and --version
        return end.exit_code
    return 0


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print each warning of tlkit as a line on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", TlkitWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, TlkitWarning):
                kind = "" if issubclass(category, TlkitNote) else "warning: "
                click.echo(one_line(f"{PROGRAM}: {kind}{message}"), err=True)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _check_streams() -> bool:
    """Return False if stdout is closed; closed descriptors lead nowhere, as the next file would take their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    return sys.stdout is not None


def _keep_stdout_for_results() -> None:
    """Give `sys.stdout` a descriptor of its own and point the usual one to stderr: native code and plugins write there.

    A closed stdout or stderr is left as it is.
    """
    if sys.stdout is None or sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # also io.UnsupportedOperation, of a stream without a descriptor
        usual = sys.stdout
        descriptor = os.dup(usual.fileno())
        usual.flush()
        os.dup2(sys.stderr.fileno(), usual.fileno())
        sys.stdout = open(descriptor, "w", encoding=usual.encoding, errors=usual.errors)  # noqa: SIM115 - until the end


def _let_any_name_through() -> None:
    """Print names that are not valid UTF-8 as the bytes they are, as `ls` does, rather than fail on them."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def _discard_output(*streams: IO[str]) -> None:
    """Send what is still buffered nowhere: Python would complain of the closed pipe or full disk on its way out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or without a descriptor
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _problem(error: Exception) -> TlkitError:
    """Any error as one with a line for the user and an exit code."""
    from tlkit.plugin.blame import attributed  # not above: `--help` needs it as little as the two of `_refusal`

    match error:
        case TlkitError():
            return error
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else PROGRAM
            return UsageError(f"{error.format_message()} (see: {command} --help)")
        case click.ClickException():
            return UsageError(error.format_message())
        case ModuleNotFoundError() if error.name and error.name.partition(".")[0] != PROGRAM:
            return attributed(error) or missing_package(error)
        case _:
            what = f"a bug in tlkit: {type(error).__name__}: {error}"
            bug = TlkitError(what, do=f"run again with {DEBUG} and report what it shows")
            return _refusal(error) or attributed(error) or bug


def _refusal(error: Exception) -> ResourceError | None:
    """Return what the system refused: files, room on a disk, memory or threads; None for another error."""
    from tlkit.util.files import REMEDIES  # not above: `--help` needs neither
    from tlkit.util.resources import REFUSED, is_refused

    if is_refused(error):
        return ResourceError(f"not enough memory or threads {error}".strip(), do=REFUSED)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    reason = (error.strerror or str(error)).lower()
    if error.filename is not None:
        return ResourceError(reason, file=os.fsdecode(error.filename))
    if "temporary directory" in reason:
        return ResourceError(reason, do="set TMPDIR to a folder that can be written")
    return ResourceError(f"can't write: {reason}", do=REMEDIES.get(error.errno or 0))


def _complain(line: str, code: int) -> int:
    """Say on stderr what went wrong, under torchrun with the number of this process; returns the code."""
    number = os.environ.get("RANK", "0")
    who = PROGRAM if number == "0" else f"{PROGRAM} (process {number})"
    with contextlib.suppress(OSError):  # stderr may be full or gone as well
        click.echo(f"{who}: {line}", err=True)
    return code
