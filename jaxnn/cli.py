"""The `jaxnn` command: train a network, check a gradient, walk through the chapter's numbers.

Arguments are parsed before JAX is imported, so `--help`, `--version` and mistakes answer at once. Mistakes are one line on
standard error and exit code 2; `--debug` shows the traceback.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

_OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
_ACTIVATIONS = ("sigmoid", "relu", "tanh", "gelu", "silu", "softplus")


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
    except (ValueError, TypeError, OSError) as error:
        if args.debug:
            raise
        print(f"jaxnn {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser():
    parser = argparse.ArgumentParser(
        prog="jaxnn",
        description="Losses, gradients two ways, and descent that compiles once, in JAX.",
        epilog="example: jaxnn train --layers 100 --optimizer adam --lr 0.003",
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
        "jaxnn train --data ~/mnist --layers 50 --batch-size 100 --epochs 20 --lr 0.1",
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
    train.add_argument("--lr", type=_rate, default=0.5, metavar="X", help="learning rate (default: 0.5)")
    train.add_argument("--optimizer", choices=_OPTIMIZERS, default="sgd", help="from optax (default: sgd)")
    train.add_argument("--weight-scale", type=_rate, default=0.01, metavar="X", help="of the first weights (default: 0.01)")
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="of weights and batches (default: 0)")
    train.add_argument("--grad", choices=("automatic", "numerical"), default="automatic", help="default: automatic")
    train.add_argument("--replacement", action="store_true", help="draw batches with replacement, as the chapter does")

    check = _command(
        commands,
        "check",
        _check,
        "hold a function's gradient against its values",
        "Check the gradient of a function of yours. TARGET is FILE.py:NAME or MODULE:NAME, and the file is run. NAME is a "
        "function whose arguments all have defaults, which are the point; or one without arguments that returns "
        "(function, arguments). Exit code 0: right; 1: wrong; 2: the evidence cannot tell, or bad input.",
        "jaxnn check model.py:loss --order 2",
    )
    check.add_argument("target", metavar="TARGET", help="FILE.py:NAME or MODULE:NAME; the file is run")
    check.add_argument("--order", type=int, choices=(1, 2), default=1, help="2 checks the Hessian too (default: 1)")
    check.add_argument("--seed", type=_seed, default=0, metavar="N", help="of random projections (default: 0)")
    check.add_argument("--plot", metavar="FILE", help="draw the evidence on the worst leaf")

    _command(
        commands,
        "tour",
        _tour,
        "the chapter's numbers beside ours",
        "Compute every number of the chapter, section by section, and print it beside the printed one.",
        "jaxnn tour",
    )
    return parser


def _command(commands, name, run, summary, description, example):
    parser = commands.add_parser(name, help=summary, description=description, epilog=f"example: {example}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _train(args):
    start = time.perf_counter()
    import jax
    import optax

    from jaxnn.data import load_digits, load_mnist
    from jaxnn.losses import accuracy
    from jaxnn.network import init_network, loss, predict
    from jaxnn.numerical.differences import numerical_grad
    from jaxnn.training import fit

    say = _silent if args.json else print
    digits = load_mnist(args.data) if args.data else load_digits()
    train_set = (digits.x_train, digits.t_train)
    sizes = (digits.x_train.shape[1], *args.layers, 10)
    activation = getattr(jax.nn, args.activation)
    momentum = {"momentum": 0.9} if args.optimizer == "momentum" else {}
    optimizer = getattr(optax, "sgd" if momentum else args.optimizer)(args.lr, **momentum)
    init_key, check_key, fit_key = jax.random.split(jax.random.key(args.seed), 3)
    params = init_network(init_key, sizes, args.weight_scale)
    device = jax.devices()[0]
    say(
        f"{len(digits.t_train)} images to train on, {len(digits.t_test)} to test with; network "
        f"{'-'.join(map(str, sizes))} ({args.activation}), {sum(p.size for p in params.values())} parameters; "
        f"JAX {jax.__version__} on {device.device_kind}"
    )

    def error(params, x, t):
        return loss(params, x, t, activation)

    def metrics(params):
        return {
            "train_loss": error(params, *train_set),
            "train_accuracy": accuracy(predict(params, digits.x_train, activation), digits.t_train),
            "test_accuracy": accuracy(predict(params, digits.x_test, activation), digits.t_test),
        }

    check = _gradient_check(error, params, train_set, check_key)
    say("\ngradient of the loss on 10 images, numerical against automatic:")
    for name, difference in check.items():
        say(f"  {name:4} {'x'.join(map(str, params[name].shape)):>8}   relative difference {difference:.1e}")
    say("\n epoch   loss    train accuracy   test accuracy")

    def on_progress(epoch, record):
        if epoch % max(1, args.epochs // 10) == 0 or epoch == args.epochs:
            say(f"{epoch:6}  {record['train_loss']:.4f}  {record['train_accuracy']:14.4f}  {record['test_accuracy']:14.4f}")

    result = fit(
        error,
        params,
        train_set,
        optimizer,
        key=fit_key,
        epochs=args.epochs,
        batch_size=args.batch_size,
        grad=numerical_grad if args.grad == "numerical" else jax.grad,
        replacement=args.replacement,
        metrics=metrics,
        on_progress=on_progress,
    )
    steps, seconds = len(result.history.step_loss), time.perf_counter() - start
    measured = {name: values.tolist() for name, values in result.history.metrics.items()}
    if args.json:
        _print_json({**measured, "gradient_check": check, "steps": steps, "seconds": seconds})
        return 0
    say(
        f"\n{steps} steps by {args.grad} gradients in {seconds:.1f} s, start to end: "
        f"test accuracy {measured['test_accuracy'][-1]:.4f}"
    )
    return 0


def _gradient_check(error, params, train_set, key):
    """Relative difference of numerical and automatic gradient on ten images, for each parameter."""
    import jax
    import jax.numpy as jnp

    from jaxnn.data import sample_batch
    from jaxnn.numerical.differences import numerical_grad

    batch = sample_batch(key, train_set, 10)
    numerical, automatic = numerical_grad(error)(params, *batch), jax.grad(error)(params, *batch)
    return {
        name: float(jnp.linalg.norm(numerical[name] - automatic[name]) / jnp.linalg.norm(automatic[name]))
        for name in sorted(params)
    }


def _check(args):
    from jaxnn.checking.check import check_gradient

    f, point = _load(args.target)
    report = check_gradient(f, *point, argnums=tuple(range(len(point))), order=args.order, seed=args.seed)
    if args.plot and report.leaves:
        import matplotlib

        matplotlib.use("agg")
        report.plot().figure.savefig(args.plot)
    if args.json:
        _print_json(report.to_dict())
    else:
        print(report)
    return 0 if report.ok else 2 if report.verdict == "unresolved" else 1


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
    except Exception as error:  # noqa: BLE001  a file that fails to run may raise anything; its own words are shown
        raise ValueError(f"`TARGET` must be a file or module that runs. Got {type(error).__name__}: {error}") from error
    if not callable(names.get(name)):
        raise ValueError(f"`TARGET` must name a function of {place}. Got {name!r}, which it does not define.")
    parameters = inspect.signature(names[name]).parameters.values()
    if not parameters:
        result = names[name]()
        if not (isinstance(result, tuple) and len(result) == 2 and callable(result[0]) and isinstance(result[1], tuple | list)):
            raise ValueError(f"`{name}` must return (function, arguments) where it takes no arguments itself. Got {result!r}.")
        return result[0], tuple(result[1])
    if any(p.default is inspect.Parameter.empty for p in parameters):
        missing = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        raise ValueError(f"`{name}` must have a default for each argument. Got none for {', '.join(missing)}.")
    return names[name], tuple(p.default for p in parameters)


def _tour(args):
    from jaxnn.tour import walk

    section = None
    if args.json:
        _print_json([row._asdict() for row in walk()])
        return 0
    print(f"{'':44}  {'here':>24}  {'in the chapter':>24}")
    for row in walk():
        if row.section != section:
            section = row.section
            print(f"\n{section}")
        print(f"  {row.quantity:42}  {row.here:>24}  {row.chapter:>24}")
    return 0


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
    return _number(int, text, 0, "a whole number of at least 0")


def _rate(text):
    return _number(float, text, 0, "a finite number of at least 0")


def _sizes(text):
    return tuple(_count(part) for part in text.split(","))
