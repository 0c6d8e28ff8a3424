"""What `jaxnn train` and `jaxnn eval` do with their arguments; each returns the exit code."""

import argparse
import functools
import json
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnn._arguments import arrays_of
from jaxnn._files import made_directory, replacing
from jaxnn.cli.choices import ACTIVATIONS, OPTIMIZERS
from jaxnn.cli.output import print_json, require_place
from jaxnn.data import Digits, load_digits, load_mnist, sample_batch
from jaxnn.descent import DivergenceWarning
from jaxnn.losses import accuracy
from jaxnn.network import init_network, loss, predict
from jaxnn.numerical.differences import numerical_grad
from jaxnn.training.checkpoint import checkpoints, load_checkpoint
from jaxnn.training.fit import fit
from jaxnn.training.history import Fit
from jaxnn.training.objective import Form, Objective
from jaxnn.training.progress import Progress, progress_log, show_progress, silent
from jaxnn.training.steps import loss_first, make_evaluate
from jaxnn.training.sweep import sweep


def train(args: argparse.Namespace) -> int:
    """Train, and show that the gradients agree first."""
    _require_options_that_fit(args)
    _join(args)
    alone = jax.process_index() == 0  # one process speaks for all
    say = print if alone and not args.json else silent
    digits, error, metrics = _task(args)
    begun = _remember(args) if args.checkpoint else 0
    train_set, test_set = (digits.x_train, digits.t_train), (digits.x_test, digits.t_test)
    sizes = (digits.x_train.shape[1], *args.layers, 10)
    init_key, check_key, fit_key = jax.random.split(jax.random.key(args.seed), 3)
    params = init_network(init_key, sizes, args.weight_scale)
    devices = jax.devices()
    say(
        f"{len(digits.t_train)} images to train on, {len(digits.t_test)} to test with; network "
        f"{'-'.join(map(str, sizes))} ({args.activation}), {sum(p.size for p in params.values())} "
        f"parameters; JAX {jax.__version__} on {devices[0].device_kind}"
        f"{f' x {len(devices)}' if len(devices) > 1 else ''}"
    )
    check = _gradient_check(error, params, train_set, check_key)
    say("\ngradient of the loss on 10 images, numerical against automatic:")
    for name, difference in check.items():
        shape = "x".join(map(str, params[name].shape))
        say(f"  {name:4} {shape:>8}   relative difference {difference:.1e}")
    if begun:
        say(f"\nresumed after step {begun}")
    if len(args.lr) > 1:
        say(f"\n{len(args.lr)} runs at once; the table is of the one with the lowest loss")
    say()
    results = _results(
        args,
        error,
        params,
        train_set,
        key=fit_key,
        test=test_set,
        metrics=metrics,
        on_progress=_on_progress(args, say),
    )
    seconds = time.perf_counter() - args.began
    if args.json and alone:
        told = [_told(result) | {"lr": lr} for lr, result in zip(args.lr, results, strict=True)]
        whole = told[0] if len(told) == 1 else {"runs": told}
        print_json({**whole, "gradient_check": check, "seconds": seconds})
    _conclude(args, results, begun, seconds, say)
    if all(result.status.reason == "not finite" for result in results):
        return 1
    return 130 if results[0].status.reason == "interrupted" else 0


def _require_options_that_fit(args: argparse.Namespace) -> None:
    if args.resume and not args.checkpoint:
        raise ValueError("`--resume` must come with --checkpoint DIR. Got no directory.")
    if len(args.lr) > 1 and (args.checkpoint or args.patience):
        raise ValueError(
            f"`--lr` must be one number with --checkpoint or --patience. Got {len(args.lr)} "
            f"numbers."
        )
    if args.every and not args.checkpoint:
        raise ValueError(f"`--every` must come with --checkpoint DIR. Got {args.every} alone.")
    if args.log:
        require_place("--log", args.log, args.checkpoint)


def _on_progress(args: argparse.Namespace, say: Callable) -> Callable[[Progress], None]:
    """What is told while a run goes on: a table or bar, and lines of a log."""
    watchers = [show_progress()] if say is print else []
    if args.log:
        watchers.append(progress_log(args.log))

    def on_progress(progress):
        for watcher in watchers:
            watcher(progress)

    return on_progress


def _results(
    args: argparse.Namespace, error: Callable, params: Any, data: Any, **options: Any
) -> list[Fit]:
    """One run for each learning rate."""
    optimizer = _optimizer(args)
    options |= {"epochs": args.epochs, "batch_size": args.batch_size}
    options |= {"grad": numerical_grad if args.grad == "numerical" else jax.grad}
    options |= {"replacement": args.replacement}
    if len(args.lr) > 1:
        return sweep(error, params, data, optimizer, jnp.array(args.lr), **options)
    devices = jax.device_count()
    result = _quietly(
        fit,
        error,
        params,
        data,
        optimizer(args.lr[0]),
        **options,
        patience=args.patience,
        checkpoint=args.checkpoint,
        resume={"newest": True, "previous": "previous", None: False}[args.resume],
        every=args.every,
        mesh=jax.make_mesh((devices,), ("devices",)) if devices > 1 else None,
        on_interrupt="return",
    )
    return [result]


def _quietly(run: Callable, *args: Any, **options: Any) -> Fit:
    """A run whose divergence is told in our own words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        return run(*args, **options)


def _join(args: argparse.Namespace) -> None:
    """Meet the other processes, if there are any."""
    given = {
        "--coordinator": args.coordinator,
        "--num-processes": args.num_processes,
        "--process-id": args.process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"`{missing[0]}` must be given with the other two. Got "
            f"{', '.join(set(given) - set(missing))}."
        )
    if missing and not args.distributed:
        return
    # Libraries below Python print while processes meet; standard output is for the result alone, so
    # theirs goes elsewhere.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        jax.distributed.initialize(*given.values())
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "`--distributed` must run under SLURM, Kubernetes, MPI or on a TPU pod, or come with "
            "--coordinator, "
            f"--num-processes and --process-id. Got {error}"
        ) from error


def _task(args: argparse.Namespace) -> tuple[Digits, Callable, Callable]:
    """The data, the loss and the metrics of a run."""
    activation = getattr(jax.nn, args.activation)
    digits = load_mnist(args.data) if args.data else load_digits()

    def error(params, x, t):
        return loss(params, x, t, activation)

    def metrics(params, x, t):
        return {"accuracy": accuracy(predict(params, x, activation), t)}

    return digits, error, metrics


def _optimizer(args: argparse.Namespace) -> Callable:
    """A function of the learning rate."""
    if args.optimizer == "momentum":
        return functools.partial(optax.sgd, momentum=0.9)
    return getattr(optax, args.optimizer)


# What `jaxnn eval` has to know of a run, and what must be the same when it is resumed.
_REMEMBERED = ("data", "layers", "activation", "optimizer", "lr", "weight_scale", "seed")


def _remember(args: argparse.Namespace) -> int:
    """Write down beside the checkpoints what the run is; or see that it is the same. Returns the
    step it is at.
    """
    directory = pathlib.Path(args.checkpoint)
    asked = {name: getattr(args, name) for name in _REMEMBERED}
    asked |= {
        "layers": list(args.layers),
        "lr": list(args.lr),
        "data": args.data and str(pathlib.Path(args.data).resolve()),
    }
    path = directory / "run.json"
    if args.resume and path.exists():
        for name, value in _read_run(directory).items():
            if asked[name] != value:
                before, now = (
                    ",".join(map(str, v)) if isinstance(v, list) else v
                    for v in (value, asked[name])
                )
                raise ValueError(
                    f"`--{name.replace('_', '-')}` must be {before}, as in {path}. Got {now}."
                )
    elif not path.exists():
        made_directory("--checkpoint", directory)
        with replacing(path) as file:
            file.write(json.dumps(asked).encode())
    there = checkpoints(directory)
    if there and not args.resume:
        raise FileExistsError(
            f"`--checkpoint` must be empty unless --resume is given. Got {str(directory)!r}, with "
            f"a run."
        )
    return load_checkpoint(directory, previous=args.resume == "previous").step if there else 0


def _read_run(directory: pathlib.Path) -> dict[str, Any]:
    """What `_remember` wrote."""
    try:
        run = json.loads((directory / "run.json").read_text())
        if run.keys() != set(_REMEMBERED):
            raise ValueError(f"it holds {', '.join(run)}")
        layers, known = (
            run["layers"],
            run["activation"] in ACTIVATIONS and run["optimizer"] in OPTIMIZERS,
        )
        if (
            not known
            or not isinstance(layers, list)
            or not all(type(n) is int and n > 0 for n in layers)
        ):
            raise ValueError(
                "its layers, activation or optimizer are none that `jaxnn train` writes"
            )
        if not isinstance(run["data"], str | None):
            raise ValueError("its data are no directory")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"`DIR` must be what `jaxnn train --checkpoint` was given. Got {str(directory)!r}: "
            f"{error}."
        ) from error
    return run


# Examples that `jaxnn eval` measures at once.
MEASURED = 1000


def evaluate(args: argparse.Namespace) -> int:
    """Measure a run that was saved."""
    directory = pathlib.Path(args.directory)
    run = argparse.Namespace(**_read_run(directory))
    run.data = args.data or run.data
    digits, error, metrics = _task(run)
    like = init_network(jax.random.key(0), (digits.x_train.shape[1], *run.layers, 10))
    found = load_checkpoint(directory)
    pixels, images = len(found.leaves["params"]["['W1']"]), digits.x_train.shape[1]
    if pixels != images:
        raise ValueError(
            f"`--data` must hold images of {pixels} pixels, as those of the run. Got {images} "
            f"pixels."
        )
    params = found.restore("best_params" if "best_params" in found.leaves else "params", like)
    objective = Objective(error, metrics, None, arrays_of(params)[0], Form())
    measure = jax.jit(make_evaluate(objective, MEASURED, None))
    sets = {"train": (digits.x_train, digits.t_train), "test": (digits.x_test, digits.t_test)}
    record = {
        f"{name}_{k}": float(v)
        for name, data in sets.items()
        for k, v in loss_first(measure(params, None, jax.random.key(0), data)).items()
    }
    if args.json:
        print_json({"step": found.step, **record})
        return 0
    print(f"after step {found.step}")
    for name, value in record.items():
        print(f"  {name.replace('_', ' '):14}  {value:.4f}")
    return 0


def _told(result: Fit) -> dict[str, Any]:
    """A result as JSON has it."""
    measured = {f"{name}_{what}": [] for name in ("train", "test") for what in ("loss", "accuracy")}
    measured |= {name: values.tolist() for name, values in result.history.metrics.items()}
    return {**measured, "steps": result.status.step, "status": result.status.reason}


def _conclude(
    args: argparse.Namespace, results: Sequence[Fit], begun: int, seconds: float, say: Callable
) -> None:
    """The last lines of a run."""
    say()
    for lr, result in zip(args.lr, results, strict=True):
        (reason, step, leaf), metrics = result.status, result.history.metrics
        place = f"lr {lr:g}: " if len(results) > 1 else ""
        if reason == "not finite":
            say(f"{place}stopped after step {step}: at the next one, {leaf} was not finite")
        elif reason != "finished":
            more = (
                "; --resume goes on from there"
                if reason == "interrupted" and args.checkpoint
                else ""
            )
            say(f"{place}stopped after step {step}: {reason}{more}")
        if "test_loss" in metrics:
            lowest = int(metrics["test_loss"].argmin())
            accuracy = metrics["test_accuracy"][lowest if args.patience else -1]
            best = f" after epoch {lowest + 1}, the best" if args.patience else ""
            taken = (
                f"{place}{step - begun} steps by {args.grad} gradients in {seconds:.1f} s, start "
                f"to end"
            )
            say(f"{taken}: test accuracy {accuracy:.4f}{best}")
            began, ended = float(result.history.step_loss[0]), metrics["train_loss"][-1]
            if ended > 1.1 * began:
                say(
                    f"{place}diverged: the training loss went from {began:.4g} to {ended:.4g}; a "
                    "smaller --lr may converge"
                )
            elif metrics["test_loss"][-1] > 1.1 * metrics["test_loss"][lowest]:
                say(
                    f"{place}overfitting: the test loss was lowest after epoch {lowest + 1} and "
                    f"has risen by over a tenth since"
                )


def _gradient_check(
    error: Callable,
    params: dict[str, jax.Array],
    train_set: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> dict[str, float]:
    """Relative difference of numerical and automatic gradient on ten images, for each parameter."""
    batch = sample_batch(key, train_set, 10)
    numerical, automatic = numerical_grad(error)(params, *batch), jax.grad(error)(params, *batch)
    return {
        name: float(
            jnp.linalg.norm(numerical[name] - automatic[name])
            / (jnp.linalg.norm(automatic[name]) or 1.0)
        )
        for name in sorted(params)
    }
