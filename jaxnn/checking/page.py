"""Renders reports as self-contained HTML without scripts: verdicts in colour and in words, pictures
of the evidence on leaves, and the lines of code that findings name.
"""

import html
import os
from collections.abc import Iterator
from typing import Any

from jaxnn._files import as_path
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import LeafReport, SourceLine

# Evidence is drawn for at most this many leaves, worst first, because pictures take time and space.
DRAWN = 12

_STYLE = """
.jaxnn { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; max-width: 60em;
  color: light-dark(#1b1f24, #e6edf3); background: light-dark(#ffffff, #0d1117);
  margin: 0 auto; padding: 1em; }
.jaxnn h1 { font-size: 1.3em; margin: 0 0 .2em; } .jaxnn p { margin: .3em 0; }
.jaxnn .good { color: light-dark(#116329, #56d364); }
.jaxnn .look { color: light-dark(#7d4e00, #e3b341); }
.jaxnn .bad { color: light-dark(#a40e26, #ff7b72); } .jaxnn .word { font-weight: 600; }
.jaxnn details { border: 1px solid light-dark(#d0d7de, #30363d); border-radius: 6px;
  margin: .5em 0; }
.jaxnn summary { padding: .4em .7em; cursor: pointer; display: flex; gap: 1em; flex-wrap: wrap; }
.jaxnn summary code { flex: 1 1 12em; } .jaxnn .inside { padding: 0 .9em .7em; }
.jaxnn table { border-collapse: collapse; margin: .4em 0; font-variant-numeric: tabular-nums; }
.jaxnn th, .jaxnn td { padding: .1em .8em .1em 0; text-align: left; font-weight: 400; }
.jaxnn th { opacity: .7; } .jaxnn pre { background: light-dark(#f6f8fa, #161b22);
  padding: .6em .8em; margin: .4em 0; overflow-x: auto; border-radius: 6px; }
.jaxnn .here { font-weight: 700; }
.jaxnn figure { margin: .5em 0; }
.jaxnn svg { max-width: 100%; height: auto; } .jaxnn .note { opacity: .8; }
"""

_BODY = "color-scheme: light dark; margin: 0; background: light-dark(#ffffff, #0d1117)"


def page(*reports: Any) -> str:
    """An HTML page with one or more reports."""
    titles = [f"{report.subject}: {report.verdict}" for report in reports]
    return _page("; ".join(titles), "".join(map(fragment, reports)))


def watch_page(report: Any) -> str:
    """An HTML page with a `WatchReport`."""
    return _page("watched gradients", watch_fragment(report))


def text_fragment(text: str) -> str:
    """A text as HTML for an existing page."""
    return _framed(f"<pre>{html.escape(text)}</pre>")


def _framed(*parts: str) -> str:
    return "".join((f"<style>{_STYLE}</style><div class='jaxnn'>", *parts, "</div>"))


def _details(head: str, inside: str, is_open: bool) -> str:
    mark = " open" if is_open else ""
    return f"<details{mark}><summary>{head}</summary><div class='inside'>{inside}</div></details>"


def write_page(path: str | os.PathLike, text: str) -> None:
    """Write a page to a file whose name ends in .html or .htm."""
    place = as_path("path", path)
    if place.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`path` must end in .html. Got {str(place)!r}.")
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise type(error)(
            f"`path` must be a writable file. Got {str(place)!r}: {error.strerror}."
        ) from None


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
    view = '<meta name="viewport" content="width=device-width">'
    start = f"<!doctype html><html lang='en'><head>{head}{view}</head><body style='{_BODY}'>"
    return f"{start}{body}</body></html>"


def watch_fragment(report: Any) -> str:
    """A `WatchReport` as HTML for an existing page: a line for each gradient, with what was found
    there inside.
    """
    first, *_ = str(report).splitlines()
    parts = [f"<h1>{html.escape(first)}</h1>"]
    for place in report.places:
        title, born = str(place).partition("\n")[0], place.not_finite
        kind = "bad" if place.is_wrong else "good" if place.is_judged else "look"
        lines = "" if born is None else f"<pre>{html.escape(str(born))}</pre>"
        inside = f"{lines}{_code(place.line)}{''.join(map(fragment, place.reports))}"
        word = f"<span class='word {kind}'>{html.escape(title)}</span>"
        parts.append(_details(word, inside, place.is_wrong))
    return _framed(*parts)


def fragment(report: Any, drawn: int = DRAWN) -> str:
    """A report as HTML for an existing page, such as a notebook, with pictures for the first
    `drawn` leaves.
    """
    return _framed(*_parts(report, drawn))


def _parts(report: Any, drawn: int) -> Iterator[str]:
    yield f"<h1>{html.escape(report.subject)}: {_word(report.verdict)}</h1>"
    so_far = ", so far" if report.interrupted else ""
    yield f"<p>{report.verdict.meaning}{so_far}</p>"
    for found in (*report.births, *report.rules, *report.digits_lost):
        line = getattr(found, "rule", found.line)
        yield f"<pre>{html.escape(str(found))}</pre>{_code(line)}"
    for number, leaf in enumerate(report.leaves):
        yield _leaf(leaf, is_open=leaf.verdict is not Verdict.AGREES, is_drawn=number < drawn)
    several = "leaf" if len(report.leaves) == 1 else "leaves"
    counts = f"{len(report.leaves)} {several}, {report.evaluations} evaluations of the function"
    yield f"<p class='note'>{counts}</p>"
    if report.fixed:
        yield f"<p class='note'>treated as constant: {html.escape(', '.join(report.fixed))}</p>"
    for note in report.notes:
        yield f"<p class='note'>{html.escape(note)}</p>"


def _word(verdict: Verdict) -> str:
    return f"<span class='word {verdict.kind}'>{verdict}</span>"


def _leaf(leaf: LeafReport, is_open: bool, is_drawn: bool) -> str:
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    rows = {
        "autodiff slope": f"{leaf.autodiff:z.9g}",
        "numerical slope": f"{leaf.numerical:z.9g} ± {leaf.bound:.1e}",
        "digits that agree": f"{leaf.digits:.1f}",
        "digits in its own dtype": f"{leaf.own_dtype_digits:.1f}",
    }
    table = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows.items())
    lines = [f"<table>{table}</table>"]
    if leaf.entries:
        head = "<tr><th>entry</th><th></th><th>autodiff</th><th>numerical</th><th>bound</th></tr>"
        body = "".join(
            f"<tr><td>{list(e.index)}</td><td>{_word(e.verdict)}</td><td>{e.autodiff:z.9g}</td>"
            f"<td>{e.numerical:z.9g}</td><td>{e.bound:.0e}</td></tr>"
            for e in leaf.entries[:20]
        )
        lines.append(f"<table>{head}{body}</table>")
    for text in (leaf.pattern, leaf.hint):
        if text:
            lines.append(f"<p>{html.escape(text)}</p>")
    if is_drawn:
        lines.append(f"<figure>{_picture(leaf)}</figure>")
    head = f"<code>{html.escape(leaf.path)}</code><span>{shape} {leaf.dtype}</span>"
    return _details(f"{head}{_word(leaf.verdict)}", "".join(lines), is_open)


def _picture(leaf: LeafReport) -> str:
    """A picture of the evidence as SVG, independent of the state of pyplot."""
    from matplotlib import style
    from matplotlib.figure import Figure

    from jaxnn.plots import gradient_evidence, svg_for_page

    with style.context("default"):
        figure = Figure((8, 3.2), layout="constrained")
        gradient_evidence(leaf, ax=figure.subplots())
        return svg_for_page(figure)


def _code(line: SourceLine, around: int = 2) -> str:
    """A line of code, highlighted, and the lines around it; empty if the file cannot be read."""
    import linecache

    numbers = range(max(1, line.line - around), line.line + around + 1)
    lines = [(n, linecache.getline(line.file, n).rstrip()) for n in numbers]
    if not any(text for _, text in lines):
        return ""
    shown = "\n".join(
        f"<span class='{'here' if n == line.line else ''}'>{n:5}  {html.escape(text)}</span>"
        for n, text in lines
    )
    return f"<pre>{shown}</pre>"
