"""The arguments of a call, partitioned into differentiated, dynamic and static leaves.

Numerical derivatives, the gradient check and descent accept functions of any pytree: arrays,
modules of neural-network libraries, registered classes. This module partitions such a tree. In the
chosen arguments, floating and complex leaves are differentiated. Other arrays and floats are
dynamic: traced, never constants of a compilation. All remaining leaves (integers, strings,
functions) are static: part of what is compiled. Leaves that are not differentiated are never
changed. Paths are those of `jax.tree_util.keystr`.

A complex leaf is differentiated as a real array with a last axis of two: real and imaginary part.
By JAX's convention the gradient of a real f is df/dx - i df/dy.
"""

import enum
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from jaxnn._validate import (
    describe,
    is_array,
    is_inexact,
    require_arguments,
    require_arrays,
    require_differentiable,
    require_pair,
)

Where = Any  # a function of a leaf that returns a bool, or a pytree of bools


class Role(enum.Enum):
    """How a leaf of the arguments is treated."""

    DIFFERENTIATED = enum.auto()
    COMPLEX = enum.auto()  # differentiated in its real form
    DYNAMIC = enum.auto()
    STATIC = enum.auto()

    @property
    def moves(self) -> bool:
        """Whether the leaf is differentiated."""
        return self in (Role.DIFFERENTIATED, Role.COMPLEX)


class Skeleton(NamedTuple):
    """A tree without the values of its arrays, hashable if its static leaves are.

    Attributes:
      tree: the tree's structure.
      roles: of each leaf.
      leaves: the static leaves.
    """

    tree: Any
    roles: tuple[Role, ...]
    leaves: tuple[Any, ...]

    @property
    def key(self) -> Hashable:
        """The same in a form in which 1 is not True, and 0.0 not -0.0."""
        leaves = ((type(x), x.hex() if isinstance(x, float) else x) for x in self.leaves)
        return self.tree, self.roles, tuple(leaves)

    def join(self, points: Iterable[Any], dynamic: Iterable[Any]) -> PyTree:
        """Rebuild the tree from points in their real form and dynamic leaves."""
        points = iter(points)
        return self._filled(points, map(as_complex, points), iter(dynamic), iter(self.leaves))

    def fill(self, arrays: PyTree) -> PyTree:
        """Rebuild the tree from the output of `arrays_of`."""
        found = iter(jax.tree.leaves(arrays))
        return self._filled(found, found, found, iter(self.leaves))

    def split(self, arrays: PyTree) -> tuple[PyTree, PyTree]:
        """The leaves that move and the other arrays, as two trees with None elsewhere."""
        found = iter(jax.tree.leaves(arrays))
        leaves = [None if role is Role.STATIC else next(found) for role in self.roles]
        pairs = list(zip(leaves, self.roles, strict=True))
        of = lambda moves: [x if role.moves == moves else None for x, role in pairs]  # noqa: E731
        return jax.tree.unflatten(self.tree, of(True)), jax.tree.unflatten(self.tree, of(False))

    def merge(self, moving: PyTree, held: PyTree) -> PyTree:
        """Undo `split`."""
        one, other = iter(jax.tree.leaves(moving)), iter(jax.tree.leaves(held))
        return self._filled(one, one, other, itertools.repeat(None))

    def _filled(self, *sources: Iterator[Any]) -> PyTree:
        """The tree with leaves from iterators, one for each role, in the order of `Role`."""
        source_of = dict(zip(Role, sources, strict=True))
        return jax.tree.unflatten(self.tree, [next(source_of[role]) for role in self.roles])


class Static(NamedTuple):
    """The part of a call that a program is compiled for: all but the values of its arrays.

    Attributes:
      f: the function.
      has_aux: whether `f` returns `(value, aux)`.
      skeleton: of `(args, kwargs)`.
    """

    f: Callable
    has_aux: bool
    skeleton: Skeleton

    def value(self, points: Iterable[Any], dynamic: Iterable[Any]) -> PyTree:
        """The value of `f` at the rebuilt arguments."""
        args, kwargs = self.skeleton.join(points, dynamic)
        value = self.f(*args, **kwargs)
        if self.has_aux:
            value, _ = require_pair("f", value, "a pair if `has_aux` is set")
        require_arrays("f(...)", value)
        return value


class Partition(NamedTuple):
    """The arguments of a call, partitioned.

    Attributes:
      static: the part that a program is compiled for.
      argnums: the arguments to differentiate, as passed.
      leaves: of all arguments, in the order of `static.skeleton`.
      paths: of the leaves.
      chosen: whether each leaf belongs to an argument to differentiate.
    """

    static: Static
    argnums: int | tuple[int, ...]
    leaves: list[Any]
    paths: tuple[str, ...]
    chosen: tuple[bool, ...]

    @classmethod
    def of(
        cls,
        f: Callable,
        argnums: int | tuple[int, ...],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        has_aux: bool = False,
        name: str = "x",
        where: Where = None,
    ) -> "Partition":
        """Partition the arguments of a call.

        Args:
          f: the function.
          argnums: the positional arguments to differentiate.
          args: the positional arguments.
          kwargs: the keyword arguments.
          has_aux: whether `f` returns `(value, aux)`.
          name: what errors call a single argument; several are called `args[i]`.
          where: which leaves to differentiate: a function from a leaf to a boolean, or a pytree of
            booleans like the differentiated argument or a prefix of it (a tuple of them if
            `argnums` is one).

        Raises:
          TypeError: there is no leaf to differentiate, a leaf has no values, or `where` holds
            anything but booleans.
          ValueError: `argnums` is out of range, or the structure of `where` does not match.
        """
        _require_numbers(argnums, args, name)
        require_arguments("f", f, *args, **kwargs)
        wanted = _wanted(where, argnums, args)
        labels = [name] if len(args) == 1 else [f"args[{i}]" for i in range(len(args))]
        labels += sorted(kwargs)
        arguments = [*args, *(kwargs[key] for key in sorted(kwargs))]
        leaves, paths, chosen, roles = [], [], [], []
        for i, (label, argument) in enumerate(zip(labels, arguments, strict=True)):
            found = tree_flatten_with_path(argument)[0]
            leaves += [leaf for _, leaf in found]
            paths += [label + readable(path) for path, _ in found]
            chosen += [i in wanted] * len(found)
            choices = wanted.get(i, [False] * len(found))
            roles += _roles(argument, choices, settings=i in wanted and where is None)
        for path, leaf in zip(paths, leaves, strict=True):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise TypeError(f"`{path}` must have values. Got {leaf}.")
        if not any(role.moves for role in roles):
            for i in sorted(wanted):
                require_differentiable(labels[i], arguments[i])
            raise ValueError("`where` must select at least one floating-point leaf. Got none.")
        static = Static(f, has_aux, _skeleton((args, kwargs), leaves, roles))
        return cls(static, argnums, leaves, tuple(paths), tuple(chosen))

    @property
    def points(self) -> list[jax.Array]:
        """The differentiated leaves, as real arrays."""
        return _points(self.leaves, self.static.skeleton.roles)

    @property
    def dynamic(self) -> list[jax.Array]:
        """The leaves that are traced but not differentiated, as arrays."""
        return _dynamic(self.leaves, self.static.skeleton.roles)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments, rebuilt."""
        return jax.tree.unflatten(self.static.skeleton.tree, self.leaves)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each leaf."""
        return self.static.skeleton.roles

    def at(self, points: Iterable[Any], dynamic: Iterable[Any]) -> "Partition":
        """The same call with other values of its traced leaves."""
        return self._replace(leaves=jax.tree.leaves(self.static.skeleton.join(points, dynamic)))

    @property
    def moving(self) -> list[tuple[str, Any]]:
        """The path and the original value of each differentiated leaf."""
        return [(path, leaf) for path, leaf, role, _ in self._all if role.moves]

    @property
    def point_paths(self) -> list[str]:
        """The paths of the differentiated leaves."""
        return [path for path, _ in self.moving]

    @property
    def traced_paths(self) -> list[str]:
        """The paths of all traced leaves: those of `points`, then those of `dynamic`."""
        of_others = [path for path, _, role, _ in self._all if role is Role.DYNAMIC]
        return [*self.point_paths, *of_others]

    @property
    def held_fixed(self) -> list[tuple[str, Any]]:
        """The path and value of each leaf of a differentiated argument treated as constant."""
        return [(path, x) for path, x, role, chosen in self._all if chosen and not role.moves]

    @property
    def beside(self) -> list[tuple[str, Any]]:
        """The path and value of each leaf of the arguments that are not differentiated."""
        return [(path, x) for path, x, _, chosen in self._all if not chosen]

    def require_one_leaf(self, name: str) -> None:
        """Refuse a pytree as the only argument; it must be one number or array."""
        if len(self.leaves) != 1 or self.paths != (name,):
            raise TypeError(
                f"`{name}` must be one number or array; `jnp.array` converts a list. Got a "
                f"pytree with leaves {', '.join(self.paths)}."
            )

    def require_real(self) -> None:
        """Refuse complex leaves, for which this derivative has no convention."""
        for path, leaf, role, _ in self._all:
            if role is Role.COMPLEX:
                got = describe(leaf)
                raise TypeError(f"`{path}` must be real, for a second derivative. Got {got}.")

    def in_place_of_arguments(self, derivatives: Iterable[Any]) -> PyTree:
        """The derivatives in the structure of the differentiated arguments.

        Constant arrays and numbers become `float0` zeros, other constant leaves None.
        """
        values = iter(derivatives)

        def leaf(x, role):
            if role is Role.COMPLEX:
                return jnp.conj(as_complex(next(values)))
            if role is Role.DIFFERENTIATED:
                return next(values)
            number = is_array(x) or isinstance(x, bool | int | float | complex)
            return np.zeros(np.shape(x), jax.dtypes.float0) if number else None

        pairs = zip(self.leaves, self.static.skeleton.roles, strict=True)
        args, _ = jax.tree.unflatten(self.static.skeleton.tree, [leaf(*pair) for pair in pairs])
        if isinstance(self.argnums, tuple):
            return tuple(args[i] for i in self.argnums)
        return args[self.argnums]

    @property
    def _all(self) -> Iterable[tuple[str, Any, Role, bool]]:
        return zip(self.paths, self.leaves, self.static.skeleton.roles, self.chosen, strict=True)


def readable(path: Any) -> str:
    """A leaf's path; leaves that have no names in their node are counted."""
    return keystr(path).replace("[<flat index ", "[").replace(">]", "]")


def positions(argnums: int | Sequence[int], args: Sequence[Any]) -> tuple[int, ...]:
    """The positions of the arguments that `argnums` names, counted from the front."""
    numbers = argnums if isinstance(argnums, Sequence) else (argnums,)
    return tuple(number % len(args) for number in numbers)


def floating_argnums(args: Sequence[Any]) -> tuple[int, ...]:
    """The positions of the arguments that have floating or complex leaves."""
    return tuple(i for i, x in enumerate(args) if any(map(is_inexact, jax.tree.leaves(x))))


def _require_numbers(argnums: Any, args: Sequence[Any], name: str) -> None:
    """Refuse `argnums` that does not name positional arguments."""
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not args:
        raise ValueError(f"`{name}` must be given: the point to differentiate at. Got none.")
    for number in numbers:
        integer = isinstance(number, int) and not isinstance(number, bool)
        if not integer or not -len(args) <= number < len(args):
            raise ValueError(
                f"`argnums` must name positional arguments, of which there are {len(args)}. Got "
                f"{argnums!r}."
            )
    if not numbers:
        raise ValueError("`argnums` must name at least one argument. Got ().")


def require_argnums(argnums: Any) -> None:
    """Refuse an invalid type of `argnums`, before there are any arguments."""
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise TypeError(
            "`argnums` must be an integer or a tuple of integers; the point goes to the function "
            f"that is returned, as in numerical_grad(f)(x). Got {describe(argnums)}."
        )


def take_apart(tree: PyTree) -> tuple[Skeleton, list[jax.Array], list[jax.Array]]:
    """A tree's skeleton, its differentiable leaves, and its other arrays."""
    leaves = jax.tree.leaves(tree)
    roles = _roles(tree)
    return _skeleton(tree, leaves, roles), _points(leaves, roles), _dynamic(leaves, roles)


def arrays_of(tree: PyTree) -> tuple[Skeleton, PyTree]:
    """A tree's skeleton, and the tree with None in place of its static leaves.

    Unlike `take_apart` it keeps the structure, and so the paths that an optimiser may use.
    """
    leaves = jax.tree.leaves(tree)
    roles = _roles(tree)
    pairs = zip(leaves, roles, strict=True)
    arrays = [None if role is Role.STATIC else leaf for leaf, role in pairs]
    return _skeleton(tree, leaves, roles), jax.tree.unflatten(jax.tree.structure(tree), arrays)


def as_complex(x: jax.Array) -> jax.Array:
    """Convert real form to complex numbers."""
    return jax.lax.complex(x[..., 0], x[..., 1])


def real_form(x: Any) -> jax.Array:
    """Convert complex numbers to real form: a last axis of two, real and imaginary part."""
    return jnp.stack([jnp.real(x), jnp.imag(x)], -1)


def _skeleton(tree: PyTree, leaves: Sequence[Any], roles: Sequence[Role]) -> Skeleton:
    fixed = [leaf for leaf, role in zip(leaves, roles, strict=True) if role is Role.STATIC]
    return Skeleton(jax.tree.structure(tree), tuple(roles), tuple(fixed))


def _points(leaves: Sequence[Any], roles: Sequence[Role]) -> list[jax.Array]:
    pairs = zip(leaves, roles, strict=True)
    return [
        real_form(leaf) if role is Role.COMPLEX else _as_array(leaf)
        for leaf, role in pairs
        if role.moves
    ]


def _dynamic(leaves: Sequence[Any], roles: Sequence[Role]) -> list[jax.Array]:
    pairs = zip(leaves, roles, strict=True)
    return [_as_array(leaf) for leaf, role in pairs if role is Role.DYNAMIC]


def _as_array(leaf: Any) -> jax.Array:
    """As `jnp.asarray`, without its overhead for arrays: models have a thousand leaves."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _roles(tree: PyTree, moves: Sequence[bool] | None = None, settings: bool = True) -> list[Role]:
    """The role of each leaf of an argument; `moves` marks those to differentiate (default: all).

    A Python number in a module (an object of a class registered as a pytree) that has arrays is a
    setting, such as a dropout rate, and is static.
    """
    leaves = jax.tree.leaves(tree)
    moves = [True] * len(leaves) if moves is None else moves
    settings = settings and any(is_array(leaf) and is_inexact(leaf) for leaf in leaves)
    inside = _in_modules(jax.tree.structure(tree))
    return [
        Role.STATIC if settings and within and _is_plain_number(leaf) else _role(leaf, move)
        for leaf, move, within in zip(leaves, moves, inside, strict=True)
    ]


def _in_modules(tree: Any, inside: bool = False) -> list[bool]:
    """Whether each leaf is inside an object of a registered class, not only in containers."""
    node = tree.node_data()
    if node is None:
        return [inside] * tree.num_leaves
    inside = inside or not issubclass(node[0], (tuple, list, Mapping, type(None)))
    return [one for child in tree.children() for one in _in_modules(child, inside)]


def _is_plain_number(leaf: Any) -> bool:
    return isinstance(leaf, float | complex) and not isinstance(leaf, np.generic)


def _role(leaf: Any, moves: bool) -> Role:
    if moves and is_inexact(leaf):
        return Role.COMPLEX if jnp.iscomplexobj(leaf) else Role.DIFFERENTIATED
    traced = isinstance(leaf, float | complex) or is_array(leaf)
    return Role.DYNAMIC if traced and jnp.result_type(leaf) != jax.dtypes.float0 else Role.STATIC


def _spread(where: PyTree, argument: PyTree) -> list[Any]:
    """For each leaf of an argument, what a prefix of it has there."""
    flags, tree = jax.tree.flatten(where)
    parts = map(jax.tree.leaves, tree.flatten_up_to(argument))
    return [flag for flag, part in zip(flags, parts, strict=True) for _ in part]


def _wanted(where: Where, argnums: int | tuple[int, ...], args: Sequence[Any]) -> dict[int, list]:
    """For each differentiated argument, whether each of its leaves is chosen."""
    numbers = positions(argnums, args)
    chosen = [args[i] for i in numbers]
    # Lists of flags, not trees of them: a class of the user's may refuse what is no array.
    if where is None:
        wanted = [[True] * len(jax.tree.leaves(argument)) for argument in chosen]
    elif callable(where) and not all(isinstance(x, bool) for x in jax.tree.leaves(where)):
        require_arguments("where", where, None)
        wanted = [list(map(where, jax.tree.leaves(argument))) for argument in chosen]
    else:  # a tree of booleans, which may be a callable module
        many = isinstance(argnums, tuple) and (len(argnums) > 1 or isinstance(where, tuple))
        given: Any = where if many else (where,)
        try:
            wanted = [_spread(*pair) for pair in zip(tuple(given), chosen, strict=True)]
        except (TypeError, ValueError):
            raise ValueError(
                "`where` must be a function of a leaf, or a pytree like the argument that is "
                "differentiated, or a prefix of it (a tuple of them for several arguments). Got "
                f"{where!r}."
            ) from None
    _require_flags(flag for some in wanted for flag in some)
    return dict(zip(numbers, wanted, strict=True))


def _require_flags(flags: Iterable[Any]) -> None:
    for flag in flags:
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(
                "`where` must be a function that returns True or False for a leaf. Got "
                f"{describe(flag)}."
            )
