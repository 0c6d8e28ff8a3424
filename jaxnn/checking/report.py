"""The result of `check_gradient`: a table to read, an error to raise, and data to save."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxnn._terminal import coloured
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import (
    HANDFUL,
    INTERRUPTED,
    LEAST_DIGITS,
    Birth,
    DigitsLost,
    LeafReport,
    RuleReport,
    annotations,
)
from jaxnn.checking.page import fragment, page, write_page

# How many leaves the text of an error shows, and how many entries of the first.
BRIEF = 2
# Hints longer than this are written once.
LONG = 80


def plain(value: Any) -> Any:
    """A result as dictionaries, lists, strings and numbers."""
    if isinstance(value, Verdict):
        return str(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def subject_of(order: int, function: str, argnums: Sequence[int]) -> str:
    """What was differentiated, in words: the derivative, the function, and which arguments."""
    several = "arguments" if len(argnums) > 1 else "argument"
    by = f" with respect to {several} {', '.join(map(str, argnums))}"
    return f"{what_of(order)} of {function}{by if argnums else ''}"


def what_of(order: int) -> str:
    """The name of a derivative."""
    return {1: "gradient", 2: "Hessian"}.get(order, f"derivative of order {order}")


def painted(verdict: Verdict, text: str) -> str:
    """A verdict's text in its colour, for terminals."""
    return coloured(text, 2 if verdict in (Verdict.KINK, Verdict.IMPRECISE) else verdict.exit_code)


class GradientError(AssertionError):
    """Raised for a gradient that is wrong or that the evidence cannot confirm. The text lists
    the lines to blame, if known, and then the worst leaves; `report` has all leaves, and
    `pytest -v` shows the whole report.

    Example:
      >>> twos = lambda x: 2 * jnp.ones(2)
      >>> jaxnn.assert_gradient(jnp.sum, jnp.ones(2), gradient=twos)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      jaxnn.checking.report.GradientError: gradient of ...: differs
      ...

    Attributes:
      report: the `GradientReport`, if there is one.
      annotations: the lines to blame, as commands for GitHub Actions.
    """

    def __init__(
        self, text: str = "", report: "GradientReport | None" = None, found: Sequence[Any] = ()
    ):
        super().__init__(text)
        self.report, self.annotations = report, annotations(found)


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """The findings of `check_gradient`; `print` shows them as a table.

    Attributes:
      function: name of the function.
      verdict: the worst verdict; "not deterministic" if the function is not deterministic.
      leaves: one `LeafReport` per leaf, worst first.
      rules: the derivative rules that are wrong, with the lines that call them.
      births: where NaN or infinity first appears.
      digits_lost: the lines where the gradient loses digits, worst first.
      notes: anything unusual about the function or its evaluation.
      order: 1 for the gradient; 2 if the slopes are those of a random projection of the gradient,
        which checks the Hessian; 3 and 4 likewise.
      evaluations: how many values of the function were computed.
      interrupted: whether Ctrl-C ended the check early.
      digits: how many digits of each leaf's gradient must be correct, if specified.
      fixed: the arguments that are not differentiated, each with its shape and dtype.
      argnums: the arguments that are differentiated; () if no others could be.

    Example:
      >>> report = jaxnn.check_gradient(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
      >>> report.ok, report.verdict, report.leaves[0].path
      (True, 'agrees', '[0]')
    """

    function: str
    verdict: Verdict
    leaves: tuple[LeafReport, ...]
    rules: tuple[RuleReport, ...] = ()
    births: tuple[Birth, ...] = ()
    digits_lost: tuple[DigitsLost, ...] = ()
    notes: tuple[str, ...] = ()
    order: int = 1
    evaluations: int = 0
    interrupted: bool = False
    digits: float | None = None
    fixed: tuple[str, ...] = ()
    argnums: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every leaf agrees, is at a kink with the gradient between the two slopes, or is
        imprecise with two digits left; and has `digits` correct digits, if specified.
        """
        return self.verdict.ok and not any(map(self._lacks, self.leaves))

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 0 if `ok`, 1 if not, 2 if it is inconclusive."""
        return self.verdict.exit_code if not self.verdict.ok else int(not self.ok)

    def _lacks(self, leaf: LeafReport) -> bool:
        """Whether a leaf has too few correct digits, after those that its dtype loses and those
        that the values contradict.
        """
        if self.digits is None:
            least = LEAST_DIGITS if leaf.verdict is Verdict.IMPRECISE else 0.0
            return leaf.own_dtype_digits < least
        seen = leaf.verdict is not Verdict.KINK and leaf.is_off
        right = min(leaf.digits, leaf.own_dtype_digits) if seen else leaf.own_dtype_digits
        return right < self.digits

    @property
    def what(self) -> str:
        """The name of the derivative that was checked."""
        return what_of(self.order)

    @property
    def subject(self) -> str:
        """What was checked, in words: the derivative, the function, and which arguments."""
        return subject_of(self.order, self.function, self.argnums)

    @property
    def found(self) -> tuple[Birth | RuleReport | DigitsLost, ...]:
        """All findings on lines of code: births, rules, and digits lost."""
        return *self.births, *self.rules, *self.digits_lost

    def raise_if_wrong(self) -> None:
        """Raise `GradientError`, whose text is a short report, unless the gradient is `ok`."""
        if not self.ok:
            __tracebackhide__ = True  # pytest then shows the line that calls this method
            raise GradientError(self._brief(), self, self.found)

    def _brief(self) -> str:
        """The report in few lines: the lines to blame come first, then the worst leaves."""
        first = [str(self.found[0])] if self.found else []
        others = [str(one).partition("\n")[0] for one in self.found[1:]]
        # Stable: worst first, also among the leaves that only lack digits.
        worst = sorted(self.leaves, key=lambda leaf: leaf.verdict.ok and not self._lacks(leaf))
        shown = tuple(
            leaf._replace(entries=leaf.entries[: 0 if number else BRIEF])
            for number, leaf in enumerate(worst[:BRIEF])
        )
        rest = len(worst) - len(shown)
        more = [f"and {rest} more {'leaf' if rest == 1 else 'leaves'}"] if rest else []
        short = dataclasses.replace(self, leaves=shown, rules=(), births=(), digits_lost=())
        return "\n".join([*first, *others, short.text(), *more])

    def to_dict(self) -> dict[str, Any]:
        """The report as dictionaries, lists, strings and numbers, ready for `json.dumps`."""
        return {"ok": self.ok, **plain(vars(self))}

    def plot(self, path: str | None = None, ax: Any = None) -> Any:
        """Draw a leaf's evidence: how far the numerical slope at each step is from the gradient's.

        Args:
          path: path of the leaf; by default the worst leaf.
          ax: Matplotlib Axes to draw on; new ones by default.

        Returns:
          The Axes.
        """
        from jaxnn.plots import gradient_evidence

        chosen = [leaf for leaf in self.leaves if path in (None, leaf.path)]
        if not chosen:
            paths = [leaf.path for leaf in self.leaves]
            raise ValueError(f"`path` must be one of {paths}. Got {path!r}.")
        return gradient_evidence(chosen[0], ax=ax)

    def table(self) -> str:
        """The report with a row for every leaf."""
        return self.text(every=True)

    def text(
        self,
        paint: Callable[[Verdict, str], str] = lambda _, text: text,
        every: bool = False,
    ) -> str:
        """The report; many leaves that agree share a line, unless `every` leaf is to have a row.
        `paint` gives a verdict's text its colour.
        """
        lines_of = self._lines_by_leaf()
        leaves = self.leaves if every else self._with_rows(lines_of)
        ended = " (interrupted)" if self.interrupted else ""
        first = f"{self.subject}: {paint(self.verdict, self.verdict)}{ended}"
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join(
            [first, *self._rows(leaves, lines_of, paint), *self._beside(leaves), *notes]
        )

    def _rows(
        self, leaves: Sequence[LeafReport], lines_of: Mapping[str, Any], paint: Any
    ) -> list[str]:
        """The table of some leaves, with what is known of each below its row."""
        header, *rows = _aligned([_HEADER, *map(_row, leaves)])
        lines = ["  ".join(header).rstrip()] if leaves else []
        told: dict[str, str] = {}
        for cells, leaf in zip(rows, leaves, strict=True):
            first = told.setdefault(leaf.hint, leaf.path)
            if first != leaf.path and len(leaf.hint) > LONG:
                leaf = leaf._replace(hint=f"as for {first}")
            cells[_VERDICT] = paint(leaf.verdict, cells[_VERDICT])
            found = "\n".join(map(str, lines_of.get(leaf.path, ()))).splitlines()
            details = [*_details(leaf, paint), *found]
            lines += ["  ".join(cells).rstrip(), *(f"    {line}" for line in details)]
        return lines

    def _beside(self, shown: Sequence[LeafReport]) -> Iterator[str]:
        """What is said of leaves without a row, and of those with too few digits."""
        unchecked = [leaf.path for leaf in self.leaves if leaf.hint == INTERRUPTED]
        paths = {leaf.path for leaf in shown}.union(unchecked)
        more = " more" if shown else ""
        if quiet := [leaf.digits for leaf in self.leaves if leaf.path not in paths]:
            yield f"{len(quiet)}{more} leaves agree, to at least {min(quiet):.1f} digits"
        if unchecked:
            several = "leaves" if len(unchecked) > 1 else "leaf"
            yield f"{len(unchecked)}{more} {several} not checked: interrupted"
        if self.verdict.ok and (few := [leaf.path for leaf in self.leaves if self._lacks(leaf)]):
            least = LEAST_DIGITS if self.digits is None else self.digits
            least = f"fewer than {least:g} correct digits in the leaf's own dtype"
            yield f"not ok: {least}: {', '.join(few)}"

    def _with_rows(self, lines_of: Mapping[str, Any]) -> Sequence[LeafReport]:
        """The leaves that get a row: all that were checked, unless more than a handful agree and
        have no lines.
        """
        checked = [leaf for leaf in self.leaves if leaf.hint != INTERRUPTED]
        remarkable = [
            leaf
            for leaf in checked
            if leaf.verdict is not Verdict.AGREES or leaf.hint or leaf.path in lines_of
        ]
        return checked if len(checked) - len(remarkable) <= HANDFUL else remarkable

    def _lines_by_leaf(self) -> dict[str, list[Any]]:
        """The findings on lines, by the path of the first leaf that they explain."""
        found: dict[str, list[Any]] = {}
        explained = (
            (self.births, (Verdict.NOT_FINITE,)),
            (self.rules, (Verdict.DIFFERS, Verdict.UNRESOLVED, Verdict.DETACHED)),
            (self.digits_lost, (Verdict.IMPRECISE, Verdict.DIFFERS)),
        )
        for lines, verdicts in explained:
            paths = [leaf.path for leaf in self.leaves if leaf.verdict in verdicts]
            paths += [leaf.path for leaf in self.leaves]
            if lines:
                found.setdefault(paths[0], []).extend(lines)
        return found

    def __bool__(self) -> bool:
        """`ok`, so that `assert check_gradient(...)` means what it says."""
        return self.ok

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        """One line; `str` has the table."""
        counts = f"{len(self.leaves)} {'leaf' if len(self.leaves) == 1 else 'leaves'}"
        worst = f", worst {self.leaves[0].path}" if self.leaves and not self.ok else ""
        return f"<GradientReport of {self.function}: {self.verdict}, {counts}{worst}>"

    def save(self, path: str | os.PathLike) -> None:
        """Write the report as a self-contained HTML page, with pictures of the evidence and without
        scripts.

        Args:
          path: path of the file; must end in .html or .htm.
        """
        write_page(path, page(self))

    def _repr_html_(self) -> str:
        return fragment(self, drawn=1)


_HEADER = (
    "leaf",
    "shape",
    "dtype",
    "verdict",
    "digits",
    "own",
    "autodiff",
    "numerical",
    "bound",
)
_VERDICT = _HEADER.index("verdict")


def _row(leaf: LeafReport) -> tuple[str, ...]:
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    digits = f"{leaf.digits:.1f}", f"{leaf.own_dtype_digits:.1f}"
    slopes = f"{leaf.autodiff:z.6g}", f"{leaf.numerical:z.6g}"
    return (leaf.path, shape, leaf.dtype, leaf.verdict, *digits, *slopes, f"{leaf.bound:.1e}")


def _aligned(table: Sequence[Sequence[str]]) -> list[list[str]]:
    """The rows with padded cells: words are left-aligned, numbers right-aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    pads = [str.ljust if k <= _VERDICT else str.rjust for k in range(len(widths))]
    cells = lambda row: zip(pads, row, widths, strict=True)  # noqa: E731
    return [[pad(cell, width) for pad, cell, width in cells(row)] for row in table]


def _details(leaf: LeafReport, paint: Callable[[Verdict, str], str]) -> Iterator[str]:
    for entry in leaf.entries[:HANDFUL]:
        name = f"{list(entry.index)} " if entry.index else ""
        lost = leaf.verdict is Verdict.DIFFERS and not leaf.is_off  # only in its own dtype
        exact = "float64" if lost or leaf.verdict is Verdict.IMPRECISE else "numerical"
        slope = f"{exact} {entry.numerical:z.9g} +- {entry.bound:.0e}"
        if not math.isfinite(entry.bound):
            slope = f"no {exact} slope"
        sides = f", {entry.left:z.6g} below and {entry.right:z.6g} above"
        two_slopes = entry.verdict.wrong and abs(entry.left - entry.right) > 0
        kink = sides if entry.verdict is Verdict.KINK or two_slopes else ""
        unsure = leaf.verdict is Verdict.UNRESOLVED and entry.verdict.wrong
        said = "off" if unsure else paint(entry.verdict, entry.verdict)
        yield f"{name}{said}: autodiff {entry.autodiff:z.9g}, {slope}{kink}"
    if leaf.pattern:
        yield leaf.pattern
    if leaf.hint:
        yield f"hint: {leaf.hint}"
