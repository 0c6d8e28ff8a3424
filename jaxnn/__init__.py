"""Gradient checks, numerical derivatives, losses, gradient descent and training in JAX.

- Losses: mean_squared_error, cross_entropy_error, softmax_cross_entropy, accuracy
- Derivatives: numerical_diff, partial_derivative, directional_derivative, numerical_gradient,
  numerical_grad, numerical_jacobian, numerical_hessian
- Check: check_gradient, assert_gradient, explain, watching
- Descent: gradient_descent, descent_path, minimize
- Network: init_network, predict, loss
- Data: load_digits, load_mnist, one_hot, sample_batch
- Training: fit, train (with Start, Feeding, Measuring, Saving, Reporting), sweep, show_progress,
  progress_log, save_checkpoint, load_checkpoint
- Results: GradientReport (and GradientError, Verdict, LeafReport, Entry), Explanation (and
  SourceLine, Birth, RuleReport, DigitsLost), WatchReport, DescentPath, Minimum (and Stop), Fit,
  Trained, History, Status, Progress, Checkpoint
- Modules: jaxnn.surfaces (functions of one and two variables), jaxnn.plots (one function per
  picture), jaxnn.figures (the chapter's)

At a shell: `jaxnn --help`.
"""

import ast
import importlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The one list of public names is the stub; each is imported when it is first used, so that
# `jaxnn --help` answers before JAX is loaded.
_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text())
_MODULE_OF = {
    alias.name: statement.module
    for statement in _STUB.body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}
_MODULES = {name for name, module in _MODULE_OF.items() if module == __name__}

__all__ = sorted(_MODULE_OF.keys() - _MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = version("jaxnn-gradients")  # on the package index, `jaxnn` is another project


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxnn.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(str(_MODULE_OF[name])), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
