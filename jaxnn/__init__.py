"""Losses, gradients two ways, and descent that compiles once and runs on CPU, GPU or TPU.

Losses        mean_squared_error, cross_entropy_error, softmax_cross_entropy, accuracy
Derivatives   numerical_diff, partial_derivative, directional_derivative, numerical_gradient, numerical_grad,
              numerical_jacobian, numerical_hessian
Check         check_gradient, assert_gradient
Descent       gradient_descent, descent_path, minimize
Network       init_network, predict, loss
Data          load_digits, load_mnist, one_hot, sample_batch
Training      fit, sweep, show_progress, progress_log, save_checkpoint, load_checkpoint
Results       GradientReport (and GradientError), DescentPath, Minimum (and Stop), Fit, History, Status, Progress, Checkpoint
Modules       jaxnn.surfaces: functions of one and two variables; jaxnn.plots: one function a picture;
              jaxnn.figures: all of them

At a shell: `jaxnn --help`.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxnn import figures as figures, plots as plots, surfaces as surfaces
    from jaxnn.checking.check import (
        assert_gradient as assert_gradient,
        check_gradient as check_gradient,
    )
    from jaxnn.checking.report import (
        GradientError as GradientError,
        GradientReport as GradientReport,
    )
    from jaxnn.checkpoint import (
        Checkpoint as Checkpoint,
        load_checkpoint as load_checkpoint,
        save_checkpoint as save_checkpoint,
    )
    from jaxnn.data import (
        Digits as Digits,
        load_digits as load_digits,
        load_mnist as load_mnist,
        one_hot as one_hot,
        sample_batch as sample_batch,
    )
    from jaxnn.descent import (
        DescentPath as DescentPath,
        DivergenceWarning as DivergenceWarning,
        Minimum as Minimum,
        Stop as Stop,
        descent_path as descent_path,
        gradient_descent as gradient_descent,
        minimize as minimize,
    )
    from jaxnn.losses import (
        accuracy as accuracy,
        cross_entropy_error as cross_entropy_error,
        mean_squared_error as mean_squared_error,
        softmax_cross_entropy as softmax_cross_entropy,
    )
    from jaxnn.network import (
        init_network as init_network,
        loss as loss,
        predict as predict,
    )
    from jaxnn.numerical.differences import (
        directional_derivative as directional_derivative,
        numerical_diff as numerical_diff,
        numerical_grad as numerical_grad,
        numerical_gradient as numerical_gradient,
        numerical_hessian as numerical_hessian,
        numerical_jacobian as numerical_jacobian,
        partial_derivative as partial_derivative,
    )
    from jaxnn.progress import (
        Progress as Progress,
        progress_log as progress_log,
        show_progress as show_progress,
    )
    from jaxnn.sweeps import (
        sweep as sweep,
    )
    from jaxnn.training import (
        Fit as Fit,
        History as History,
        Status as Status,
        fit as fit,
    )

# Imported when first used, so that `jaxnn --help` answers before JAX is loaded.
_ROOM_OF = {
    "assert_gradient": "checking.check",
    "check_gradient": "checking.check",
    "GradientError": "checking.report",
    "GradientReport": "checking.report",
    "Checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "Digits": "data",
    "load_digits": "data",
    "load_mnist": "data",
    "one_hot": "data",
    "sample_batch": "data",
    "DescentPath": "descent",
    "DivergenceWarning": "descent",
    "Minimum": "descent",
    "Stop": "descent",
    "descent_path": "descent",
    "gradient_descent": "descent",
    "minimize": "descent",
    "accuracy": "losses",
    "cross_entropy_error": "losses",
    "mean_squared_error": "losses",
    "softmax_cross_entropy": "losses",
    "init_network": "network",
    "loss": "network",
    "predict": "network",
    "directional_derivative": "numerical.differences",
    "numerical_diff": "numerical.differences",
    "numerical_grad": "numerical.differences",
    "numerical_gradient": "numerical.differences",
    "numerical_hessian": "numerical.differences",
    "numerical_jacobian": "numerical.differences",
    "partial_derivative": "numerical.differences",
    "Progress": "progress",
    "progress_log": "progress",
    "show_progress": "progress",
    "sweep": "sweeps",
    "Fit": "training",
    "History": "training",
    "Status": "training",
    "fit": "training",
}

__all__ = [*_ROOM_OF]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = version("jaxnn")


def __getattr__(name: str) -> Any:
    if name in ("surfaces", "plots", "figures"):
        return importlib.import_module(f"jaxnn.{name}")
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'jaxnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxnn.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOM_OF])
