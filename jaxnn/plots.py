"""Pictures: results in, Matplotlib Axes out. Nothing is computed here that a function of the library could give."""

from typing import Any

import numpy as np

from jaxnn.checking.report import LeafReport


def gradient_evidence(leaf: LeafReport, ax: Any = None) -> Any:
    """What a gradient check saw of one leaf: numerical slopes against the step, and how far they are from the gradient's.

    Above, the slopes, with the gradient's as a line and the best one with its bound. Below, the differences: coarse steps are
    off by truncation, fine ones by the noise of the function's values. A right gradient is met by the steps in between, down to
    the bound (dashed); a wrong one leaves a floor that no step goes below.

    Args:
      leaf: from `GradientReport.leaves`.
      ax: Axes to draw the differences on, alone; by default a new figure with both.

    Returns:
      The Axes of the differences.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        above, ax = plt.subplots(2, figsize=(6, 6), sharex=True, height_ratios=(1, 2), layout="constrained")[1]
        above.semilogx(leaf.steps, leaf.differences, "o-", color="black", label="numerical slope")
        above.axhline(leaf.autodiff, color="tab:red", ls="--", label="the gradient's slope")
        above.errorbar(
            leaf.step, leaf.numerical, leaf.bound, color="tab:blue", fmt="s", capsize=4, label="best, with its bound"
        )
        above.set(ylabel="slope")
        above.legend(fontsize="small")
    steps, slopes = np.array(leaf.steps), np.array(leaf.differences)
    size = max(abs(leaf.autodiff), abs(leaf.numerical), np.finfo(float).tiny)
    smallest = 1e-17
    ax.loglog(
        steps,
        np.maximum(abs(slopes - leaf.autodiff) / size, smallest),
        "o-",
        color="black",
        label="numerical slope - gradient's",
    )
    if np.isfinite(leaf.bound):
        ax.axhline(max(leaf.bound / size, smallest), color="tab:blue", ls="--", label="bound on the best numerical slope")
    if np.isfinite(leaf.noise) and leaf.noise > 0:
        ax.loglog(steps, leaf.noise / steps / size, color="tab:gray", ls=":", label="noise of the values / step")
    if np.isfinite(leaf.step):
        ax.axvline(leaf.step, color="tab:orange", lw=1, label="step used")
    ax.set(xlabel="step, in units of the entries' scale", ylabel="relative difference", title=f"{leaf.path}: {leaf.verdict}")
    ax.legend(fontsize="small")
    return ax
