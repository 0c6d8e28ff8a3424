"""The parser: a table of commands and their options; `train`, `check` and `pictures` run them.

Arguments are parsed before JAX is imported, so `--help`, `--version` and errors respond at once. An
error prints one line on standard error and gives exit code 2; `--debug` shows the traceback.
"""

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import jaxnn
from jaxnn.cli.choices import ACTIVATIONS, FIGURES, OPTIMIZERS
from jaxnn.cli.output import kept_free, passing, place_of

# The command-line names of the library's arguments, for use in error messages.
_FLAGS = {
    "train": {
        name: f"--{name.replace('_', '-')}"
        for name in ("checkpoint", "resume", "batch_size", "epochs", "replacement", "optimizer")
    }
    | {"directory": "--data", "path": "--log", "key": "--seed"},
    "eval": {"source": "DIR", "directory": "--data"},
    "figures": {"directory": "--out", "names": "NAME"},
    "tour": {"directory": "--figures"},
    "docs": {"directory": "--out"},
    "watch": {"points": "--points", "budget": "--budget", "directory": "--save"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _before_program(sys.argv[1:] if argv is None else list(argv))
    args, unknown = _parser().parse_known_args(given)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.began, args.stdout = time.perf_counter(), sys.stdout
    try:
        with passing("loading JAX"):
            import_module("jax")
        if args.json is not True:
            return _run(args)
        with kept_free(sys.stdout) as args.stdout:
            return _run(args)
    except KeyboardInterrupt:
        print("jaxnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; avoids an error at exit
        return 141
    except (ValueError, TypeError, OSError, RuntimeError, AssertionError) as error:
        if args.debug:
            traceback.print_exc()
        # No traceback is shown, so JAX's note on shortened tracebacks is dropped.
        notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("---")]
        message = " ".join([*str(error).split(), *notes, *place_of(error)])
        for argument, flag in _FLAGS.get(args.command, {}).items():
            message = message.replace(f"`{argument}`", f"`{flag}`")
        print(f"jaxnn {args.command}: error: {message}", file=sys.stderr)
        return 2


def _before_program(argv: list[str]) -> list[str]:
    """The arguments, with -- before a program to watch, whose arguments are its own."""
    if argv[:1] != ["watch"]:
        return argv
    valued = {
        o.name for o in COMMANDS["watch"].options if isinstance(o, Option) and o.kind is not bool
    }
    at = 1
    while at < len(argv) and argv[at].startswith("--") and argv[at] != "--":
        at += 1 + (argv[at] in valued)
    return [*argv[:at], "--", *argv[at:]] if at < len(argv) and argv[at] != "--" else argv


def _run(args: argparse.Namespace) -> int:
    """Import and run a command; returns its exit code."""
    module, _, function = COMMANDS[args.command].run.partition(":")
    return getattr(import_module(f"{__package__}.{module}"), function)(args)


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="jaxnn",
        description="Check JAX gradients, find the line at fault, and train small networks.",
        epilog="example: jaxnn train",
    )
    told = f"jaxnn {jaxnn.__version__} (distribution jaxnn-gradients)"
    parser.add_argument("--version", action="version", version=told)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=f"example: {command.example}",
        )
        one.set_defaults(parser=one)  # its errors name the command
        if name != "watch":
            one.add_argument("--json", action="store_true", help="print JSON instead of text")
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        group: Any = one
        for row in command.options:
            if isinstance(row, Option):
                row.add_to(group)
            else:
                group = one.add_argument_group(*row)
    return parser


class Option(NamedTuple):
    """An option or an argument: a row of the table.

    Attributes:
      name: the option as the user writes it.
      kind: a function that parses the value; a tuple of choices; or bool for a switch.
      default: the default value, or how the user would write it.
      metavar: placeholder for the value in the help.
      help: one line of help, to which the default is added.
      more: further arguments of argparse.
    """

    name: str
    kind: Any = str
    default: Any = None
    metavar: str | None = None
    help: str = ""
    more: dict[str, Any] = {}

    def add_to(self, group: Any) -> None:
        """Add the option to an argparse group."""
        if self.kind is bool:
            group.add_argument(self.name, action="store_true", help=self.help)
            return
        told = "" if self.default in (None, ()) else f"default: {self.default}"
        text = "; ".join(filter(None, (self.help, told)))
        how = {"choices": self.kind} if isinstance(self.kind, tuple) else {"type": self.kind}
        default = {"default": self.default} if self.name.startswith("-") else {}
        metavar = {"metavar": self.metavar} if self.metavar else {}
        group.add_argument(self.name, **how, **default, **metavar, help=text, **self.more)


class Command(NamedTuple):
    """A command: a row of the table.

    Attributes:
      run: module and function in this package.
      summary: help text in the list of commands.
      description: help text of the command itself.
      example: an example of a call.
      options: its options; title and text of a group come before those in it.
    """

    run: str
    summary: str
    description: str
    example: str
    options: tuple[Option | tuple[str, ...], ...]


def _number(
    kind: type, least: int, what: str, most: float = math.inf, fitting: str = ""
) -> Callable[[str], Any]:
    """A function that parses a number of at least `least`, which is `what`, and at most `most`,
    else it is not `fitting`.
    """

    def parsed(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be {what}. Got {text!r}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be {fitting or what}. Got {text!r}")
        return value

    return parsed


_count = _number(int, 1, "a whole number of at least 1")
_seed = _number(int, 0, "a whole number of at least 0", 2**63 - 1, "below 2**63")
_rate = _number(float, 0, "a finite number of at least 0", 3.4e38, "finite in float32")
_part = _number(
    float, 0, "a number of at least 0, and below 1", math.nextafter(1, 0), "at least 0, and below 1"
)


def _several(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A function that parses a list with commas."""
    return lambda text: tuple(map(kind, text.split(",")))


_NO_CACHE = Option("--no-cache", bool, help="do not keep compiled programs in ~/.cache/jaxnn")
_SARIF = Option("--sarif", str, None, "FILE", "write the lines to blame as SARIF")
_TARGETS = Option("targets", str, None, "TARGET", more={"nargs": "+"})

_TRAIN = (
    Option("--data", str, None, "DIR", "MNIST's IDX files, as from examples/fetch_mnist.py"),
    Option("--layers", _several(_count), "50", "N,N,...", "number of units in each hidden layer"),
    Option("--activation", ACTIVATIONS, "sigmoid", help="between the layers"),
    Option("--dropout", _part, 0.0, "X", "fraction of hidden units dropped per step"),
    Option(
        "--epochs",
        _count,
        None,
        "N",
        "passes through the data; default: 100 without --max-steps",
    ),
    Option("--max-steps", _count, None, "N", "steps after which the run ends"),
    Option("--evaluate-every", _count, 1, "N", "epochs between measurements"),
    Option("--batch-size", _count, 100, "N", "examples per step"),
    Option("--lr", _several(_rate), "0.5", "X,X,...", "learning rates, run in parallel"),
    Option("--optimizer", OPTIMIZERS, "sgd", help="from optax"),
    Option("--weight-scale", _rate, 0.01, "X", "standard deviation of the initial weights"),
    Option("--seed", _seed, 0, "N", "seed of weights and batches"),
    Option("--grad", ("automatic", "numerical"), "automatic", help="how gradients are computed"),
    Option("--replacement", bool, help="draw with replacement, as in the chapter"),
    ("unattended runs",),
    Option("--checkpoint", str, None, "DIR", "save the run for `jaxnn eval DIR`"),
    Option(
        "--resume",
        ("newest", "previous"),
        None,
        help="continue from the newest checkpoint in DIR, with the same data, network, "
        "optimizer, batches and seed; `previous`: if the newest is damaged, from the last "
        "intact one",
        more={"nargs": "?", "const": "newest"},
    ),
    Option(
        "--every",
        _count,
        None,
        "N",
        "steps between checkpoints; default: an epoch, or ten minutes",
    ),
    Option("--patience", _count, None, "N", "stop after N measurements without a lower test loss"),
    Option("--log", str, None, "FILE", "append the progress as JSON lines"),
    ("several machines", "The devices split each batch. Start the same command once per process."),
    Option("--distributed", bool, help="connect through SLURM, Kubernetes, TPU or MPI"),
    Option("--coordinator", str, None, "HOST:PORT", "where process 0 listens"),
    Option("--num-processes", _count, None, "N", "how many processes there are"),
    Option("--process-id", _seed, None, "I", "index of this process, from 0"),
)

_CHECK = (
    _TARGETS._replace(help="FILE.py:NAME, MODULE:NAME, FILE.py, or FILE.py::TEST"),
    Option(
        "--order",
        int,
        1,
        help="2 also checks the Hessian; 3 and 4 also check higher derivatives",
        more={"choices": (1, 2, 3, 4)},
    ),
    Option("--seed", _seed, 0, "N", "seed of random projections"),
    Option("--plot", str, None, "FILE", "plot the worst leaf's evidence"),
    Option("--html", str, None, "FILE", "write the report as an HTML page"),
    _SARIF,
    _NO_CACHE,
)

_WATCH = (
    Option("program", str, None, "PROGRAM", "FILE or -m MODULE", {"nargs": "+"}),
    Option("--points", _count, 1, "N", "points to check each gradient at"),
    Option("--budget", _rate, 60.0, "SECONDS", "time for the checks that follow the program"),
    Option("--no-nan", bool, help="do not check for NaN and infinity"),
    Option(
        "--trust",
        _several(str),
        (),
        "NAME,...",
        "functions whose custom rules differ on purpose",
    ),
    Option("--stop", bool, help="end the program soon after the first NaN or infinity"),
    Option("--save", str, None, "DIR", "write inputs of non-finite gradients as .npz"),
    Option("--html", str, None, "FILE", "write the report as an HTML page"),
    Option("--json", str, None, "FILE", "write the report as JSON"),
    _SARIF,
)

COMMANDS = {
    "train": Command(
        "train:train",
        "train a network on handwritten digits",
        "Compare a network's numerical and automatic gradients, then train it on the 1,797 real "
        "8x8 digits that ship with the package, or on MNIST's files.",
        "jaxnn train --layers 100 --epochs 50 --lr 0.3",
        _TRAIN,
    ),
    "eval": Command(
        "train:evaluate",
        "evaluate a run that `train --checkpoint DIR` saved",
        "Print the loss and accuracy of the newest checkpoint in DIR, on its training data and on "
        "the test images. If the run used --patience, the best parameters so far are measured.",
        "jaxnn eval runs/first --json",
        (
            Option("directory", str, None, "DIR", "the DIR of `jaxnn train --checkpoint`"),
            Option("--data", str, None, "DIR", "other images; by default those of the run"),
        ),
    ),
    "check": Command(
        "check:check",
        "check a gradient against the function's values",
        "Check the gradients of your functions. TARGET is FILE.py:NAME or MODULE:NAME; the file "
        "is imported as a module. NAME, which may be Class.method, is a function whose arguments "
        "all have defaults, which are the point where the gradient is checked, or a function "
        "without arguments that returns (function, arguments). All arguments are differentiated. "
        "For a method of a class that holds weights, such as an Equinox module, argument 0 is an "
        "instance built without arguments. FILE.py alone checks all check_... and loss... "
        "functions with defaults; FILE.py::TEST, the gradients that a test checks with jaxnn or "
        "takes with JAX. Exit code 0: every gradient is correct or, at a kink like that of abs at "
        "0, between the two slopes; 1: one is wrong, not finite, cut off by stop_gradient, not "
        "deterministic, or has fewer than two digits left; 2: inconclusive, or bad input.",
        "jaxnn check model.py:loss --order 2",
        _CHECK,
    ),
    "explain": Command(
        "check:explain",
        "name the line where a gradient goes wrong",
        "Name the lines of your function where its gradient becomes NaN, where a derivative rule "
        "is wrong, or where digits are lost. TARGET is as for `jaxnn check`, but not a test. Exit "
        "code 0: everything is finite and no rule is wrong; 1: a NaN or a wrong rule was found; 2: "
        "bad input.",
        "jaxnn explain model.py:loss",
        (_TARGETS._replace(help="as for `jaxnn check`, but not a test"), _SARIF, _NO_CACHE),
    ),
    "watch": Command(
        "watch:watch",
        "check every gradient that a program takes",
        "Run a program, unchanged, and check every gradient that it takes: at its first point, and "
        "for NaN and infinity in every call. PROGRAM is a file, or -m MODULE, with its own "
        "arguments. The report follows on standard error. Exit code: the program's, if it is not "
        "0; else 1 if a gradient is wrong, was not finite, or is imprecise with fewer than two "
        "digits left, 2 if none could be judged, 0 otherwise. A gradient that is not finite does "
        "not count if the function's value was not finite either, and later gradients are finite.",
        "jaxnn watch --save inputs train.py --epochs 3",
        _WATCH,
    ),
    "figures": Command(
        "pictures:figures",
        "draw the figures of losses, descent and checks",
        "Compute and draw the figures of losses, derivatives, descent, training and the gradient "
        "check, as PNG and SVG files; an animation of descent, as a GIF; and a page with a slider "
        f"for the learning rate. Draws all, or only the given NAMEs: {', '.join(FIGURES)}.",
        "jaxnn figures --out figures",
        (
            Option("names", str, None, "NAME", "figures to draw (default: all)", {"nargs": "*"}),
            Option("--style", ("light", "dark"), "light", help="colours of the page"),
            Option("--out", str, None, "DIR", "directory to write to", {"required": True}),
        ),
    ),
    "tour": Command(
        "pictures:tour",
        "print the numbers of the book's chapter beside ours",
        "Compute the chapter's numbers, section by section, and show each next to the book's.",
        "jaxnn tour --figures figures",
        (Option("--figures", str, None, "DIR", "also draw the chapter's figures, in DIR"),),
    ),
    "docs": Command(
        "reference:docs",
        "write the API reference",
        "Write HTML reference pages for all public names from their docstrings. Needs pdoc: "
        "`pip install pdoc`.",
        "jaxnn docs --out reference",
        (Option("--out", str, None, "DIR", "directory to write to", {"required": True}),),
    ),
}
