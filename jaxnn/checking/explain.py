"""`explain`: which line of a function makes its gradient bad? Without a check of the slope."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._arguments import Partition, Where
from jaxnn._programs import outermost
from jaxnn._validate import how_to_be_traced, require_callable, require_mapping
from jaxnn.checking.births import births
from jaxnn.checking.digits import digits_lost
from jaxnn.checking.evidence import reach
from jaxnn.checking.findings import Birth, DigitsLost, RuleReport
from jaxnn.checking.own_dtype import BESIDE, SHAKES
from jaxnn.checking.programs import Point, Settings, Traced, prepare
from jaxnn.checking.report import plain
from jaxnn.checking.rules import wrong_rules
from jaxnn.checking.tape import seeds_of
from jaxnn.checking.watch import Watch
from jaxnn.numerical.float64 import wide_dtype


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found. `print` it for the lines.

    Attributes:
      function: its name.
      births: where NaN or infinity is born, nearest to the result first.
      rules: the derivative rules that are not those of the values.
      digits_lost: the lines that cost the gradient digits in its own dtype, the worst first.

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

    @property
    def ok(self) -> bool:
        """Whether there is nothing to explain: all is finite, and no rule is wrong."""
        return not (self.births or self.rules)

    @property
    def exit_code(self) -> int:
        """Of a command: 0 if `ok`, else 1."""
        return int(not self.ok)

    def to_dict(self) -> dict[str, Any]:
        """The same as dictionaries, lists, strings and numbers, ready for `json.dumps`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"ok": self.ok, **plain(fields)}

    def __str__(self) -> str:
        found = [*self.births, *self.rules, *self.digits_lost]
        if not found:
            return (
                f"gradient of {self.function}: finite, no rule is found wrong, and no line loses "
                "digits that the point has"
            )
        return "\n".join([f"gradient of {self.function}:", *map(str, found)])


def explain(
    f: Callable,
    *args: Any,
    argnums: int | tuple[int, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    where: Where = None,
    has_aux: bool = False,
    progress: bool | None = None,
) -> Explanation:
    """Name the lines of `f` where its gradient at `args` goes bad.

    Three questions are asked of the equations of `f`, one by one. Where is NaN or infinity born, in
    a value or on the way back? Which derivative rule is not that of its values? And, if the
    gradient in the user's dtypes has lost more than half its digits, where do they go? Of a
    gradient that is right all equations are asked, so that it can take longer than a check.

    Args:
      f: a function of pytrees; its output is projected on random numbers unless it is a real
        scalar.
      *args: the point.
      argnums: the argument or arguments that are differentiated; by default all that can be.
      kwargs: keyword arguments of `f`.
      where: which leaves are differentiated, as for `check_gradient`.
      has_aux: whether `f` returns `(value, aux)`.
      progress: whether a line says what is done, as for `check_gradient`.

    Returns:
      An `Explanation`.

    Raises:
      TypeError: no floating leaf in the arguments chosen; no floating output; called with traced
        arguments; JAX cannot trace `f`.
      ValueError: `argnums` out of range; `where` of another form.

    Example:
      >>> loss = lambda x: jnp.log(jnp.sum(jnp.exp(x)))
      >>> print(jaxnn.explain(loss, jnp.array([100.0, 1.0])).births[0].what)
      `exp`, it overflows: infinity
    """
    require_callable("f", f)
    kwargs = {} if kwargs is None else kwargs
    require_mapping("kwargs", kwargs)
    if argnums is None:
        floating = [i for i, x in enumerate(args) if any(map(_floats, jax.tree.leaves(x)))]
        argnums = tuple(floating) or 0
    call = Partition.of(f, argnums, args, kwargs, has_aux, "args[0]", where)
    if not outermost((args, kwargs)):
        raise TypeError(
            "`explain` must be called outside `jax.jit`, `jax.grad` and `jax.vmap`, as it looks at "
            "values. Got traced arguments."
        )
    point, dtype = Point(call.points, (call.dynamic, None)), wide_dtype()
    settings = Settings(automatic=True, projected=False, random=False, seed=0)
    name = getattr(f, "__name__", type(f).__name__)
    with Watch.of(progress) as watch, jax.debug_nans(False), jax.debug_infs(False):
        programs = prepare(call, point, settings)
        if not isinstance(programs, Traced):
            raise _untraceable(call, point)
        values, seeds = jax.tree.leaves(point), seeds_of(programs.program)
        watch.say("looking for NaN and infinity")
        born = births(programs.tape(point), values, seeds, call.traced_paths)
        if born:
            return Explanation(name, births=tuple(born))
        watch.say(f"holding the rules of {len(programs.program.eqns)} operations against values")
        rules = wrong_rules(programs.tape(point, dtype), values, seeds)
        watch.say("counting digits")
        lost = _lost(programs, point, dtype)
        lines = []
        if any(entries is not None for entries in lost):
            own, wide = (programs.tape(point, kind, unrolled=True) for kind in (None, dtype))
            lines = digits_lost(own, wide, values, seeds, lost)
        return Explanation(name, (), tuple(rules), tuple(lines))


def _untraceable(call: Partition, point: Point) -> TypeError:
    """Why a function cannot be traced, and what to do."""
    refused = TypeError("`f` must be a function that JAX can trace. Got one that it cannot.")
    refused.add_note(how_to_be_traced("f"))
    f = lambda leaves, data: call.static.value(leaves, data)  # noqa: E731
    try:
        jax.eval_shape(f, point.leaves, point.data[0])
    except jax.errors.JAXTypeError as error:
        refused.__cause__ = error
    return refused


def _lost(programs: Traced, point: Point, dtype: Any) -> list[np.ndarray | None]:
    """The entries of each leaf's gradient that have lost more than half the digits of its dtype,
    by more than roundings of the point explain.
    """
    _, own = programs.value_and_gradient(point)
    exact, *shaken = (programs.in_float64(point, dtype, shake)[1] for shake in (0.0, 1.0, -1.0))
    lost: list[np.ndarray | None] = []
    for k, x in enumerate(point.leaves):
        mine, true, *moved = (np.asarray(g[k], np.float64) for g in (own or [], exact, *shaken))
        explained = SHAKES * np.max([np.abs(m - true) for m in moved], axis=0)
        least = reach(x.dtype) * np.maximum(np.abs(true), BESIDE * np.max(np.abs(true), initial=0))
        entries = np.abs(mine - true) > np.maximum(explained, least)
        lost.append(entries.ravel() if entries.any() else None)
    return lost


def _floats(leaf: Any) -> bool:
    return (
        hasattr(leaf, "dtype")
        and jnp.issubdtype(leaf.dtype, jnp.inexact)
        or isinstance(leaf, float | complex)
    )
