"""One call of a function, its arguments sorted by what happens to them: differentiated, traced, or left as they are.

Numerical derivatives and the gradient check take a function and arguments as `jax.grad` does. Here the arguments are taken
apart: floating leaves of the chosen arguments are differentiated, other arrays and floats are traced, and integers, strings and
functions stay what they are, as part of what is compiled. Paths are those of `jax.tree_util.keystr` over the arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from jaxnn._door import describe, is_differentiable, require_arguments, require_arrays


class Form(NamedTuple):
    """What a program is compiled for: everything of a call but the values of its arrays."""

    f: Callable
    has_aux: bool
    tree: Any
    roles: tuple[str, ...]
    fixed: tuple[Any, ...]

    def value(self, points, traced):
        """`f` of the arguments put together again."""
        found = {"differentiate": iter(points), "traced": iter(traced), "fixed": iter(self.fixed)}
        args, kwargs = jax.tree.unflatten(self.tree, [next(found[role]) for role in self.roles])
        value = self.f(*args, **kwargs)
        if self.has_aux:
            if not isinstance(value, tuple | list) or len(value) != 2:
                raise TypeError(f"`f` must return a pair, with `has_aux`. Got {jax.tree.map(describe, value)}.")
            value = value[0]
        require_arrays("f(...)", value)
        return value

    @property
    def hashable(self) -> bool:
        """Whether a program for it can be kept for the next call."""
        try:
            hash(self)
        except TypeError:
            return False
        return True


class Call(NamedTuple):
    """A form, and the values to call it with."""

    form: Form
    argnums: int | tuple[int, ...]
    leaves: list[Any]
    paths: tuple[str, ...]

    @classmethod
    def of(cls, f, argnums, args, kwargs, has_aux=False, name="x", real=False) -> "Call":
        """Sort the arguments; a single one is called `name` in errors, and several `args[i]`. `real` traces complex leaves.

        Raises:
          TypeError: no leaf to differentiate, or a complex one.
          ValueError: `argnums` out of range.
        """
        numbers = argnums if isinstance(argnums, tuple) else (argnums,)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or not -len(args) <= number < len(args):
                raise ValueError(f"`argnums` must name positional arguments, of which there are {len(args)}. Got {argnums!r}.")
        if not numbers:
            raise ValueError("`argnums` must name at least one argument. Got ().")
        require_arguments("f", f, *args, **kwargs)
        chosen = {number % len(args) for number in numbers}
        leaves, roles, paths = [], [], []
        named = [(name if len(args) == 1 else f"args[{i}]", arg, i in chosen) for i, arg in enumerate(args)]
        for label, arg, wanted in [*named, *((key, kwargs[key], False) for key in sorted(kwargs))]:
            if wanted:
                require_arrays(label, arg)
            for path, leaf in tree_flatten_with_path(arg)[0]:
                leaves.append(leaf)
                paths.append(label + keystr(path))
                roles.append(_role(leaf, paths[-1], wanted, real))
        if "differentiate" not in roles:
            wanted = [(label, arg) for label, arg, yes in named if yes]
            first = next(((label + keystr(p), x) for label, arg in wanted for p, x in tree_flatten_with_path(arg)[0]), None)
            if first is None:
                label, arg = wanted[0]
                raise TypeError(f"`{label}` must hold at least one floating-point array. Got an empty {type(arg).__name__}.")
            raise TypeError(
                f"`{first[0]}` must be floating-point, for a derivative with respect to it. Got {describe(first[1])}."
            )
        fixed = tuple(leaf for leaf, role in zip(leaves, roles, strict=True) if role == "fixed")
        form = Form(f, has_aux, jax.tree.structure((args, kwargs)), tuple(roles), fixed)
        return cls(form, argnums, leaves, tuple(paths))

    def require_one_leaf(self, name: str) -> None:
        """Refuse an only argument that is a pytree, where it is to be one number or array."""
        if len(self.leaves) != 1 or self.paths != (name,):
            raise TypeError(f"`{name}` must be one number or array. Got a pytree, with leaves {', '.join(self.paths)}.")

    def with_role(self, wanted: str) -> list[jax.Array]:
        """The leaves that are differentiated, or those that are traced, as arrays."""
        return [jnp.asarray(leaf) for leaf, role in zip(self.leaves, self.form.roles, strict=True) if role == wanted]

    def paths_differentiated(self) -> list[str]:
        """The paths of the leaves that are differentiated."""
        return [path for path, role in zip(self.paths, self.form.roles, strict=True) if role == "differentiate"]

    def complex_paths(self) -> list[str]:
        """The paths of the complex leaves of the chosen arguments."""
        numbers = self.argnums if isinstance(self.argnums, tuple) else (self.argnums,)
        args, _ = jax.tree.unflatten(self.form.tree, self.paths)
        chosen = {path for number in numbers for path in jax.tree.leaves(args[number])}
        return [p for p, x in zip(self.paths, self.leaves, strict=True) if p in chosen and jnp.iscomplexobj(x)]

    def in_place_of_arguments(self, derivatives) -> Any:
        """Derivatives of the differentiated leaves, in the structure of the differentiated arguments."""
        found = iter(derivatives)
        leaves = [
            next(found) if role == "differentiate" else np.zeros(np.shape(leaf), jax.dtypes.float0)
            for leaf, role in zip(self.leaves, self.form.roles, strict=True)
        ]
        args, _ = jax.tree.unflatten(self.form.tree, leaves)
        return tuple(args[i] for i in self.argnums) if isinstance(self.argnums, tuple) else args[self.argnums]


def _role(leaf, path, chosen, real):
    if chosen:
        if is_differentiable(leaf):
            return "differentiate"
        if not real and jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(f"`{path}` must be real, for a derivative with respect to it. Got {describe(leaf)}.")
    return "traced" if hasattr(leaf, "dtype") or isinstance(leaf, float | complex) else "fixed"
