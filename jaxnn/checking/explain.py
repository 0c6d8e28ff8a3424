"""`explain`: names the lines that make a gradient wrong, without checking the gradient itself."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxnn._arguments import Partition, Where, floating_argnums
from jaxnn._validate import how_to_be_traced, require_callable, require_mapping
from jaxnn.checking.findings import Birth, DigitsLost, RuleReport
from jaxnn.checking.measure import Check, Checked, measure_by, require_outermost, undisturbed
from jaxnn.checking.packed import count_not_finite
from jaxnn.checking.page import text_fragment
from jaxnn.checking.precision import losses
from jaxnn.checking.programs import Programs, prepare
from jaxnn.checking.questions import answer, births, digits, rules
from jaxnn.checking.report import plain
from jaxnn.checking.settings import Point, Settings
from jaxnn.checking.status import Status
from jaxnn.numerical.sources import name_of


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """The findings of `explain`; `print` shows the lines.

    Attributes:
      function: name of the function.
      births: where NaN or infinity first appears, nearest to the result first.
      rules: the derivative rules that disagree with the function's values.
      digits_lost: the lines where the gradient loses digits in its own dtype, worst first.
      finite_in_float64: whether value and gradient are finite when computed in float64; if there
        are births, numbers then exceed the range of a narrower dtype.

    Example:
      >>> f = lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))
      >>> found = jaxnn.explain(f, jnp.array([0.0, 1.0]))
      >>> found.births[0].operation, found.births[0].count
      ('sqrt', 1)
    """

    function: str
    births: tuple[Birth, ...] = ()
    rules: tuple[RuleReport, ...] = ()
    digits_lost: tuple[DigitsLost, ...] = ()
    finite_in_float64: bool = True

    @property
    def found(self) -> tuple[Birth | RuleReport | DigitsLost, ...]:
        """All findings on lines of code: births, rules, and digits lost."""
        return *self.births, *self.rules, *self.digits_lost

    @property
    def ok(self) -> bool:
        """Whether everything is finite and no rule is wrong."""
        return not (self.births or self.rules)

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 0 if `ok`, else 1."""
        return int(not self.ok)

    def to_dict(self) -> dict[str, Any]:
        """The findings as dictionaries, lists, strings and numbers, ready for `json.dumps`."""
        return {"ok": self.ok, **plain(vars(self))}

    def __bool__(self) -> bool:
        """`ok`, so that `assert explain(...)` means what it says."""
        return self.ok

    def __repr__(self) -> str:
        """One line; `str` has the findings."""
        counts = f"births {len(self.births)}, rules {len(self.rules)}"
        return f"<Explanation of {self.function}: {counts}, digits_lost {len(self.digits_lost)}>"

    def _repr_html_(self) -> str:
        return text_fragment(str(self))

    def __str__(self) -> str:
        if not self.found:
            return f"gradient of {self.function}: finite; no wrong rule found; no line loses digits"
        told = [f"gradient of {self.function}:", *map(str, self.found)]
        if self.births and self.finite_in_float64:
            told.append("    the same gradient in float64 is finite")
        return "\n".join(told)


def explain(
    f: Callable,
    *args: Any,
    argnums: int | tuple[int, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    where: Where = None,
    has_aux: bool = False,
    progress: bool | None = None,
) -> Explanation:
    """Name the lines of `f` where its gradient at `args` goes wrong.

    It answers three questions. Where does NaN or infinity first appear, in the forward or the
    backward pass? Which derivative rule is wrong? If the gradient in the user's dtypes has lost
    more than half its digits, which lines lose them? For a correct gradient every equation is
    examined, so this can take longer than a check.

    Args:
      f: a function of pytrees; an output that is not a real scalar is projected onto a random
        cotangent.
      *args: the point.
      argnums: the argument or arguments to differentiate; by default all with floating-point
        leaves.
      kwargs: keyword arguments of `f`.
      where: which leaves are differentiated, as for `check_gradient`.
      has_aux: whether `f` returns `(value, aux)`.
      progress: whether a line on stderr shows the progress, as for `check_gradient`.

    Returns:
      An `Explanation`.

    Raises:
      TypeError: the chosen arguments have no floating-point leaf, `f` has no floating-point
        output, the arguments are traced, or JAX cannot trace `f`.
      ValueError: `argnums` is out of range, or the structure of `where` does not match.

    Example:
      >>> loss = lambda x: jnp.log(jnp.sum(jnp.exp(x)))
      >>> print(jaxnn.explain(loss, jnp.array([100.0, 1.0])).births[0].what)
      `exp`: it overflows, giving infinity
    """
    require_callable("f", f)
    kwargs = {} if kwargs is None else kwargs
    require_mapping("kwargs", kwargs)
    if argnums is None:
        argnums = floating_argnums(args) or 0
    call = Partition.of(f, argnums, args, kwargs, has_aux, "args[0]", where)
    require_outermost("explain", args, kwargs)
    name = name_of(f)
    with undisturbed(), Status.of(progress) as status:
        checked = _checked(call, status)
        programs, claims, point = checked.programs, checked.claims, checked.check.point
        status.say("looking for NaN and infinity")
        own, wide = (*claims.own, np.array(claims.value)), (*claims.wide, np.array(claims.forward))
        finite_in_float64 = not any(map(count_not_finite, wide))
        bad = any(map(count_not_finite, own)) or not finite_in_float64
        # What is not finite on the way may be masked, and the gradient still be right.
        if bad and (born := answer(births, checked)):
            return Explanation(name, tuple(born), finite_in_float64=finite_in_float64)
        status.say(f"derivative rules ({len(programs.program.eqns)} operations)")
        wrong = answer(rules, checked)
        # What a solver's rule gives to one argument may be due to another: the whole tells.
        users = [rule for rule in wrong if rule.is_users]
        if users != wrong and not rules.applies(measure_by(programs, checked.check)):
            wrong = users
        status.say("counting digits")
        lost = losses(point, programs, claims, claims.forward, range(len(point.leaves)))
        lines = answer(digits, checked._replace(losses=lost))
        return Explanation(name, (), tuple(wrong), tuple(lines))


def origins(f: Callable, params: Any) -> list[Birth]:
    """Where NaN or infinity first appears in `f(params)` or its gradient; empty if nowhere."""
    with undisturbed(), Status.of(False) as status:
        return births.ask(_checked(Partition.of(f, 0, (params,), {}, False, "params"), status))


def _checked(call: Partition, status: Status) -> Checked:
    """The results that the questions start from: value and gradient, without any verdict."""
    point = Point.of(call)
    programs = prepare(call, point, Settings())
    if not isinstance(programs, Programs):
        raise _untraceable(call, point)
    claims = programs.claims(point)
    check = Check(call, point, Settings(), True, status)
    return Checked(check, programs, claims, claims.forward)


def _untraceable(call: Partition, point: Point) -> TypeError:
    """An error that says why a function cannot be traced, and what to do."""
    refused = TypeError("`f` must be a function that JAX can trace. Got one that it cannot.")
    refused.add_note(how_to_be_traced("f"))
    f = lambda leaves, data: call.static.value(leaves, data)  # noqa: E731
    try:
        jax.eval_shape(f, point.leaves, point.data[0])
    except jax.errors.JAXTypeError as error:
        refused.__cause__ = error
    return refused
