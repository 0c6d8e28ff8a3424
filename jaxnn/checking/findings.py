"""The findings of a check on leaves, entries, rules and lines: the plain data of reports."""

import linecache
import os
import pathlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnn.checking.evidence import Evidence, Verdict, explained
from jaxnn.numerical.sources import PACKAGES

# How many lines are named per question, and how many entries per leaf.
LINES, HANDFUL = 3, 6
# The hint on a leaf that was not checked because the user ended the check.
INTERRUPTED = "interrupted"
# An imprecise gradient passes with this many digits left.
LEAST_DIGITS = 2.0
# The address of the schema of SARIF files.
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


class Entry(NamedTuple):
    """One entry of a leaf, differentiated separately.

    Attributes:
      index: multi-index in the leaf. Derivatives with respect to complex entries are complex.
      autodiff: the entry of the gradient that is checked.
      numerical: the derivative from values; at a kink, the mean of the two one-sided slopes; for
        an entry that is wrong only in the leaf's own dtype, the gradient in float64.
      bound: the bound on the error of `numerical`.
      verdict: "agrees", "kink", "imprecise", "differs", "not finite" or "unresolved".
      left: the slope from the left.
      right: the slope from the right; both equal `numerical` unless there is a kink.

    Example:
      >>> twos = lambda x: 2 * jnp.ones(2)
      >>> report = jaxnn.check_gradient(jnp.sum, jnp.ones(2), gradient=twos)
      >>> entry = report.leaves[0].entries[0]
      >>> entry.autodiff, round(entry.numerical, 9)
      (2.0, 1.0)
    """

    index: tuple[int, ...]
    autodiff: Any  # a float, or a complex number
    numerical: Any
    bound: float
    verdict: Verdict
    left: Any
    right: Any

    @classmethod
    def of(cls, flat: int, shape: Sequence[int], evidence: Evidence, verdict: Verdict) -> "Entry":
        """An entry from its flat index, its evidence and its verdict."""
        claim, left, right, bound = evidence
        index = tuple(map(int, np.unravel_index(flat, shape)))
        return cls(index, claim, (left + right) / 2, bound, verdict, left, right)

    @classmethod
    def joined(cls, entries: Sequence["Entry"]) -> tuple["Entry", ...]:
        """The complex entries made of those in real form: df/dx - i df/dy.

        If only one part of a number is among `entries`, the other part is 0 in the result.
        """
        parts: dict[tuple[int, ...], dict[int, Entry]] = {}
        for entry in entries:
            parts.setdefault(entry.index[:-1], {})[entry.index[-1]] = entry
        return tuple(cls._complex(index, *map(pair.get, (0, 1))) for index, pair in parts.items())

    @classmethod
    def _complex(
        cls, index: tuple[int, ...], real: "Entry | None", imaginary: "Entry | None"
    ) -> "Entry":
        both = [part for part in (real, imaginary) if part is not None]

        def number(name):
            x, y = (getattr(part, name) if part else 0.0 for part in (real, imaginary))
            return complex(x, -y)

        return cls(
            index=index,
            autodiff=number("autodiff"),
            numerical=number("numerical"),
            bound=float(np.linalg.norm([part.bound for part in both])),
            verdict=max(part.verdict for part in both),
            left=number("left"),
            right=number("right"),
        )


class LeafReport(NamedTuple):
    """The evidence on one leaf.

    Slopes are along a random direction through all entries, each moved in proportion to its scale;
    for a leaf with one entry, they are the derivative.

    Attributes:
      path: path of the leaf in the argument tuple.
      shape: shape of the leaf.
      dtype: dtype of the leaf.
      verdict: the verdict on the leaf.
      autodiff: the slope that the gradient claims.
      numerical: the slope that the function's values show.
      bound: the bound on the error of `numerical`.
      step: the step, along that direction, from which `numerical` comes.
      noise: the measured noise of the function's values.
      digits: how many digits the two slopes are known to share, given the bound.
      own_dtype_digits: how many digits agree between the gradients in the leaf's own dtype and in
        float64.
      entries: the entries that were checked separately, worst first.
      pattern: what the wrong entries have in common.
      hint: the likely cause.
      steps: the step sizes, in order.
      differences: the difference quotient at each step.

    Example:
      >>> jaxnn.check_gradient(lambda x: jnp.sum(x**2), jnp.ones(3)).leaves[0].shape
      (3,)
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict
    autodiff: float
    numerical: float
    bound: float
    step: float
    noise: float
    digits: float
    own_dtype_digits: float
    entries: tuple[Entry, ...]
    pattern: str
    hint: str
    steps: tuple[float, ...]
    differences: tuple[float, ...]

    @property
    def is_off(self) -> bool:
        """Whether claim and values differ by more than the bound, whatever the verdict."""
        return abs(self.autodiff - self.numerical) > self.bound

    @property
    def is_slightly_off(self) -> bool:
        """Whether the leaf agrees, but its slope or an entry is off by more than rounding.

        Relative to the slope itself, because errors in all entries must count even where the terms
        of the slope cancel.
        """
        is_large = any(
            abs(found.autodiff - found.numerical)
            > max(
                explained(self.dtype) * max(abs(found.autodiff), abs(found.numerical)), found.bound
            )
            for found in (self, *self.entries)
        )
        return self.verdict is Verdict.AGREES and is_large


class SourceLine(NamedTuple):
    """A line of the user's code.

    Attributes:
      file: path of the file.
      line: line number.
      function: name of the function that contains the line.
      text: source text of the line.

    Example:
      >>> print(SourceLine("model.py", 5, "loss", "return jnp.log(x)"))
      model.py:5 (loss)
    """

    file: str
    line: int
    function: str
    text: str

    @classmethod
    def of(cls, summary: str) -> "SourceLine":
        """A line from JAX's summary `file:line:column (function)`; the column may be missing."""
        place, _, function = summary.partition(" (")
        parts = place.split(":")
        while len(parts) > 1 and not parts[1].isdigit():  # the path contains a drive letter
            parts[:2] = [":".join(parts[:2])]
        file, number = parts[0], int(parts[1]) if len(parts) > 1 else 0
        text = linecache.getline(file, number).strip()
        return cls(file, number, function.removesuffix(")"), text)

    @property
    def quoted(self) -> str:
        """The source text, indented; empty if it is not known."""
        return f"    {self.text}" if self.text else ""

    @property
    def path(self) -> str:
        """The path of the file, relative to the working directory if it is in there."""
        return self.file.removeprefix(os.path.join(os.getcwd(), ""))

    def __str__(self) -> str:
        if not self.file:
            return "an unknown line"
        function = self.function.rpartition("<locals>.")[2]
        return f"{self.path}:{self.line}" + (f" ({function})" if function else "")


# Why `jnp.where` after the operation does not help.
MASKED = "masking it afterwards does not help: 0 times infinity is NaN"


class Birth(NamedTuple):
    """Where a value or a derivative stops being finite.

    Attributes:
      line: the user's line.
      operation: the primitive, or the function that has a custom rule.
      what: what happens there.
      count: how many entries are not finite.
      total: how many entries there are.
      cure: what usually helps.
      masked: whether the non-finite entries are masked afterwards.
      iteration: the loop iterations that contain it.
      given: the argument that contains the NaN or infinity, or "a constant"; empty if it first
        appears here.

    Example:
      >>> found = jaxnn.explain(lambda x: jnp.sum(jnp.sqrt(x)), jnp.array([0.0, 1.0]))
      >>> found.births[0].operation, found.births[0].count
      ('sqrt', 1)
    """

    line: SourceLine
    operation: str
    what: str
    count: int
    total: int
    cure: str
    masked: bool = False
    iteration: str = ""
    given: str = ""

    def within(self, iteration: str) -> "Birth":
        """The same finding, inside a loop iteration or a branch."""
        return self._replace(iteration=", ".join(filter(None, (iteration, self.iteration))))

    def __str__(self) -> str:
        when = f", {self.iteration}" if self.iteration else ""
        came = "passed in" if self.given else "born"
        of = f"({self.count} of {self.total} entries)"
        lines = (
            f"{came} at {self.line}{when}: {self.what} {of}",
            self.line.quoted,
            f"    {MASKED}" if self.masked else "",
            textwrap.indent(self.cure, "    "),
        )
        return "\n".join(filter(None, lines))


# A rule that is off by more than this may reverse the gradient on purpose.
OPPOSITE = 1.001
IN_TRUST = "name {} in `trust` (`jaxnn watch --trust`)"


class RuleReport(NamedTuple):
    """A derivative rule that is wrong at the inputs that it is called with.

    Attributes:
      name: name of the function that has the rule, or of the primitive.
      line: where the function is called.
      kind: "custom_jvp", "custom_vjp", "jvp" or "transpose".
      verdict: "differs" or "not finite".
      argument: position of the argument whose derivative is wrong; None if instead the rule's
        forward pass changes the function's value.
      difference: relative difference from the derivative of the values, in the entry with the
        largest absolute error if one is known, else in the slope.
      where: file and line of the rule; empty if it is JAX's or unknown.
      entry: index of that entry in the argument; None if no entry is known.
      path: name of the argument and path in it, as in Python; empty if it is unknown.
      also: the paths of further arguments whose derivatives are wrong.

    Example:
      >>> @jax.custom_jvp
      ... def square(x):
      ...     return x**2
      >>> _ = square.defjvp(lambda x, dx: (x[0] ** 2, x[0] * dx[0]))
      >>> rule = jaxnn.explain(square, jnp.array(3.0)).rules[0]
      >>> rule.name, rule.kind, round(rule.difference, 2)
      ('square', 'custom_jvp', 0.5)
    """

    name: str
    line: SourceLine
    kind: str
    verdict: Verdict
    argument: int | None
    difference: float
    where: str
    entry: tuple[int, ...] | None = None
    path: str = ""
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        call = f"at {self.line}" if self.line.file else "in the function itself"
        by = f"argument {self.argument}" if self.argument is not None else "value"
        by = f"argument `{self.path}`" if self.path else by
        at = f", at {list(self.entry)}" if self.entry else ""
        off = f"{100 * self.difference:.3g}%" if self.difference < 10 else "more than 1,000%"
        what = f"{self.kind} of `{self.name}`"
        also = f"; also wrong: {', '.join(f'`{path}`' for path in self.also)}" if self.also else ""
        by = f"    {by}: off by {off}{at}{also}"
        lines = [f"wrong {call}: {what}", self.line.quoted, by]
        if self.where:  # as in a traceback, so that the call remains the place that a report names
            rule, quoted = self.rule, f"    {self.line.quoted}".rstrip()
            place = f'"{rule.path}", line {rule.line}, in {rule.function}'
            lines = [f"wrong rule: {what}, {place}", rule.quoted, lines[2]]
            called = f"called {call}" if self.line.file else "(the checked function's own rule)"
            lines += [f"    {called}", quoted]
            if self.verdict is Verdict.DIFFERS and self.difference > OPPOSITE:
                lines.append(f"    if it deliberately differs, {IN_TRUST.format(f'`{self.name}`')}")
        return "\n".join(filter(None, lines))

    @property
    def rule(self) -> SourceLine:
        """The line of the rule, if it is known; else where the function is called."""
        return SourceLine.of(self.where) if self.where else self.line

    @property
    def is_users(self) -> bool:
        """Whether the rule is neither JAX's nor in an installed package."""
        return bool(self.where) and PACKAGES not in self.rule.file


def annotations(found: Iterable[Any]) -> list[str]:
    """Findings on lines as commands with which GitHub Actions marks these lines in a change."""
    marks = []
    for one, line in with_lines(found):
        text = str(one).partition("\n")[0].replace("%", "%25")
        marks.append(f"::error file={line.path},line={line.line},title=gradient::{text}")
    return list(dict.fromkeys(marks))


def sarif(found: Iterable[Any], version: str) -> dict[str, Any]:
    """Findings on lines in the Static Analysis Results Interchange Format 2.1.0, which code hosts
    and editors read.

    Args:
      found: the findings.
      version: of this package.
    """
    results, kinds = [], {}
    for one, line in with_lines(found):
        kinds.setdefault(type(one).__name__, str(type(one).__doc__).partition("\n")[0])
        file = {"artifactLocation": {"uri": pathlib.PurePath(line.path).as_posix()}}
        place = {"physicalLocation": {**file, "region": {"startLine": max(1, line.line)}}}
        result = {"ruleId": type(one).__name__, "level": "error", "message": {"text": str(one)}}
        results.append(result | {"locations": [place]})
    rules = [{"id": name, "shortDescription": {"text": text}} for name, text in kinds.items()]
    driver = {"name": "jaxnn", "version": version, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results}
    return {"version": "2.1.0", "$schema": SARIF, "runs": [run]}


def with_lines(found: Iterable[Any]) -> Iterator[tuple[Any, SourceLine]]:
    """Yield each finding whose file is known, and the line to mark for it: that of a rule, unless
    it is in an installed package.
    """
    for one in found:
        line = one.line
        if isinstance(one, RuleReport) and one.is_users:
            line = one.rule
        if line.file:
            yield one, line


class DigitsLost(NamedTuple):
    """An equation that loses digits.

    Attributes:
      line: the user's line.
      operation: the primitive, or the function that has a custom rule.
      what: what happens there.
      before: correct digits of the inputs.
      after: correct digits of the outputs.
      share: by how much the gradient's relative error drops once this equation is computed
        exactly, in addition to all earlier ones.

    Example:
      >>> lost = jaxnn.explain(lambda x: (1 - jnp.cos(x)) / x**2, jnp.float16(0.1)).digits_lost
      >>> [line.operation for line in lost]
      ['sub']
    """

    line: SourceLine
    operation: str
    what: str
    before: float
    after: float
    share: float

    def __str__(self) -> str:
        what = f"{self.what}; " if self.what else ""
        before, after = round(self.before), round(self.after)
        left = "no digits left" if before == 0 else f"{after} of {before} digits left here"
        if 0 < before == after:
            left = "later operations amplify its rounding error"
        text = f"lost at {self.line}: `{self.operation}`: {what}{left}"
        return "\n".join(filter(None, (text, self.line.quoted)))
