"""A folder of runs in the browser, on this machine only: the list of runs, each run's page, any two models compared.

Nothing is written, and nothing outside the folder is read: a request can only name what the list shows. Pages are those
of :mod:`safeserve.report.html`; requests that come from elsewhere (another host name) are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from markupsafe import Markup

from safeserve.core.errors import EnvironmentFault, SafeserveError, UserError
from safeserve.core.runs import read_json
from safeserve.evaluation.compare import compare
from safeserve.evaluation.folder import read_eval
from safeserve.evaluation.foreign import told_apart
from safeserve.report.content import ReportInput, report_from_run, sample_rows
from safeserve.report.html import PANELS, page_environment, render_report, template
from safeserve.report.rows import main_judge, metric_cell, percent

HOSTS = ("localhost", "127.0.0.1")
BROKEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What comes of files that are JSON and nothing else that was expected; one such run must not hide the others."""


class ShownRate(NamedTuple):
    """A rate in the list; ``source`` names the benchmark and the judge, for only rates of the same two compare."""

    value: str
    source: str = ""


NOTHING = ShownRate("–")


@dataclass(frozen=True)
class RunLine:
    """A run in the list.

    Attributes:
        outcome: of its verdict, empty without one.
        models: those that it evaluated, each with its rates in the order of the page's panels.
    """

    name: str
    finished: str
    base: str
    outcome: str
    candidate: str
    models: tuple[tuple[str, tuple[ShownRate, ...]], ...]


def runs_in(folder: Path) -> list[RunLine]:
    """The runs that have evaluated something, latest first; what a broken file hides is left empty, not hidden."""
    found = []
    for path, evaluated in _evaluated(folder):
        summaries = {one.name: _read(one / "summary.json") for one in evaluated}
        manifest, verdict = _read(path / "manifest.json"), _read(path / "verdict.json")
        found.append(
            RunLine(
                name=path.name,
                finished=str(manifest.get("finished", "")),
                base=str(manifest.get("model", "")),
                outcome=str(verdict.get("outcome", "")),
                candidate=str(verdict.get("candidate", "")),
                models=tuple((model, _shown_rates(summary)) for model, summary in summaries.items()),
            )
        )
    return sorted(found, key=lambda run: (run.finished, run.name), reverse=True)


def _evaluated(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every run with the folders of the models that it has evaluated; no file is read."""
    for path in folder.glob("[!.]*/"):
        if found := sorted(one.parent for one in path.glob("evals/*/summary.json")):
            yield path, found


def index_page(folder: Path) -> str:
    """The list of runs, with a form that compares any two models."""
    runs = runs_in(folder)
    references = [f"{run.name}:{model}" for run in runs for model, _ in run.models]
    # Chosen beforehand: the latest run's first model and the one that its verdict is about, else its last.
    last = runs[0].candidate or runs[0].models[-1][0] if runs else ""
    chosen = [references[0], f"{runs[0].name}:{last}"] if references else ["", ""]
    return _render(
        "view.html",
        runs=runs,
        folder=str(folder),
        headings=[panel[0] for panel in PANELS],
        references=references,
        sides=[("a", "before", chosen[0]), ("b", "after", chosen[1])],
    )


def comparison_page(folder: Path, a: str, b: str) -> str:
    """The page of two models, each as RUN:MODEL.

    Raises:
        UserError: not in the list, or two that must not be compared.
    """
    one, two = told_apart(*(read_eval(_eval_folder(folder, reference)) for reference in (a, b)))
    return render_report(
        ReportInput(
            title=f"{a} and {b}",
            verdict=None,
            summaries={one.model: one.meta, two.model: two.meta},
            comparison=compare(one, two),
            samples=list(sample_rows([one, two])),
            command=f"safeserve compare {a} {b}",
        )
    )


def respond(folder: Path, target: str) -> tuple[HTTPStatus, str]:
    """Status and page of a request's path and query."""
    parts = urlsplit(target)
    try:
        if parts.path == "/":
            return HTTPStatus.OK, index_page(folder)
        if parts.path.startswith("/run/"):
            name = unquote(parts.path.removeprefix("/run/"))
            return HTTPStatus.OK, render_report(report_from_run(_run_folder(folder, name)))
        if parts.path == "/compare":
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            return HTTPStatus.OK, comparison_page(folder, query.get("a", ""), query.get("b", ""))
    except SafeserveError as error:
        return HTTPStatus.BAD_REQUEST, _message(str(error))
    except BROKEN as error:
        return HTTPStatus.BAD_REQUEST, _message(f"A file of the run is not as safeserve writes it ({error!r}).")
    return HTTPStatus.NOT_FOUND, _message(f"{parts.path}: there is no such page.")


def serve(folder: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; ``ready`` is given the address.

    Raises:
        UserError: no such folder.
        EnvironmentFault: the port is taken.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Run `safeserve quickstart`, or name the folder with your runs.")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(folder))
    except OSError as error:
        raise EnvironmentFault(f"port {port}: {error.strerror or error}. Choose another with --port.") from None
    with server:
        ready(f"http://127.0.0.1:{server.server_address[1]}/")
        server.serve_forever()


def _handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of another site could make the browser ask here under a name of its own.
            if (self.headers.get("Host") or "").rpartition(":")[0] not in HOSTS:
                status, page = HTTPStatus.FORBIDDEN, _message("Only pages of this machine are served.")
            else:
                status, page = respond(folder, self.path)
            content = page.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """No line a request: the terminal shows the address and nothing else."""

    return Handler


def _run_folder(folder: Path, name: str) -> Path:
    """The run of that name in the list: a name that is not in it is never made into a path."""
    if name not in {path.name for path, _ in _evaluated(folder)}:
        raise UserError(f"{name}: no run of this name here.")
    return folder / name


def _eval_folder(folder: Path, reference: str) -> Path:
    known = {f"{path.name}:{model.name}": model for path, evaluated in _evaluated(folder) for model in evaluated}
    if reference not in known:
        raise UserError(f"{reference or 'nothing'}: no such model here. Choose both from the list.")
    return known[reference]


def _rates(summary: Mapping[str, Any]) -> tuple[ShownRate, ...]:
    """Each panel's rate, from the first benchmark that has it."""
    return tuple(_first_rate(summary, metric) for _, _, metric, _ in PANELS)


def _first_rate(summary: Mapping[str, Any], metric: str) -> ShownRate:
    for benchmark, part in summary.get("benchmarks", {}).items():
        if cell := metric_cell(summary, benchmark, metric):
            return ShownRate(percent(cell["rate"]), f"{benchmark}, by {main_judge(metric, part['judges'])}")
    return NOTHING


def _shown_rates(summary: Mapping[str, Any]) -> tuple[ShownRate, ...]:
    try:
        return _rates(summary)
    except BROKEN:  # listed all the same, without rates
        return (NOTHING,) * len(PANELS)


def _message(text: str) -> str:
    return _render("message.html", text=text)


def _render(name: str, **values: Any) -> str:
    page = page_environment().from_string(template(name)).render(style=Markup(template("report.css")), **values)
    return str(page.encode("utf-8", "replace").decode("utf-8"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.exists() else {}
    except SafeserveError:
        return {}
