"""The parser: what may be said at a shell; `train`, `check` and `pictures` do it.

Arguments are parsed before JAX is imported, so `--help`, `--version` and mistakes answer at once.
Mistakes are one line on standard error and exit code 2; `--debug` shows the traceback.
"""

import argparse
import math
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from jaxnn.cli.choices import ACTIVATIONS, FIGURES, OPTIMIZERS
from jaxnn.cli.output import kept_free, passing

# What the library's arguments are called on the command line, in its errors.
_FLAGS = {
    "train": {
        name: f"--{name.replace('_', '-')}"
        for name in ("checkpoint", "resume", "batch_size", "epochs", "replacement", "optimizer")
    }
    | {"directory": "--data", "path": "--log", "key": "--seed"},
    "eval": {"source": "DIR", "directory": "--data"},
    "figures": {"directory": "--out", "names": "NAME"},
    "tour": {"directory": "--figures"},
    "check": {},
    "explain": {},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    args.began, args.stdout = time.perf_counter(), sys.stdout
    try:
        with passing("loading JAX"):
            import_module("jax")
        if not args.json:
            return args.run(args)
        with kept_free(sys.stdout) as args.stdout:
            return args.run(args)
    except KeyboardInterrupt:
        print("jaxnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; Python would complain at exit
        return 141
    except (ValueError, TypeError, OSError, RuntimeError, AssertionError) as error:
        if args.debug:
            traceback.print_exc()
        # JAX says in a note that it shortens tracebacks, of which there is none here.
        notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("---")]
        message = " ".join([*str(error).split(), *notes, *_place(error)])
        for argument, flag in _FLAGS[args.command].items():
            message = message.replace(f"`{argument}`", f"`{flag}`")
        print(f"jaxnn {args.command}: error: {message}", file=sys.stderr)
        return 2


def _place(error: BaseException) -> list[str]:
    """Where in the user's code an error was raised, if it was raised there."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    ours = (sys.prefix, sys.base_prefix, str(pathlib.Path(__file__).parents[1]), sys.argv[0], "<")
    users = [frame for frame in frames if not frame.filename.startswith(ours)]
    if not users:
        return []
    return [f"(at {users[-1].filename}:{users[-1].lineno}; --debug shows the traceback)"]


# Each command is imported when it runs.


def _train(args: argparse.Namespace) -> int:
    from jaxnn.cli.train import train

    return train(args)


def _evaluate(args: argparse.Namespace) -> int:
    from jaxnn.cli.train import evaluate

    return evaluate(args)


def _check(args: argparse.Namespace) -> int:
    from jaxnn.cli.check import check

    return check(args)


def _explain(args: argparse.Namespace) -> int:
    from jaxnn.cli.check import explain

    return explain(args)


def _figures(args: argparse.Namespace) -> int:
    from jaxnn.cli.pictures import figures

    return figures(args)


def _tour(args: argparse.Namespace) -> int:
    from jaxnn.cli.pictures import tour

    return tour(args)


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="jaxnn",
        description="Losses, gradients two ways, and descent that compiles once, in JAX.",
        epilog="example: jaxnn train",
    )
    parser.add_argument("--version", action="version", version=f"jaxnn {version('jaxnn')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(
        commands,
        "train",
        _train,
        "train a network on handwritten digits",
        "Train a network on the 1,797 real 8x8 digits that ship with the package, or on MNIST's "
        "files, after holding its numerical and automatic gradients against each other.",
        "jaxnn train --layers 100 --epochs 50 --lr 0.3",
    )
    train.add_argument(
        "--data",
        metavar="DIR",
        help="directory with MNIST's four IDX files, plain or .gz (default: the digits)",
    )
    train.add_argument(
        "--layers",
        type=_sizes,
        default=(50,),
        metavar="N,N,...",
        help="units of the hidden layers (default: 50)",
    )
    train.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="sigmoid",
        help="between the layers (default: sigmoid)",
    )
    train.add_argument(
        "--dropout",
        type=_part,
        default=0.0,
        metavar="X",
        help="part of the hidden units that each step leaves out (default: 0)",
    )
    train.add_argument(
        "--epochs",
        type=_count,
        metavar="N",
        help="times through the data (default: 100, or as --max-steps takes)",
    )
    train.add_argument(
        "--max-steps", type=_count, metavar="N", help="steps after which the run ends"
    )
    train.add_argument(
        "--evaluate-every",
        type=_count,
        default=1,
        metavar="N",
        help="epochs between measurements (default: 1)",
    )
    train.add_argument(
        "--batch-size", type=_count, default=100, metavar="N", help="examples a step (default: 100)"
    )
    train.add_argument(
        "--lr",
        type=_rates,
        default=(0.5,),
        metavar="X,X,...",
        help="learning rate; several train at once (default: 0.5)",
    )
    train.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="sgd", help="from optax (default: sgd)"
    )
    train.add_argument(
        "--weight-scale",
        type=_rate,
        default=0.01,
        metavar="X",
        help="of the weights that it begins with (default: 0.01)",
    )
    train.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of weights and batches (default: 0)"
    )
    train.add_argument(
        "--grad", choices=("automatic", "numerical"), default="automatic", help="default: automatic"
    )
    train.add_argument(
        "--replacement",
        action="store_true",
        help="draw batches with replacement, as the chapter does",
    )

    left_alone = train.add_argument_group("runs that are left alone")
    left_alone.add_argument(
        "--checkpoint", metavar="DIR", help="save the run there; `jaxnn eval DIR` measures it"
    )
    left_alone.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        choices=("newest", "previous"),
        help="go on from the newest checkpoint in DIR, with the same flags but for --epochs and "
        "those that say when something is done; `previous`: from the newest that is whole",
    )
    left_alone.add_argument(
        "--every",
        type=_count,
        metavar="N",
        help="steps between checkpoints (default: at ends of epochs, and every ten minutes)",
    )
    left_alone.add_argument(
        "--patience",
        type=_count,
        metavar="N",
        help="stop after N measurements without a lower test loss",
    )
    left_alone.add_argument(
        "--log",
        metavar="FILE",
        help="append a line of JSON about twice a second and after each measurement",
    )
    machines = train.add_argument_group(
        "several machines",
        "All devices share each batch. The same command is started once a process.",
    )
    machines.add_argument(
        "--distributed",
        action="store_true",
        help="find the others through SLURM, Kubernetes, TPU pods or MPI",
    )
    machines.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    machines.add_argument(
        "--num-processes", type=_count, metavar="N", help="how many processes there are"
    )
    machines.add_argument(
        "--process-id", type=_seed, metavar="I", help="which of them this is, from 0"
    )

    evaluate = _command(
        commands,
        "eval",
        _evaluate,
        "measure a run that `train --checkpoint DIR` saved",
        "Loss and accuracy of the newest checkpoint in DIR, on the data that it was trained on and "
        "on the test images. With --patience, of the best parameters so far.",
        "jaxnn eval runs/first --json",
    )
    evaluate.add_argument(
        "directory", metavar="DIR", help="what `jaxnn train --checkpoint` was given"
    )
    evaluate.add_argument(
        "--data", metavar="DIR", help="other images to measure (default: those of the run)"
    )

    check = _command(
        commands,
        "check",
        _check,
        "hold a function's gradient against its values",
        "Check the gradients of functions of yours. TARGET is FILE.py:NAME or MODULE:NAME, and the "
        "file is run, as by `python -m`. NAME, which may be Class.method, is a function whose "
        "arguments all have defaults, which are the point; or one without arguments that returns "
        "(function, arguments). All arguments are differentiated, and a method's module (made "
        "without arguments) with its weights is the first. FILE.py alone: all functions "
        "check_... and loss... that have defaults. FILE.py::TEST runs a test. Exit code 0: right, "
        "or at a kink between the slopes from both sides; 1: wrong, not finite, or cut off by "
        "stop_gradient; 2: the evidence cannot tell, or bad input.",
        "jaxnn check model.py:loss --order 2",
    )
    check.add_argument(
        "targets",
        metavar="TARGET",
        nargs="+",
        help="FILE.py:NAME, MODULE:NAME, FILE.py, or FILE.py::TEST; the file is run",
    )
    check.add_argument(
        "--order",
        type=int,
        choices=(1, 2, 3, 4),
        default=1,
        help="2 checks the Hessian too, 3 and 4 go on like that (default: 1)",
    )
    check.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of random projections (default: 0)"
    )
    check.add_argument("--plot", metavar="FILE", help="draw the evidence on the worst leaf")
    check.add_argument("--html", metavar="FILE", help="write the report as a page of its own")

    explain = _command(
        commands,
        "explain",
        _explain,
        "name the line where a gradient goes bad",
        "Name the lines of a function of yours where its gradient becomes NaN, where a derivative "
        "rule is wrong, or where its digits are lost. TARGET is as for `jaxnn check`, but no test. "
        "Exit code 0: all finite, and no rule wrong; 1: a line is named for that; 2: bad input.",
        "jaxnn explain model.py:loss",
    )
    explain.add_argument(
        "targets", metavar="TARGET", nargs="+", help="as for `jaxnn check`, but no test"
    )

    figures = _command(
        commands,
        "figures",
        _figures,
        "draw the pictures",
        "Compute and draw the pictures of losses, derivatives, descent, training and the gradient "
        "check, as PNG and SVG files; an animation of descent, as GIF; and a page with a slider "
        f"for the learning rate. All, or those whose NAMEs are given, of {', '.join(FIGURES)}.",
        "jaxnn figures --out figures",
    )
    figures.add_argument("names", metavar="NAME", nargs="*", help="which (default: all)")
    figures.add_argument(
        "--style", choices=("light", "dark"), default="light", help="of the page (default: light)"
    )
    figures.add_argument(
        "--out", metavar="DIR", required=True, help="directory to write to; made if it is not there"
    )

    tour = _command(
        commands,
        "tour",
        _tour,
        "the chapter's numbers beside ours",
        "Compute every number of the chapter, section by section, and print it beside the printed "
        "one.",
        "jaxnn tour --figures figures",
    )
    tour.add_argument("--figures", metavar="DIR", help="draw the chapter's pictures there as well")
    return parser


def _command(
    commands: Any, name: str, run: Callable, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=description, epilog=f"example: {example}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _number(kind: type, text: str, least: int, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not math.isfinite(value) or value < least:
        raise argparse.ArgumentTypeError(f"must be {what}. Got {text!r}")
    return value


def _count(text: str) -> int:
    return _number(int, text, 1, "a whole number of at least 1")


def _seed(text: str) -> int:
    value = _number(int, text, 0, "a whole number of at least 0")
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2**63. Got {text!r}")
    return value


def _rate(text: str) -> float:
    value = _number(float, text, 0, "a finite number of at least 0")
    if value > 3.4e38:
        raise argparse.ArgumentTypeError(f"must be finite in float32. Got {text!r}")
    return value


def _part(text: str) -> float:
    value = _number(float, text, 0, "a number of at least 0, and below 1")
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be at least 0, and below 1. Got {text!r}")
    return value


def _rates(text: str) -> tuple[float, ...]:
    return tuple(_rate(part) for part in text.split(","))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))
