"""Entry point: registers the verbs and turns every error into one message and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO, cast

import typer
from typer.exceptions import TyperException

from safeserve.core.errors import EXIT_ENVIRONMENT, EXIT_USER, SafeserveError, harmless
from safeserve.core.threads import loadavg, waiting_policy

STOPPED = 130
CLOSED_PIPE = 141
RESUMED = {"quickstart", "run", "train", "eval", "score"}
"""Verbs that go on where they were stopped."""
OF_A_PATH = dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR), EXIT_USER) | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), EXIT_ENVIRONMENT
)
"""Errors of the operating system that a path alone explains, and whose they are."""

app = typer.Typer(
    name="safeserve",
    help="Measure how safe and helpful a language model is, align it, measure again, decide if it is safe to serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from safeserve import __version__

        print(f"safeserve {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before the verb."""


def register() -> typer.Typer:
    """The app with every verb; the verbs' modules import nothing heavy."""
    from safeserve.cli import (
        analyze,
        calibrate,
        check,
        compare,
        data,
        doctor,
        evaluate,
        export,
        figures,
        gate,
        guard,
        models,
        recipes,
        report,
        run,
        train,
        view,
    )

    app.command("quickstart")(run.quickstart)
    app.command("run")(run.run)
    app.add_typer(train.app, name="train")
    app.add_typer(guard.app, name="guard")
    app.command("eval")(evaluate.evaluate)
    app.command("score")(evaluate.score)
    app.command("compare")(compare.compare)
    app.command("check")(check.check)
    app.command("gate")(gate.gate)
    app.command("analyze")(analyze.analyze)
    app.command("calibrate")(calibrate.calibrate)
    app.command("report")(report.report)
    app.command("view")(view.view)
    app.command("figures")(figures.figures)
    app.command("export")(export.export)
    app.add_typer(data.app, name="data")
    app.add_typer(models.app, name="models")
    app.add_typer(recipes.app, name="recipes")
    app.command("doctor")(doctor.doctor)
    return app


class _Patient:
    """stderr that goes on where what it leads to cannot take more: a full log disk decides no gate."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if that is possible."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _prepare_streams() -> None:
    """What a terminal or file cannot show is replaced there, and what it cannot take is no failure of the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.stderr is None:  # closed by the caller; print would take stdout instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the process ends)
    sys.stderr = cast(TextIO, _Patient(sys.stderr))


def main() -> None:
    """Run the command line; never shows a traceback."""
    _prepare_streams()
    # Set before any library reads them: no telemetry, no advisory chatter, no progress bars but ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ |= waiting_policy(loadavg(), os.cpu_count() or 1)
    try:
        result = register()(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except SafeserveError as error:
        print(f"error: {harmless(str(error))}", file=sys.stderr)
        code = error.exit_code
    except Exception as error:
        code = _unexpected(error)
    except SystemExit as stop:
        # Where the reader of a pipe has gone, typer and rich end with 1, which would say that a gate failed.
        code = stop.code if isinstance(stop.code, int) and stop.code != 1 else CLOSED_PIPE
    except KeyboardInterrupt:
        code = STOPPED
    if code == STOPPED:  # typer turns Ctrl-C into this code itself
        goes_on = " The same command goes on where this one stopped." if RESUMED & set(sys.argv[1:2]) else ""
        print(f"\nStopped.{goes_on}", file=sys.stderr)
    sys.exit(code)


def _unexpected(error: Exception) -> int:
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, TyperException):
        if said := error.format_message():  # nothing is wrong with a bare verb, which has printed its help
            print(f"error: {said} Try --help.", file=sys.stderr)
        return EXIT_USER
    if isinstance(error, typer.Abort):
        return STOPPED
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        print("error: out of memory. Lower token_budget or batch_size, or close other programs.", file=sys.stderr)
        return EXIT_ENVIRONMENT
    if "No space left on device" in str(error):  # safetensors and torch wrap it in errors of their own
        print("error: the disk is full. Free some space, then run the same command again: it resumes.", file=sys.stderr)
        return EXIT_ENVIRONMENT
    if isinstance(error, OSError) and error.filename is not None and (code := OF_A_PATH.get(error.errno or 0)):
        print(f"error: {harmless(str(error.filename))}: {error.strerror}.", file=sys.stderr)
        return code
    path = Path("safeserve-error.log")
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f"Details are in {path.resolve()}."
    except OSError:
        where = "Its details could not be written to this folder."
    first = (str(error).strip().splitlines() or [""])[0]
    print(f"error: {type(error).__name__}: {first}\nThis is our fault or the machine's. {where}", file=sys.stderr)
    return EXIT_ENVIRONMENT
