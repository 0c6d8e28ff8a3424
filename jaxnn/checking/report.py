"""What a gradient check found: verdicts with their evidence, as a table to read, an error to raise, and data to keep."""

import dataclasses
import html
import math
import sys
from typing import Any, NamedTuple

ALL_DIGITS = -math.log10(sys.float_info.epsilon)
# From best to worst; a report's verdict is the worst of its leaves.
VERDICTS = ("agrees", "kink", "unresolved", "differs", "not finite", "not deterministic")


class GradientError(AssertionError):
    """A gradient that is wrong, or that the evidence cannot vouch for; the text is the report's table.

    Example:
      >>> jaxnn.assert_gradient(jnp.sum, jnp.ones(2), gradient=lambda x: 2 * jnp.ones(2))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      jaxnn.checking.report.GradientError: gradient of ...: differs
      ...
    """


class Entry(NamedTuple):
    """One entry of a leaf, differentiated by itself.

    Attributes:
      index: multi-index in the leaf.
      autodiff: the entry of the gradient that is checked.
      numerical: the derivative from values; at a kink the mean of both sides.
      bound: on the error of `numerical`.
      verdict: "differs", "kink", "not finite" or "agrees".
      left: the slope from the left, and
      right: from the right; both equal `numerical` unless there is a kink.
    """

    index: tuple[int, ...]
    autodiff: float
    numerical: float
    bound: float
    verdict: str
    left: float
    right: float


class LeafReport(NamedTuple):
    """The evidence on one leaf. Slopes are along a random direction through all of its entries, each moved by its own scale.

    Attributes:
      path: of the leaf in the argument tuple.
      shape: of the leaf.
      dtype: of the leaf.
      verdict: "agrees", "kink", "unresolved", "differs" or "not finite".
      autodiff: the slope that the gradient claims.
      numerical: the slope that the function's values show.
      bound: on the error of `numerical`.
      step: the step along the direction that it comes from.
      noise: of the function's values, as measured.
      digits: to which claim and values agree, as far as the evidence carries.
      own_dtype_digits: to which the gradient computed in the leaf's own dtype agrees with the one in float64.
      entries: the entries that were singled out, worst first.
      pattern: what the wrong entries have in common.
      hint: the likely cause.
      steps: the ladder of steps, and
      differences: the central difference at each of them.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    verdict: str
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


class RuleReport(NamedTuple):
    """One custom derivative rule, checked on the inputs that it is called with.

    Attributes:
      name: of the function that carries the rule.
      where: file and line.
      kind: "custom_jvp" or "custom_vjp".
      verdict: "agrees", "differs", "not finite", or "unresolved" where the function cannot be differentiated without it.
      argument: the position of the argument whose derivative is wrong, or None.
      difference: relative difference to the derivative without the rule.
    """

    name: str
    where: str
    kind: str
    verdict: str
    argument: int | None
    difference: float


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What `check_gradient` found. `print` it for a table.

    Attributes:
      function: its name.
      verdict: the worst of its leaves; "not deterministic" if the function is not.
      leaves: one `LeafReport` each, worst first.
      rules: the custom derivative rules found, worst first.
      notes: how the function was evaluated, where that is not the usual way.
      order: 2 where the leaves' slopes are those of a projection of the gradient, whose own gradient is the Hessian.

    Example:
      >>> report = jaxnn.check_gradient(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
      >>> report.ok, report.verdict, report.leaves[0].path
      (True, 'agrees', '[0]')
    """

    function: str
    verdict: str
    leaves: tuple[LeafReport, ...]
    rules: tuple[RuleReport, ...] = ()
    notes: tuple[str, ...] = ()
    order: int = 1

    @property
    def ok(self) -> bool:
        """Whether every leaf agrees, or is at a kink with the gradient between the slopes from both sides."""
        return self.verdict in ("agrees", "kink")

    def raise_if_wrong(self) -> None:
        """Raise `GradientError`, whose text is the table, unless the gradient is `ok`."""
        if not self.ok:
            raise GradientError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The report as dictionaries, lists, strings and numbers, ready for `json.dumps`."""

        def plain(value):
            if hasattr(value, "_asdict"):
                return {key: plain(item) for key, item in value._asdict().items()}
            if isinstance(value, tuple):
                return [plain(item) for item in value]
            return value

        fields = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"ok": self.ok, **fields}

    def plot(self, path: str | None = None, ax: Any = None) -> Any:
        """Draw a leaf's evidence: numerical slope and bound against the step, with the gradient's claim as a line.

        Args:
          path: which leaf; the worst by default.
          ax: Matplotlib Axes to draw on; new ones by default.

        Returns:
          The Axes.
        """
        from jaxnn.plots import gradient_evidence

        chosen = [leaf for leaf in self.leaves if path in (None, leaf.path)]
        if not chosen:
            raise ValueError(f"`path` must be one of {[leaf.path for leaf in self.leaves]}. Got {path!r}.")
        return gradient_evidence(chosen[0], ax=ax)

    def __str__(self):
        lines = [f"{'Hessian' if self.order == 2 else 'gradient'} of {self.function}: {self.verdict}"]
        header = ("leaf", "shape", "dtype", "verdict", "digits", "own", "autodiff", "numerical", "bound")
        rows = [header, *(_row(leaf) for leaf in self.leaves)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row, leaf in zip(rows, (None, *self.leaves), strict=True):
            cells = [cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
            lines.append("  ".join(cells).rstrip())
            lines += [f"    {line}" for line in _details(leaf)]
        for rule in self.rules:
            at = f", argument {rule.argument}" if rule.argument is not None else ""
            lines.append(f"rule {rule.name} ({rule.kind}, {rule.where}): {rule.verdict}{at}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self):
        return f"<pre>{html.escape(str(self))}</pre>"


def digits_shared(difference: float, size: float) -> float:
    """Decimal digits to which two numbers of a size agree: 0 if none, float64's 15.7 if they are equal."""
    if not (math.isfinite(difference) and math.isfinite(size)):
        return 0.0
    if difference == 0:
        return ALL_DIGITS
    return 0.0 if size == 0 else min(ALL_DIGITS, max(0.0, -math.log10(difference / size)))


def _row(leaf):
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    numbers = (f"{leaf.digits:.1f}", f"{leaf.own_dtype_digits:.1f}", f"{leaf.autodiff:z.6g}", f"{leaf.numerical:z.6g}")
    return (leaf.path, shape, leaf.dtype, leaf.verdict, *numbers, f"{leaf.bound:.1e}")


def _details(leaf):
    if leaf is None:
        return
    for entry in leaf.entries[:6]:
        name = str(list(entry.index)) if entry.index else "value"
        sides = f", from {entry.left:z.6g} to {entry.right:z.6g}" if entry.verdict == "kink" else ""
        values = f"autodiff {entry.autodiff:z.9g}, numerical {entry.numerical:z.9g} +- {entry.bound:.0e}"
        yield f"{name} {entry.verdict}: {values}{sides}"
    if leaf.pattern:
        yield leaf.pattern
    if leaf.hint:
        yield f"hint: {leaf.hint}"
