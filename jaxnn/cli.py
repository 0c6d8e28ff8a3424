"""The `jaxnn` command: train a network, check a gradient, walk through the chapter's numbers.

Arguments are parsed before JAX is imported, so `--help`, `--version` and mistakes answer at once. Mistakes are one line on
standard error and exit code 2; `--debug` shows the traceback.
"""

import argparse
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import version

_OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
_ACTIVATIONS = ("sigmoid", "relu", "tanh", "gelu", "silu", "softplus")
# What the library's arguments are called on the command line, in its errors.
_FLAGS = {
    "train": {name: f"--{name.replace('_', '-')}" for name in ("checkpoint", "resume", "batch_size", "epochs", "replacement")}
    | {"directory": "--data", "path": "--log", "key": "--seed"},
    "eval": {"source": "DIR", "directory": "--data"},
    "figures": {"directory": "--out"},
    "tour": {"directory": "--figures"},
    "check": {},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("jaxnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; Python would complain of it at exit
        return 141
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if args.debug:
            traceback.print_exc()
        said = re.sub(r"`(\w+)`", lambda found: f"`{_FLAGS[args.command].get(found[1], found[1])}`", str(error))
        print(f"jaxnn {args.command}: error: {' '.join(said.split())}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, without the usage before it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser():
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
        "Train a network on the 1,797 real 8x8 digits that ship with the package, or on MNIST's files, after holding its "
        "numerical and automatic gradients against each other.",
        "jaxnn train --layers 100 --epochs 50 --lr 0.3",
    )
    train.add_argument(
        "--data", metavar="DIR", help="directory with MNIST's four IDX files, plain or .gz (default: the digits)"
    )
    train.add_argument(
        "--layers", type=_sizes, default=(50,), metavar="N,N,...", help="units of the hidden layers (default: 50)"
    )
    train.add_argument("--activation", choices=_ACTIVATIONS, default="sigmoid", help="between the layers (default: sigmoid)")
    train.add_argument("--epochs", type=_count, default=100, metavar="N", help="times through the data (default: 100)")
    train.add_argument("--batch-size", type=_count, default=100, metavar="N", help="examples a step (default: 100)")
    train.add_argument(
        "--lr", type=_rates, default=(0.5,), metavar="X,X,...", help="learning rate; several train at once (default: 0.5)"
    )
    train.add_argument("--optimizer", choices=_OPTIMIZERS, default="sgd", help="from optax (default: sgd)")
    train.add_argument("--weight-scale", type=_rate, default=0.01, metavar="X", help="of the first weights (default: 0.01)")
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="of weights and batches (default: 0)")
    train.add_argument("--grad", choices=("automatic", "numerical"), default="automatic", help="default: automatic")
    train.add_argument("--replacement", action="store_true", help="draw batches with replacement, as the chapter does")

    left_alone = train.add_argument_group("runs that are left alone")
    left_alone.add_argument("--checkpoint", metavar="DIR", help="save the run there; `jaxnn eval DIR` measures it")
    left_alone.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        choices=("newest", "previous"),
        help="go on from the newest checkpoint in DIR, if there is one; `previous`: from the newest that is whole",
    )
    left_alone.add_argument("--every", type=_count, metavar="N", help="steps between checkpoints (default: at ends of epochs)")
    left_alone.add_argument("--patience", type=_count, metavar="N", help="stop after N epochs without a lower test loss")
    left_alone.add_argument("--log", metavar="FILE", help="append a line of JSON about twice a second and after each epoch")
    machines = train.add_argument_group(
        "several machines", "All devices share each batch. The same command is started once a process."
    )
    machines.add_argument(
        "--distributed", action="store_true", help="find the others through SLURM, Kubernetes, TPU pods or MPI"
    )
    machines.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    machines.add_argument("--num-processes", type=_count, metavar="N", help="how many processes there are")
    machines.add_argument("--process-id", type=_seed, metavar="I", help="which of them this is, from 0")

    evaluate = _command(
        commands,
        "eval",
        _eval,
        "measure a run that `train --checkpoint DIR` saved",
        "Loss and accuracy of the newest checkpoint in DIR, on the data that it was trained on and on the test images. With "
        "--patience, of the best parameters so far.",
        "jaxnn eval runs/first --json",
    )
    evaluate.add_argument("directory", metavar="DIR", help="what `jaxnn train --checkpoint` was given")
    evaluate.add_argument("--data", metavar="DIR", help="other images to measure (default: those of the run)")

    check = _command(
        commands,
        "check",
        _check,
        "hold a function's gradient against its values",
        "Check the gradient of a function of yours. TARGET is FILE.py:NAME or MODULE:NAME, and the file is run. NAME is a "
        "function whose arguments all have defaults, which are the point; or one without arguments that returns "
        "(function, arguments). Exit code 0: right, or at a kink between the slopes from both sides; 1: wrong; 2: the evidence "
        "cannot tell, or bad input.",
        "jaxnn check model.py:loss --order 2",
    )
    check.add_argument("target", metavar="TARGET", help="FILE.py:NAME or MODULE:NAME; the file is run")
    check.add_argument("--order", type=int, choices=(1, 2), default=1, help="2 checks the Hessian too (default: 1)")
    check.add_argument("--seed", type=_seed, default=0, metavar="N", help="of random projections (default: 0)")
    check.add_argument("--plot", metavar="FILE", help="draw the evidence on the worst leaf")

    figures = _command(
        commands,
        "figures",
        _figures,
        "draw every picture",
        "Compute and draw the pictures of losses, derivatives, descent, training and the gradient check, as PNG files.",
        "jaxnn figures --out figures",
    )
    figures.add_argument("--out", metavar="DIR", required=True, help="directory to write to; made if it is not there")

    tour = _command(
        commands,
        "tour",
        _tour,
        "the chapter's numbers beside ours",
        "Compute every number of the chapter, section by section, and print it beside the printed one.",
        "jaxnn tour --figures figures",
    )
    tour.add_argument("--figures", metavar="DIR", help="draw the chapter's pictures there as well")
    return parser


def _command(commands, name, run, summary, description, example):
    parser = commands.add_parser(name, help=summary, description=description, epilog=f"example: {example}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _train(args):
    start = time.perf_counter()
    if args.resume and not args.checkpoint:
        raise ValueError("`--resume` must come with --checkpoint DIR. Got no directory.")
    if len(args.lr) > 1 and (args.checkpoint or args.patience):
        raise ValueError(f"`--lr` must be one number with --checkpoint or --patience. Got {len(args.lr)} numbers.")
    if args.every and not args.checkpoint:
        raise ValueError(f"`--every` must come with --checkpoint DIR. Got {args.every} alone.")
    if args.log:
        _require_place("--log", args.log, args.checkpoint)
    import jax

    from jaxnn.network import init_network
    from jaxnn.numerical.differences import numerical_grad
    from jaxnn.progress import progress_log, show_progress
    from jaxnn.sweeps import sweep
    from jaxnn.training import fit

    _join(args)
    alone = jax.process_index() == 0  # one process speaks for all
    say = print if alone and not args.json else _silent
    digits, error, metrics = _task(args)
    begun = _remember(args) if args.checkpoint else 0
    train_set, test_set = (digits.x_train, digits.t_train), (digits.x_test, digits.t_test)
    sizes = (digits.x_train.shape[1], *args.layers, 10)
    init_key, check_key, fit_key = jax.random.split(jax.random.key(args.seed), 3)
    params = init_network(init_key, sizes, args.weight_scale)
    devices = jax.devices()
    say(
        f"{len(digits.t_train)} images to train on, {len(digits.t_test)} to test with; network "
        f"{'-'.join(map(str, sizes))} ({args.activation}), {sum(p.size for p in params.values())} parameters; "
        f"JAX {jax.__version__} on {devices[0].device_kind}{f' x {len(devices)}' if len(devices) > 1 else ''}"
    )
    check = _gradient_check(error, params, train_set, check_key)
    say("\ngradient of the loss on 10 images, numerical against automatic:")
    for name, difference in check.items():
        say(f"  {name:4} {'x'.join(map(str, params[name].shape)):>8}   relative difference {difference:.1e}")
    if begun:
        say(f"\nresumed after step {begun}")
    if len(args.lr) > 1:
        say(f"\n{len(args.lr)} runs at once; the table is of the one with the lowest loss")
    say()

    watchers = [show_progress()] if say is print else []
    if args.log:
        watchers.append(progress_log(args.log))

    def on_progress(progress):
        for watcher in watchers:
            watcher(progress)

    common = {
        "key": fit_key,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "grad": numerical_grad if args.grad == "numerical" else jax.grad,
        "replacement": args.replacement,
        "test": test_set,
        "metrics": metrics,
        "on_progress": on_progress,
    }
    if len(args.lr) > 1:
        results = sweep(error, params, train_set, _optimizer(args), jax.numpy.array(args.lr), **common)
    else:
        mesh = (
            jax.make_mesh((len(devices),), ("devices",), axis_types=(jax.sharding.AxisType.Auto,)) if len(devices) > 1 else None
        )
        result = fit(
            error,
            params,
            train_set,
            _optimizer(args)(args.lr[0]),
            **common,
            patience=args.patience,
            checkpoint=args.checkpoint,
            resume={"newest": True, "previous": "previous", None: False}[args.resume],
            every=args.every,
            mesh=mesh,
        )
        results = [result]
    seconds = time.perf_counter() - start
    if args.json and alone:
        told = [_told(result) | {"lr": lr} for lr, result in zip(args.lr, results, strict=True)]
        whole = told[0] if len(told) == 1 else {"runs": told}
        _print_json({**whole, "gradient_check": check, "seconds": seconds})
    _conclude(args, results, begun, seconds, say)
    if all(result.status.reason == "not finite" for result in results):
        return 1
    return 130 if results[0].status.reason == "interrupted" else 0


def _join(args):
    """Meet the other processes, if there are any."""
    import jax

    given = {"--coordinator": args.coordinator, "--num-processes": args.num_processes, "--process-id": args.process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(f"`{missing[0]}` must be given with the other two. Got {', '.join(set(given) - set(missing))}.")
    if missing and not args.distributed:
        return
    # Libraries below Python print while processes meet; standard output is for the result alone, so theirs goes elsewhere.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        jax.distributed.initialize(*given.values())
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "`--distributed` must run under SLURM, Kubernetes, MPI or on a TPU pod, or come with --coordinator, "
            f"--num-processes and --process-id. Got {error}"
        ) from error


def _task(args):
    """The data, the loss and the metrics of a run."""
    import jax

    from jaxnn.data import load_digits, load_mnist
    from jaxnn.losses import accuracy
    from jaxnn.network import loss, predict

    activation = getattr(jax.nn, args.activation)
    digits = load_mnist(args.data) if args.data else load_digits()

    def error(params, x, t):
        return loss(params, x, t, activation)

    def metrics(params, x, t):
        return {"accuracy": accuracy(predict(params, x, activation), t)}

    return digits, error, metrics


def _optimizer(args):
    """A function of the learning rate."""
    import functools

    import optax

    if args.optimizer == "momentum":
        return functools.partial(optax.sgd, momentum=0.9)
    return getattr(optax, args.optimizer)


# What `jaxnn eval` has to know of a run, and what must be the same when it is resumed.
_REMEMBERED = ("data", "layers", "activation", "optimizer", "lr", "weight_scale", "seed")


def _remember(args):
    """Write down beside the checkpoints what the run is; or see that it is the same. Returns the step it is at."""
    import pathlib

    from jaxnn._door import made_directory
    from jaxnn.checkpoint import checkpoints, load_checkpoint, replacing

    directory = pathlib.Path(args.checkpoint)
    asked = {name: getattr(args, name) for name in _REMEMBERED}
    asked |= {"layers": list(args.layers), "lr": list(args.lr), "data": args.data and str(pathlib.Path(args.data).resolve())}
    path = directory / "run.json"
    if args.resume and path.exists():
        for name, value in _read_run(directory).items():
            if asked[name] != value:
                before, now = (",".join(map(str, v)) if isinstance(v, list) else v for v in (value, asked[name]))
                raise ValueError(f"`--{name.replace('_', '-')}` must be {before}, as in {path}. Got {now}.")
    elif not path.exists():
        made_directory("--checkpoint", directory)
        with replacing(path) as file:
            file.write(json.dumps(asked).encode())
    there = checkpoints(directory)
    if there and not args.resume:
        raise FileExistsError(f"`--checkpoint` must be empty unless --resume is given. Got {str(directory)!r}, with a run.")
    return load_checkpoint(directory, previous=args.resume == "previous").step if there else 0


def _read_run(directory):
    """What `_remember` wrote."""
    try:
        run = json.loads((directory / "run.json").read_text())
        if run.keys() != set(_REMEMBERED):
            raise ValueError(f"it holds {', '.join(run)}")
        layers, known = run["layers"], run["activation"] in _ACTIVATIONS and run["optimizer"] in _OPTIMIZERS
        if not known or not isinstance(layers, list) or not all(type(n) is int and n > 0 for n in layers):
            raise ValueError("its layers, activation or optimizer are none that `jaxnn train` writes")
        if not isinstance(run["data"], str | None):
            raise ValueError("its data are no directory")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"`DIR` must be what `jaxnn train --checkpoint` was given. Got {str(directory)!r}: {error}."
        ) from error
    return run


def _eval(args):
    import pathlib

    directory = pathlib.Path(args.directory)
    run = argparse.Namespace(**_read_run(directory))
    import jax

    from jaxnn.checkpoint import load_checkpoint
    from jaxnn.network import init_network
    from jaxnn.stepping import loss_first, measurer

    run.data = args.data or run.data
    digits, error, metrics = _task(run)
    like = init_network(jax.random.key(0), (digits.x_train.shape[1], *run.layers, 10))
    found = load_checkpoint(directory)
    pixels, images = len(found.leaves["params"]["['W1']"]), digits.x_train.shape[1]
    if pixels != images:
        raise ValueError(f"`--data` must hold images of {pixels} pixels, as those of the run. Got {images} pixels.")
    params = found.restore("best" if "best" in found.leaves else "params", like)
    measure = jax.jit(measurer(error, metrics, None))
    sets = {"train": (digits.x_train, digits.t_train), "test": (digits.x_test, digits.t_test)}
    record = {f"{name}_{k}": float(v) for name, data in sets.items() for k, v in loss_first(measure(params, data)).items()}
    if args.json:
        _print_json({"step": found.step, **record})
        return 0
    print(f"after step {found.step}")
    for name, value in record.items():
        print(f"  {name.replace('_', ' '):14}  {value:.4f}")
    return 0


def _figures(args):
    paths = _drawn(args.out)
    if args.json:
        _print_json(paths)
    else:
        print(*paths, sep="\n")
    return 0


def _told(result):
    """A result as JSON has it."""
    measured = {f"{name}_{what}": [] for name in ("train", "test") for what in ("loss", "accuracy")}
    measured |= {name: values.tolist() for name, values in result.history.metrics.items()}
    return {**measured, "steps": result.status.step, "status": result.status.reason}


def _conclude(args, results, begun, seconds, say):
    """The last lines of a run."""
    say()
    for lr, result in zip(args.lr, results, strict=True):
        (reason, step, leaf), metrics = result.status, result.history.metrics
        place = f"lr {lr:g}: " if len(results) > 1 else ""
        if reason == "not finite":
            say(f"{place}stopped after step {step}: at the next one, {leaf} was not finite")
        elif reason != "finished":
            more = "; --resume goes on from there" if reason == "interrupted" and args.checkpoint else ""
            say(f"{place}stopped after step {step}: {reason}{more}")
        if "test_loss" in metrics:
            lowest = int(metrics["test_loss"].argmin())
            accuracy = metrics["test_accuracy"][lowest if args.patience else -1]
            best = f" after epoch {lowest + 1}, the best" if args.patience else ""
            taken = f"{place}{step - begun} steps by {args.grad} gradients in {seconds:.1f} s, start to end"
            say(f"{taken}: test accuracy {accuracy:.4f}{best}")
            if metrics["test_loss"][-1] > 1.1 * metrics["test_loss"][lowest]:
                say(
                    f"{place}overfitting: the test loss was lowest after epoch {lowest + 1} and has risen by over a tenth since"
                )


def _gradient_check(error, params, train_set, key):
    """Relative difference of numerical and automatic gradient on ten images, for each parameter."""
    import jax
    import jax.numpy as jnp

    from jaxnn.data import sample_batch
    from jaxnn.numerical.differences import numerical_grad

    batch = sample_batch(key, train_set, 10)
    numerical, automatic = numerical_grad(error)(params, *batch), jax.grad(error)(params, *batch)
    return {
        name: float(jnp.linalg.norm(numerical[name] - automatic[name]) / (jnp.linalg.norm(automatic[name]) or 1.0))
        for name in sorted(params)
    }


def _check(args):
    from jaxnn.checking.check import check_gradient

    if args.plot:
        _require_picture("--plot", args.plot)
    f, point = _load(args.target)
    try:
        report = check_gradient(f, *point, argnums=tuple(range(len(point))), order=args.order, seed=args.seed)
    except (ValueError, TypeError, OSError):
        raise
    except (Exception, SystemExit) as error:  # a function may raise anything, and end with an exit code that says "right"
        raise ValueError(f"`TARGET` must be a function that runs. Got {type(error).__name__}: {error}") from error
    if args.plot and report.leaves:
        import matplotlib

        matplotlib.use("agg")
        report.plot().figure.savefig(args.plot)
    if args.json:
        _print_json(report.to_dict())
    else:
        print(_coloured(str(report)) if _colours() else report)
        if args.plot and report.leaves:
            print(f"evidence drawn in {args.plot}")
    return 0 if report.ok else 2 if report.verdict == "unresolved" else 1


def _colours():
    """Whether standard output is a terminal whose user has nothing against colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _coloured(report):
    """A report with its verdicts in green, yellow or red."""
    colours = {"agrees": 32, "kink": 33, "unresolved": 33, "differs": 31, "not finite": 31, "not deterministic": 31}
    verdict = re.compile(rf"\b({'|'.join(colours)})\b")
    return verdict.sub(lambda found: f"\x1b[{colours[found[0]]}m{found[0]}\x1b[0m", report)


def _load(target):
    """The function that a target names, and the arguments to check it at."""
    import importlib
    import inspect
    import runpy

    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"`TARGET` must be FILE.py:NAME or MODULE:NAME. Got {target!r}.")
    try:
        names = runpy.run_path(place, run_name="jaxnn_check") if place.endswith(".py") else vars(importlib.import_module(place))
    except (Exception, SystemExit) as error:  # noqa: BLE001  a file that fails to run may raise anything; its own words are shown
        raise ValueError(f"`TARGET` must be a file or module that runs. Got {type(error).__name__}: {error}") from error
    if not callable(names.get(name)):
        what = f"which is {type(names[name]).__name__}" if name in names else "which it does not define"
        raise ValueError(f"`TARGET` must name a function of {place}. Got {name!r}, {what}.")
    parameters = inspect.signature(names[name]).parameters.values()
    if not parameters:
        try:
            result = names[name]()
        except (Exception, SystemExit) as error:  # noqa: BLE001
            raise ValueError(f"`{name}` must be a function that runs. Got {type(error).__name__}: {error}") from error
        if not (isinstance(result, tuple) and len(result) == 2 and callable(result[0]) and isinstance(result[1], tuple | list)):
            raise ValueError(f"`{name}` must return (function, arguments) where it takes no arguments itself. Got {result!r}.")
        return result[0], tuple(result[1])
    if any(p.default is inspect.Parameter.empty for p in parameters):
        missing = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        raise ValueError(f"`{name}` must have a default for each argument. Got none for {', '.join(missing)}.")
    return names[name], tuple(p.default for p in parameters)


def _tour(args):
    from jaxnn.tour import walk

    rows = list(walk())
    paths = _drawn(args.figures) if args.figures else []
    if args.json:
        numbers = [row._asdict() for row in rows]
        _print_json({"numbers": numbers, "figures": paths} if args.figures else numbers)
        return 0
    what, here, there = (max(len(row[k]) for row in rows) for k in (1, 2, 3))
    print(f"{'':{what + 2}}  {'here':>{here}}  {'in the chapter':>{there}}")
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            print(f"\n{section}")
        print(f"  {row.quantity:{what}}  {row.here:>{here}}  {row.chapter:>{there}}")
    print("\nThe pictures:", *paths or ["jaxnn tour --figures DIR draws them"], sep="\n  " if paths else " ")
    return 0


def _drawn(directory):
    from jaxnn.figures import draw

    return [str(path) for path in draw(directory)]


def _print_json(value):
    def finite(x):
        if isinstance(x, float) and not math.isfinite(x):
            return None  # JSON has no NaN; a reader of strict JSON would refuse the file
        if isinstance(x, dict):
            return {k: finite(v) for k, v in x.items()}
        return [finite(v) for v in x] if isinstance(x, list | tuple) else x

    print(json.dumps(finite(value)))


def _silent(*_):
    pass


def _require_place(option, path, made=None):
    """Refuse a file that could not be written, before the work that it is to hold."""
    import pathlib

    place = pathlib.Path(path)
    if (
        "\0" in path
        or place.is_dir()
        or not (place.parent.is_dir() or (made and pathlib.Path(made).is_relative_to(place.parent)))
    ):
        raise ValueError(f"`{option}` must be a file in a directory that is there. Got {path!r}.")


def _require_picture(option, path):
    """Refuse a file whose ending names no format that Matplotlib writes."""
    import pathlib

    from matplotlib.figure import Figure

    _require_place(option, path)
    formats = Figure().canvas.get_supported_filetypes()
    if pathlib.Path(path).suffix[1:].lower() not in formats:
        raise ValueError(f"`{option}` must end in one of .{', .'.join(sorted(formats))}. Got {path!r}.")


def _number(kind, text, least, what):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not math.isfinite(value) or value < least:
        raise argparse.ArgumentTypeError(f"must be {what}. Got {text!r}")
    return value


def _count(text):
    return _number(int, text, 1, "a whole number of at least 1")


def _seed(text):
    value = _number(int, text, 0, "a whole number of at least 0")
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2**63. Got {text!r}")
    return value


def _rate(text):
    value = _number(float, text, 0, "a finite number of at least 0")
    if value > 3.4e38:
        raise argparse.ArgumentTypeError(f"must be finite in float32. Got {text!r}")
    return value


def _rates(text):
    return tuple(_rate(part) for part in text.split(","))


def _sizes(text):
    return tuple(_count(part) for part in text.split(","))
