"""The commands `jaxnn train` and `jaxnn eval`; each returns the exit code."""

import argparse
import functools
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxnn._files import made_directory
from jaxnn.cli.choices import ACTIVATIONS, OPTIMIZERS
from jaxnn.cli.output import passing, print_json, require_place, silent
from jaxnn.data import Digits, load_digits, load_mnist, sample_batch
from jaxnn.descent import DivergenceWarning
from jaxnn.losses import accuracy
from jaxnn.network import init_network, loss, predict
from jaxnn.numerical.differences import numerical_grad
from jaxnn.training.checkpoint import Checkpoint, checkpoints, load_checkpoint
from jaxnn.training.fit import fit
from jaxnn.training.history import Fit, Log
from jaxnn.training.options import Feeding, Measuring, Reporting, Saving
from jaxnn.training.progress import Progress, progress_log, show_progress
from jaxnn.training.sweep import sweep

# Default number of epochs.
EPOCHS = 100
Task = tuple[Digits, Callable, Callable]  # the data, the loss and the metrics of a run


def train(args: argparse.Namespace) -> int:
    """Compare the gradients, then train; returns the exit code."""
    _require_options_that_fit(args)
    _join(args)
    alone = jax.process_index() == 0  # only one process prints
    say = print if alone and not args.json else silent
    task = digits, *_ = _task(args)
    begun = _begun(args) if args.checkpoint else 0
    sizes = (digits.x_train.shape[1], *args.layers, 10)
    init_key, check_key, fit_key = jax.random.split(jax.random.key(args.seed), 3)
    params = init_network(init_key, sizes, args.weight_scale)
    say(
        f"{len(digits.t_train)} images to train on, {len(digits.t_test)} to test on; network\n"
        f"{'-'.join(map(str, sizes))} ({args.activation}), {sum(p.size for p in params.values())} "
        f"parameters; JAX {jax.__version__} on {_devices()}"
    )
    say("\ngradient of the loss on 10 images, numerical against automatic:", flush=True)
    check = _gradient_check(task, params, check_key)
    for name, difference in check.items():
        shape = "x".join(map(str, params[name].shape))
        say(f"  {name:4} {shape:>8}   relative difference {difference:.1e}")
    if begun:
        say(f"\nresumed after step {begun}")
    if len(args.lr) > 1:
        say(f"\n{len(args.lr)} runs at once; the table shows the one with the lowest loss")
    say("\ncompiling the steps, then training:")
    results = _results(args, task, params, fit_key, _on_progress(args, say))
    seconds = time.perf_counter() - args.began
    if args.json and alone:
        told = [_told(result) | {"lr": lr} for lr, result in zip(args.lr, results, strict=True)]
        whole = told[0] if len(told) == 1 else {"runs": told}
        print_json({**whole, "gradient_check": check, "seconds": seconds}, args.stdout)
    _conclude(args, results, begun, seconds, say)
    if all(result.status.reason == "not finite" for result in results):
        return 1
    return 130 if results[0].status.reason == "interrupted" else 0


def _devices() -> str:
    first, *others = jax.devices()
    return f"{first.device_kind} x {1 + len(others)}" if others else first.device_kind


def _require_options_that_fit(args: argparse.Namespace) -> None:
    if args.resume and not args.checkpoint:
        raise ValueError("`--resume` must be used with --checkpoint DIR. Got no directory.")
    alone = {
        "--checkpoint": args.checkpoint,
        "--patience": args.patience,
        "--max-steps": args.max_steps,
        "--evaluate-every": args.evaluate_every > 1,
    }
    asked = [name for name, value in alone.items() if value]
    if len(args.lr) > 1 and asked:
        raise ValueError(
            f"`--lr` must be one number with {' or '.join(asked)}. Got {len(args.lr)} numbers."
        )
    if args.every and not args.checkpoint:
        raise ValueError(f"`--every` must be used with --checkpoint DIR. Got {args.every} alone.")
    if args.log:
        require_place("--log", args.log, args.checkpoint)


def _on_progress(args: argparse.Namespace, say: Callable) -> Callable[[Progress], None]:
    """A callback that shows a table or bar and writes the log during a run."""
    watchers = [show_progress()] if say is print else []
    if args.log:
        watchers.append(progress_log(args.log))

    def on_progress(progress):
        for watcher in watchers:
            watcher(progress)

    return on_progress


def _results(
    args: argparse.Namespace, task: Task, params: Any, key: Any, on_progress: Callable
) -> list[Fit]:
    """The result of one run for each learning rate."""
    (digits, error, metrics), optimizer = task, _optimizer(args)
    data = digits.x_train, digits.t_train
    measured = {"test": (digits.x_test, digits.t_test), "metrics": metrics}
    epochs = args.epochs or (None if args.max_steps else EPOCHS)
    options = {"key": key, "epochs": epochs, "batch_size": args.batch_size}
    options |= {"grad": numerical_grad if args.grad == "numerical" else jax.grad}
    if len(args.lr) > 1:
        options |= {"replacement": args.replacement, "on_progress": on_progress}
        return sweep(error, params, data, optimizer, jnp.array(args.lr), **options, **measured)
    devices = jax.device_count()
    result = _quietly(
        fit,
        error,
        params,
        data,
        optimizer(args.lr[0]),
        **options,
        max_steps=args.max_steps,
        feeding=Feeding(
            replacement=args.replacement,
            mesh=jax.make_mesh((devices,), ("devices",)) if devices > 1 else None,
        ),
        measuring=Measuring(**measured, evaluate_every=args.evaluate_every, patience=args.patience),
        saving=Saving(
            checkpoint=args.checkpoint,
            resume={"newest": True, "previous": "previous", None: False}[args.resume],
            every=args.every,
            notes={"run": _asked(args)},
        ),
        reporting=Reporting(on_progress=on_progress, on_interrupt="return"),
    )
    return [result]


def _quietly(run: Callable, *args: Any, **options: Any) -> Fit:
    """The result of a run without divergence warnings, because `_lesson` reports divergence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        tell = lambda text, *_, **__: print(f"jaxnn train: warning: {text}", file=sys.stderr)  # noqa: E731
        warnings.showwarning = tell
        return run(*args, **options)


def _join(args: argparse.Namespace) -> None:
    """Connect to the other processes, if there are any."""
    given = {
        "--coordinator": args.coordinator,
        "--num-processes": args.num_processes,
        "--process-id": args.process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"`{missing[0]}` must be given, as --coordinator, --num-processes and --process-id "
            f"belong together. Got {', '.join(set(given) - set(missing))}."
        )
    if missing and not args.distributed:
        return
    try:
        jax.distributed.initialize(*given.values())
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "`--distributed` must run under SLURM, Kubernetes or MPI, or on a TPU pod, or come "
            f"with --coordinator, --num-processes and --process-id. Got {error}"
        ) from error


def _task(args: argparse.Namespace) -> Task:
    """The data, the loss and the metrics of a run."""
    activation = step if args.activation == "step" else getattr(jax.nn, args.activation)
    digits = load_mnist(args.data) if args.data else load_digits()

    def error(params, x, t, *, key=None):
        """The loss; with a key (in steps), each hidden layer drops a fraction of its units."""
        if key is None or not args.dropout:
            return loss(params, x, t, activation)
        keys = iter(jax.random.split(key, len(args.layers)))

        def dropped(scores):
            y = activation(scores)
            stays = jax.random.bernoulli(next(keys), 1 - args.dropout, y.shape)
            return jnp.where(stays, y / (1 - args.dropout), 0)

        return loss(params, x, t, dropped)

    def metrics(params, x, t):
        return {"accuracy": accuracy(predict(params, x, activation), t)}

    return digits, error, metrics


def step(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """The chapter's step function: 1 above 0, else 0."""
    return jnp.where(scores > 0, 1.0, 0.0)


def _optimizer(args: argparse.Namespace) -> Callable:
    """A function that maps the learning rate to an optimiser."""
    if args.optimizer == "momentum":
        return functools.partial(optax.sgd, momentum=0.9)
    return getattr(optax, args.optimizer)


# The options that `jaxnn eval` needs to know, and that must not change when a run is resumed.
_REMEMBERED = "data layers activation dropout optimizer lr weight_scale seed".split()


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that are saved in each of its checkpoints."""
    of_run = {name: getattr(args, name) for name in _REMEMBERED}
    data = args.data and str(pathlib.Path(args.data).resolve())
    return of_run | {"layers": list(args.layers), "lr": list(args.lr), "data": data}


def _begun(args: argparse.Namespace) -> int:
    """The step at which a run resumes, or 0; refuses checkpoints of a run with other options."""
    directory = pathlib.Path(args.checkpoint)
    if directory.exists():
        made_directory("--checkpoint", directory)
    there = checkpoints(directory)
    if there and not args.resume:
        raise FileExistsError(
            "`--checkpoint` must be an empty directory unless --resume is given. Got "
            f"{str(directory)!r}, which has a run."
        )
    if not there:
        return 0
    found = load_checkpoint(directory, previous=args.resume == "previous")
    asked = _asked(args)
    for name, value in _run_of(found, directory).items():
        if asked[name] != value:
            before, now = (
                ",".join(map(str, v)) if isinstance(v, list) else v for v in (value, asked[name])
            )
            raise ValueError(
                f"`--{name.replace('_', '-')}` must be {before}, as in the checkpoint. Got {now}."
            )
    return found.step


def _run_of(found: Checkpoint, directory: pathlib.Path) -> dict[str, Any]:
    """The options that `_asked` saved in a checkpoint."""
    try:
        run = found.info["notes"]["run"]
        if run.keys() != set(_REMEMBERED):
            raise ValueError(f"it holds {', '.join(run)}")
        known = run["activation"] in ACTIVATIONS and run["optimizer"] in OPTIMIZERS
        layers = run["layers"]
        sizes = isinstance(layers, list) and all(type(n) is int and n > 0 for n in layers)
        if not known or not sizes or not isinstance(run["data"], str | None):
            raise ValueError("its options are not from `jaxnn train`")
    except KeyError:
        raise ValueError(
            "`DIR` must be the DIR of `jaxnn train --checkpoint`. Got "
            f"{str(directory)!r}, which holds another kind of run."
        ) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"`DIR` must be the DIR of `jaxnn train --checkpoint`. Got {str(directory)!r}: {error}."
        ) from error
    return run


def evaluate(args: argparse.Namespace) -> int:
    """Measure a saved run; returns the exit code."""
    directory = pathlib.Path(args.directory)
    found = load_checkpoint(directory)
    run = argparse.Namespace(**_run_of(found, directory))
    run.data = args.data or run.data
    digits, error, metrics = _task(run)
    like = init_network(jax.random.key(0), (digits.x_train.shape[1], *run.layers, 10))
    pixels, images = len(found.leaves["params"]["['W1']"]), digits.x_train.shape[1]
    if pixels != images:
        raise ValueError(
            f"`--data` must hold images of {pixels} pixels, like the run's. Got {images} pixels."
        )
    best = "best_params" in found.leaves
    params = found.restore("best_params" if best else "params", like)
    sets = {"train": (digits.x_train, digits.t_train), "test": (digits.x_test, digits.t_test)}
    measured = jax.jit(lambda *given: {"loss": error(*given), **metrics(*given)})
    record = {}
    with passing("measuring"):
        for name, data in sets.items():
            means = measured(params, *data)
            record |= {f"{name}_{what}": float(value) for what, value in means.items()}
    step = Log.of(found.step, found.records).best_step if best else found.step
    if args.json:
        print_json({"step": step, "steps": found.step, **record}, args.stdout)
        return 0
    print(f"after step {step}" + (f", the best of {found.step} steps" if best else ""))
    for name, value in record.items():
        print(f"  {name.replace('_', ' '):14}  {value:.4f}")
    return 0


def _told(result: Fit) -> dict[str, Any]:
    """A result in the form of the JSON output."""
    measured = {f"{name}_{what}": [] for name in ("train", "test") for what in ("loss", "accuracy")}
    measured |= {name: values.tolist() for name, values in result.history.metrics.items()}
    return {**measured, "steps": result.status.step, "status": result.status.reason}


def _conclude(
    args: argparse.Namespace, results: Sequence[Fit], begun: int, seconds: float, say: Callable
) -> None:
    """Print the last lines of a run."""
    say()
    for lr, result in zip(args.lr, results, strict=True):
        status, metrics = result.status, result.history.metrics
        reason, step, leaf, cause = status.reason, status.step, status.leaf, status.cause
        place = f"lr {lr:g}: " if len(results) > 1 else ""
        if reason == "not finite":
            say(f"{place}stopped after step {step}: at the next one, {leaf} was not finite")
            if cause:
                say(cause)
        elif reason != "finished":
            more = (
                "; use --resume to continue" if reason == "interrupted" and args.checkpoint else ""
            )
            say(f"{place}stopped after step {step}: {reason}{more}")
        elif begun and step == begun:
            limit = "--epochs" if args.max_steps is None else "--max-steps"
            say(f"nothing left to do: the run had already reached {limit}")
        if "test_loss" in metrics:
            lowest = int(metrics["test_loss"].argmin())
            accuracy = metrics["test_accuracy"][lowest if args.patience else -1]
            taken = (
                f"{place}steps {begun} to {step} with {args.grad} gradients in {seconds:.1f} s "
                "overall"
            )
            say(f"{taken}: test accuracy {accuracy:.4f}")
            if args.patience:
                when = result.history.evaluated[lowest]
                say(f"{place}measured after step {when}, where the test loss was lowest")
            say(_lesson(args, result, lowest, place), end="")


def _lesson(args: argparse.Namespace, result: Fit, lowest: int, place: str) -> str:
    """A line on what a run teaches, such as overfitting; empty if there is nothing to say."""
    metrics, history = result.history.metrics, result.history
    began, ended = float(history.step_loss[0]), metrics["train_loss"][-1]
    test, train = metrics["test_loss"], metrics["train_loss"]
    if args.activation == "step":
        depth = len(args.layers)
        still = "W1 and b1 are" if depth == 1 else f"W1 to W{depth} and their biases are"
        return (
            f"{place}a step function has slope 0 wherever it has one: {still}\n"
            "unchanged, and only the last layer learns\n"
        )
    if ended > 1.1 * began:
        return (
            f"{place}diverged: the training loss went from {began:.4g} to {ended:.4g}; a smaller "
            "--lr may converge\n"
        )
    # Means over a fifth of the measurements keep a single lucky one from deciding.
    width = max(1, len(test) // 5)
    several = np.convolve(test, np.ones(width) / width, "valid")
    risen = min(test[-1] / test[lowest], several[-1] / several.min()) > 1.1
    if risen and train[-1] < train[lowest]:
        return (
            f"{place}overfitting: the test loss was lowest after step "
            f"{history.evaluated[lowest] if len(history.evaluated) else lowest + 1}\n"
            "and has risen by more than a tenth since, while the training loss went on falling\n"
        )
    return ""


def _gradient_check(task: Task, params: dict[str, jax.Array], key: jax.Array) -> dict[str, float]:
    """The relative difference of numerical and automatic gradient on ten images, by parameter."""
    digits, error, _ = task
    batch = sample_batch(key, (digits.x_train, digits.t_train), 10)
    numerical, automatic = numerical_grad(error)(params, *batch), jax.grad(error)(params, *batch)
    return {
        name: float(
            jnp.linalg.norm(numerical[name] - automatic[name])
            / (jnp.linalg.norm(automatic[name]) or 1.0)
        )
        for name in sorted(params)
    }
