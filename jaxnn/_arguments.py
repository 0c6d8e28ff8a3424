"""A call's arguments, sorted by what happens to them: differentiated, dynamic, or static.

Numerical derivatives and the gradient check take a function and arguments as `jax.grad` does. Here
the arguments are taken apart: floating leaves of the chosen arguments are differentiated, other
arrays and floats are dynamic (traced, never baked into a compilation), and integers, strings and
functions are static: part of what is compiled. Paths are those of `jax.tree_util.keystr`.
"""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from jaxnn._programs import Reference
from jaxnn._validate import describe, is_differentiable, require_arguments, require_arrays


class Role(enum.Enum):
    """What happens to a leaf of the arguments."""

    DIFFERENTIATED = enum.auto()
    DYNAMIC = enum.auto()
    STATIC = enum.auto()


class Static(NamedTuple):
    """What a program is compiled for: everything of a call but the values of its arrays.

    Attributes:
      f: the function.
      has_aux: whether it returns `(value, aux)`.
      tree: the structure of `(args, kwargs)`.
      roles: of each leaf.
      leaves: the static ones.
    """

    f: Callable
    has_aux: bool
    tree: Any
    roles: tuple[Role, ...]
    leaves: tuple[Any, ...]

    def value(self, points: Iterable[Any], dynamic: Iterable[Any]) -> PyTree:
        """`f` of the arguments put together again."""
        parts = {
            Role.DIFFERENTIATED: iter(points),
            Role.DYNAMIC: iter(dynamic),
            Role.STATIC: (x.referent if isinstance(x, Reference) else x for x in self.leaves),
        }
        args, kwargs = jax.tree.unflatten(self.tree, [next(parts[role]) for role in self.roles])
        value = self.f(*args, **kwargs)
        if self.has_aux:
            if not isinstance(value, tuple | list) or len(value) != 2:
                got = jax.tree.map(describe, value)
                raise TypeError(f"`f` must return a pair, with `has_aux`. Got {got}.")
            value = value[0]
        require_arrays("f(...)", value)
        return value


class Partition(NamedTuple):
    """A call taken apart.

    Attributes:
      static: what it is compiled for.
      argnums: which arguments are differentiated, as they were given.
      leaves: of all arguments, in the order of `static.tree`.
      paths: of the leaves.
    """

    static: Static
    argnums: int | tuple[int, ...]
    leaves: list[Any]
    paths: tuple[str, ...]

    @classmethod
    def of(
        cls,
        f: Callable,
        argnums: int | tuple[int, ...],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        has_aux: bool = False,
        name: str = "x",
        real: bool = False,
    ) -> "Partition":
        """Sort the arguments of a call.

        Args:
          f: the function.
          argnums: which positional arguments are differentiated.
          args: the positional arguments, and
          kwargs: the others.
          has_aux: whether `f` returns `(value, aux)`.
          name: of a single argument in errors; several are called `args[i]`.
          real: whether complex leaves are dynamic, instead of refused.

        Raises:
          TypeError: no leaf to differentiate, or a complex one.
          ValueError: `argnums` out of range.
        """
        numbers = argnums if isinstance(argnums, tuple) else (argnums,)
        for number in numbers:
            integer = isinstance(number, int) and not isinstance(number, bool)
            if not integer or not -len(args) <= number < len(args):
                raise ValueError(
                    f"`argnums` must name positional arguments, of which there are {len(args)}. "
                    f"Got {argnums!r}."
                )
        if not numbers:
            raise ValueError("`argnums` must name at least one argument. Got ().")
        require_arguments("f", f, *args, **kwargs)
        chosen = {number % len(args) for number in numbers}
        named = [
            (name if len(args) == 1 else f"args[{i}]", arg, i in chosen)
            for i, arg in enumerate(args)
        ]
        named += [(key, kwargs[key], False) for key in sorted(kwargs)]
        leaves, roles, paths = [], [], []
        for label, argument, wanted in named:
            if wanted:
                require_arrays(label, argument)
            for path, leaf in tree_flatten_with_path(argument)[0]:
                leaves.append(leaf)
                paths.append(label + keystr(path))
                roles.append(_role(leaf, paths[-1], wanted, real))
        if Role.DIFFERENTIATED not in roles:
            _refuse([(label, argument) for label, argument, wanted in named if wanted])
        fixed = tuple(leaf for leaf, role in zip(leaves, roles, strict=True) if role is Role.STATIC)
        static = Static(f, has_aux, jax.tree.structure((args, kwargs)), tuple(roles), fixed)
        return cls(static, argnums, leaves, tuple(paths))

    @property
    def points(self) -> list[jax.Array]:
        """The leaves that are differentiated, as arrays."""
        return self._arrays(Role.DIFFERENTIATED)

    @property
    def dynamic(self) -> list[jax.Array]:
        """The leaves that are only traced, as arrays."""
        return self._arrays(Role.DYNAMIC)

    @property
    def point_paths(self) -> list[str]:
        """The paths of the leaves that are differentiated."""
        pairs = zip(self.paths, self.static.roles, strict=True)
        return [path for path, role in pairs if role is Role.DIFFERENTIATED]

    @property
    def complex_paths(self) -> list[str]:
        """The paths of the complex leaves of the chosen arguments."""
        args, _ = jax.tree.unflatten(self.static.tree, self.paths)
        numbers = self.argnums if isinstance(self.argnums, tuple) else (self.argnums,)
        chosen = {path for number in numbers for path in jax.tree.leaves(args[number])}
        pairs = zip(self.paths, self.leaves, strict=True)
        return [path for path, leaf in pairs if path in chosen and jnp.iscomplexobj(leaf)]

    def require_one_leaf(self, name: str) -> None:
        """Refuse an only argument that is a pytree, where it is to be one number or array."""
        if len(self.leaves) != 1 or self.paths != (name,):
            raise TypeError(
                f"`{name}` must be one number or array. Got a pytree, with leaves "
                f"{', '.join(self.paths)}."
            )

    def in_place_of_arguments(self, derivatives: Iterable[Any]) -> PyTree:
        """Derivatives by the points, in the structure of the differentiated arguments."""
        values = iter(derivatives)
        leaves = [
            next(values)
            if role is Role.DIFFERENTIATED
            else np.zeros(np.shape(leaf), jax.dtypes.float0)
            for leaf, role in zip(self.leaves, self.static.roles, strict=True)
        ]
        args, _ = jax.tree.unflatten(self.static.tree, leaves)
        if isinstance(self.argnums, tuple):
            return tuple(args[i] for i in self.argnums)
        return args[self.argnums]

    def _arrays(self, wanted: Role) -> list[jax.Array]:
        pairs = zip(self.leaves, self.static.roles, strict=True)
        return [jnp.asarray(leaf) for leaf, role in pairs if role is wanted]


def _role(leaf: Any, path: str, chosen: bool, real: bool) -> Role:
    if chosen:
        if is_differentiable(leaf):
            return Role.DIFFERENTIATED
        if not real and jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"`{path}` must be real, for a derivative with respect to it. Got {describe(leaf)}."
            )
    traced = hasattr(leaf, "dtype") or isinstance(leaf, float | complex)
    return Role.DYNAMIC if traced else Role.STATIC


def _refuse(chosen: list[tuple[str, Any]]) -> None:
    """Say why none of the chosen arguments can be differentiated."""
    for label, argument in chosen:
        for path, leaf in tree_flatten_with_path(argument)[0]:
            raise TypeError(
                f"`{label}{keystr(path)}` must be floating-point, for a derivative with respect to "
                f"it. Got {describe(leaf)}."
            )
    label, argument = chosen[0]
    raise TypeError(
        f"`{label}` must hold at least one floating-point array. Got an empty "
        f"{type(argument).__name__}."
    )
