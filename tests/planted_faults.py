"""Small faults planted in the library, one at a time: do the quick tests of their area notice?

    python tests/planted_faults.py             every fault
    python tests/planted_faults.py NAME ...    some of them

The fault is written into a copy of the package; the library itself stays as it is.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

HOUSE = pathlib.Path(__file__).parents[1]
# Seconds that the tests of one fault may take: what makes them hang has been noticed, too.
PATIENCE = 600


class Fault(NamedTuple):
    """What is written in the place of what.

    Attributes:
      name: of the fault.
      file: of the package.
      old: stands once in the file, and
      new: takes its place.
      tests: what pytest is given: the tests that ought to notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    def planted_in(self, text: str) -> str:
        """The text of the file with the fault in it."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: must stand once in {self.file}. Got {self.old!r}.")
        return text.replace(self.old, self.new)


PUSHED = "test_propagation.py -k 'pushed and ({})'"
LOST = "test_explain.py test_check.py -k 'digits or shakes or left or place'"

FAULTS = (
    Fault(
        "the whole report is shown without -v, too",
        "_pytest.py",
        "if whole is not None and item.config.option.verbose > 0:",
        "if whole is not None:",
        "test_annotations.py -k with_v",
    ),
    Fault(
        "a whole report is never coloured",
        "_pytest.py",
        "whole.text(painted) if coloured else",
        "whole.text() if coloured else",
        "test_annotations.py -k with_v",
    ),
    Fault(
        "a checkpoint is read whole, and then its arrays",
        "training/checkpoint.py",
        "found = _parsed(file)",
        "found = _parsed(io.BytesIO(file.read()))",
        "test_checkpoint.py -k 'array_by_array or whole'",
    ),
    Fault(
        "a seek below 0 is an error of the disk",
        "training/checkpoint.py",
        "if isinstance(error, OSError) and error.errno != errno.EINVAL:",
        "if isinstance(error, OSError):",
        "test_checkpoint.py -k changed_end",
    ),
    Fault(
        "labels are compared by the loss alone",
        "training/labels.py",
        "return objective.value_and_gradient(arrays, model_state, key, batch)[:2]",
        "return objective.value_and_gradient(arrays, model_state, key, batch)[:1]",
        "test_labels.py",
    ),
    Fault(
        "a label is tried alone, without another example",
        "training/labels.py",
        "leaf[np.array([row, beside])]",
        "leaf[np.array([row, row])]",
        "test_labels.py",
    ),
    Fault(
        "numbers are refused if the loss computes with them",
        "training/labels.py",
        "if np.array_equal(given, of_last) and not",
        "if not",
        "test_labels.py",
    ),
    Fault(
        "programs of jitted functions are kept whatever the settings",
        "_programs.py",
        "tuple(map(jax.typeof, leaves)), trace_context()",
        "tuple(map(jax.typeof, leaves)), None",
        "test_programs.py -k steps_of_a_jitted",
    ),
    Fault(
        "programs of a jitted loss serve any optimiser",
        "_programs.py",
        "found = of_other.setdefault(other, {})",
        "found = of_other.setdefault(function, {})",
        "test_programs.py -k steps_of_a_jitted",
    ),
    Fault(
        "True is 1 among the settings of a module",
        "_arguments.py",
        "((type(x), x.hex() if isinstance(x, float) else x) for x in self.leaves)",
        "((x.hex() if isinstance(x, float) else x) for x in self.leaves)",
        "test_programs.py -k settings",
    ),
    Fault(
        "entries that are slightly off count as right",
        "checking/locate.py",
        "not np.any((undecided | slightly) & ~off)",
        "not np.any(undecided & ~off)",
        "test_check.py -k off_by_less",
    ),
    Fault(
        "a loss in a descent has no name",
        "descent.py",
        'value.__name__ = getattr(f, "__name__", "f")',
        'value.__name__ = "value"',
        "test_watch.py -k by_its_name",
    ),
    Fault(
        "SIGTERM ends a watched program without a report",
        "cli/watch.py",
        "    if ours:\n        signal.signal(signal.SIGTERM, end)",
        "    if False:\n        signal.signal(signal.SIGTERM, end)",
        "test_watch.py -k a_signal_ends",
    ),
    Fault(
        "data frames in a tuple are refused",
        "training/train.py",
        "tuple(map(_columns, data)) if type(data) is tuple else _columns(data)",
        "_columns(data)",
        "test_loaders.py -k frame",
    ),
    Fault(
        "an accelerator evaluates as few entries as a CPU",
        "numerical/loop.py",
        '(2**24, most) if platform == "cpu" else (2**30, 4096)',
        "(2**24, most)",
        "test_propagation.py -k bounded_by_memory",
    ),
    Fault(
        "the newest programs are deleted",
        "_cache.py",
        "st_mtime, reverse=True",
        "st_mtime",
        "test_cache.py -k newest",
    ),
    Fault(
        "--no-cache is ignored",
        "cli/check.py",
        "        keep_programs()\n    targets, failures = _targets(args)\n    codes, to",
        "        pass\n    keep_programs()\n    targets, failures = _targets(args)\n    codes, to",
        "test_cache.py -k not_wanted",
    ),
    Fault(
        "a process that ignores Ctrl-C is not interrupted",
        "checking/watched.py",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "pass",
        "test_watch.py -k ignores_ctrl_c",
    ),
    Fault(
        "no function jumps",
        "checking/slope.py",
        "return bool(changes[-1]) and",
        "return False and",
        "test_check.py -k jump",
    ),
    Fault(
        "every program counts as wide",
        "numerical/float64.py",
        "return all(_widened_dtype(kind, dtype) == kind for kind in kinds)",
        "return True",
        LOST,
    ),
    Fault(
        "rounding to fewer digits counts as unchanged",
        "checking/programs.py",
        "changed = {*prints(), primitives.reduce_precision_p}",
        "changed = {*prints()}",
        "test_check.py -k rounds_away",
    ),
    Fault(
        "across a jump, further moves show a slope",
        "checking/locate.py",
        "not comparison.slope.jumps and _is_unclear(comparison)",
        "_is_unclear(comparison)",
        "test_check.py -k jump",
    ),
    Fault(
        "what float64 does not show agrees",
        "checking/locate.py",
        "if HIDDEN * slope.noise < best.size and",
        "if False and",
        "test_check.py -k float64_does_not_show",
    ),
    Fault(
        "a transposed function may not send",
        "checking/watch.py",
        "            _allow_transposing()\n",
        "",
        "test_watch.py -k transposed",
    ),
    Fault(
        "programs that were compiled before are compiled again after watching",
        "_programs.py",
        "jax.config.update(RETRACE, usual)",
        "trace_again()",
        "test_watch.py -k compiled_before",
    ),
    Fault(
        "nothing is looked for inside of a loop without a derivative",
        "checking/tape/walk.py",
        "if site.asked and not pulls[k] and any(map(has_custom_rule, equations_inside(site.eqn)))",
        "if False",
        "test_explain.py -k told_from",
    ),
    Fault(
        "only some iterations are searched",
        "checking/questions/rules.py",
        "most = None if report is not None else SAMPLE",
        "most = SAMPLE",
        "test_explain.py -k one_rule_of_several",
    ),
    Fault(
        "a rule in a narrower dtype is not looked at closely",
        "checking/questions/rules.py",
        "if wrong and not found and only_custom:",
        "if False:",
        "test_explain.py -k in_bfloat16",
    ),
    Fault(
        "an adaptive solver counts as not linear",
        "checking/questions/rules.py",
        "max(LINEAR, LINEAR_FOR_ERROR * worst)",
        "LINEAR",
        "test_explain.py -k as_linear_as",
    ),
    Fault(
        "a gradient in float64 is compiled twice",
        "checking/programs.py",
        "own = _wide_call(wide, dtype) if same else jitted(both)",
        "own = jitted(both)",
        "test_check.py -k compiled_once",
    ),
    Fault(
        "the whole report is the text of the error",
        "checking/report.py",
        "leaf._replace(entries=leaf.entries[: 0 if number else BRIEF])",
        "leaf",
        "test_check.py -k text_of_an_error",
    ),
    Fault(
        "a folder that the user chose is not used",
        "_cache.py",
        "if chosen or not is_on:",
        "if not is_on:",
        "test_cache.py -k chose",
    ),
    Fault(
        "only the first move of a tiny leaf is tried",
        "checking/locate.py",
        "WIDER = (1e4, 1e8, 1e12, 1e16, 1e20, 1e24, 1e28)",
        "WIDER = ()",
        "test_check.py -k 'tiny or rounding_is_checked'",
    ),
    Fault(
        "what cancels in the value is no reason",
        "checking/precision.py",
        "return _Shaken(moves, inner if is_zero else 0.0)",
        "return _Shaken(moves, 0.0)",
        "test_check.py -k only_rounding",
    ),
    Fault(
        "the phases are not turned",
        "checking/questions/phases.py",
        "np.exp(1j * np.arange(1,",
        "np.exp(0j * np.arange(1,",
        "test_check.py -k phases",
    ),
    Fault(
        "what is negligible is not that of one side",
        "checking/slope.py",
        "np.abs([right[first:], left[first:]])[:, :1]",
        "np.abs([quotients[first:]])[:, :1]",
        "test_check.py -k squared_hinge",
    ),
    Fault(
        "a point is sent in every call",
        "checking/watch.py",
        "            self._retraces += 1\n            trace_again()\n",
        "            pass\n",
        "test_watch.py -k sent_once",
    ),
    Fault(
        "under vmap the first example is sent",
        "checking/watch.py",
        "which = jnp.argmax(jax.vmap(wanted, (in_axes,))(given))",
        "which = 0",
        "test_watch.py -k named_with_its_call",
    ),
    Fault(
        "what was compiled before is not watched",
        "_programs.py",
        "    trace_again()\n    try:\n",
        "    try:\n",
        "test_watch.py -k compiled_before",
    ),
    Fault(
        "checks of our own are watched",
        "checking/watch.py",
        "if frame is not None and frame.f_code.co_filename.startswith(_OWN):",
        "if frame is None:",
        "test_watch.py -k not_watched",
    ),
    Fault(
        "gradients that are not finite are not looked for",
        "checking/watch.py",
        "if self.finite and form.gradient is not None:",
        "if False and form.gradient is not None:",
        "test_watch.py -k not_finite",
    ),
    Fault(
        "corners are not looked beside",
        "checking/questions/corners.py",
        "return any(map(_has_corner, leaves)) and not",
        "return False and not",
        "test_corners.py",
    ),
    Fault(
        "the cotangent of the value is 1",
        "checking/settings.py",
        "COTANGENT = 2",
        "COTANGENT = 1",
        "test_explain.py -k 'linear'",
    ),
    Fault(
        "an entry has the tangent 1 whatever is asked",
        "checking/scalar.py",
        "jnp.asarray(tangent, leaves[k].dtype)",
        "jnp.asarray(1, leaves[k].dtype)",
        "test_real_programs.py -k 'in_forward_mode'",
    ),
    Fault(
        "references are not replaced by values",
        "numerical/interpret.py",
        "if creates not in opened(program)[0].effects:",
        "if True:",
        "test_explain.py -k 'reference'",
    ),
    Fault(
        "structure finer than the steps is not thought of",
        "checking/questions/finer.py",
        "and noisy and not",
        "and False and not",
        "test_check.py -k 'structure'",
    ),
    Fault(
        "values are computed on the accelerator without float64",
        "checking/measure.py",
        "if (cpu := host()) is not None:",
        "if (cpu := None) is not None:",
        "test_check.py -k 'without_float64'",
    ),
    Fault(
        "an array is not said to be cut",
        "numerical/loop.py",
        "any(axes is not None for",
        "any(False for",
        "test_devices.py -k 'explicit'",
    ),
    Fault(
        "any transposed solver is right",
        "checking/questions/_solves.py",
        "error <= LOOSE:",
        "error <= 1:",
        "test_explain.py -k 'solve'",
    ),
    Fault(
        "all rules are asked of the tape",
        "checking/questions/rules.py",
        "suspicious <= checked.by_reference",
        "not suspicious",
        "test_explain.py -k 'only_custom'",
    ),
    # The check: slopes and verdicts.
    Fault(
        "caution a tenth",
        "checking/slope.py",
        "CAUTION = 3.0",
        "CAUTION = 0.3",
        "test_slope.py",
    ),
    Fault(
        "no finer step is heard against an estimate",
        "checking/slope.py",
        "finer = (rung > rung[best]) & (apart > bound + bound[best])",
        "finer = (rung > rung[best]) & (apart < 0)",
        "test_slope.py test_check.py -k 'faster or slope or kink or HARD or hard'",
    ),
    Fault(
        "float32 is taken for float64",
        "checking/slope.py",
        "FLOAT32_ROUNDINGS = 64",
        "FLOAT32_ROUNDINGS = 0",
        "test_slope.py test_check.py -k 'bound_holds or rounded_to_float32'",
    ),
    Fault(
        "a part's bound keeps its unit",
        "checking/slope.py",
        "bound=self.bound / weight,",
        "bound=self.bound,",
        "test_locate.py",
    ),
    Fault(
        "one of two lines confirms a leaf",
        "checking/locate.py",
        "return all(c.slope.bound <= max(SHARP",
        "return any(c.slope.bound <= max(SHARP",
        "test_locate.py",
    ),
    Fault(
        "leaves of all sizes are asked together",
        "checking/locate.py",
        "CLASS = 1e3",
        "CLASS = 1e9",
        "test_locate.py",
    ),
    Fault(
        "the line that is known less is reported",
        "checking/locate.py",
        "closest = min(self.asked,",
        "closest = max(self.asked,",
        "test_locate.py test_slope.py",
    ),
    Fault(
        "ten times ten roundings are forgiven",
        "checking/precision.py",
        "SHAKES = 10",
        "SHAKES = 1000",
        LOST,
    ),
    Fault(
        "half of the digits that are left are counted",
        "checking/precision.py",
        "sizes = np.maximum(np.abs(self.own), np.abs(self.wide))[counts]",
        "sizes = np.minimum(np.abs(self.own), np.abs(self.wide))[counts]",
        LOST,
    ),
    Fault(
        "a leaf is judged by float16's digits",
        "checking/measure.py",
        "tolerances = list(map(reach, dtypes))",
        'tolerances = [reach("float16") for _ in dtypes]',
        "test_check.py -k 'not_called_wrong or half_of or formula'",
    ),
    Fault(
        "series are cut off at a thousandth",
        "checking/evidence.py",
        "OF_RULES, OF_SERIES = 100, 1e-9",
        "OF_RULES, OF_SERIES = 100, 1e-3",
        "test_evidence.py test_explain.py -k 'evidence or rule or reaches'",
    ),
    Fault(
        "verdicts are withheld ten times as late",
        "checking/evidence.py",
        "BLIND = 0.1",
        "BLIND = 1.0",
        "test_evidence.py test_check.py -k 'evidence or faster'",
    ),
    Fault(
        "the smaller error counts",
        "checking/evidence.py",
        "np.maximum(np.minimum(left, right) - claim, claim - np.maximum(left, right))",
        "np.maximum(np.minimum(left, right) - claim, claim - np.minimum(left, right))",
        "test_evidence.py",
    ),
    Fault(
        "an entry of a packed leaf is its neighbour's",
        "checking/packed.py",
        "leaves[k], low = flat[low:high].reshape(shape), high",
        "leaves[k], low = np.roll(flat[low:high], 1).reshape(shape), high",
        "test_locate.py",
    ),
    Fault(
        "an entry that is drawn is its neighbour's",
        "checking/moves.py",
        "index = (np.arange(low, high) - spread(origins)).astype(np.uint32)",
        "index = (np.arange(low, high) - spread(origins) + 1).astype(np.uint32)",
        "test_locate.py",
    ),
    Fault(
        "every direction is the first",
        "checking/moves.py",
        "q.seed * np.array([0x9E3779B9], np.uint32)",
        "0 * q.seed * np.array([0x9E3779B9], np.uint32)",
        "test_locate.py",
    ),
    Fault(
        "the usual size is a square",
        "checking/moves.py",
        "return math.sqrt(square / x.size)",
        "return square / x.size",
        "test_locate.py test_check.py -k 'leaves or too_long_or_too_short'",
    ),
    Fault(
        "a complex cotangent is not conjugated",
        "checking/site.py",
        "claims.append(real_form(jnp.conj(claim)) if paired[-1] else claim)",
        "claims.append(real_form(claim) if paired[-1] else claim)",
        "test_explain.py test_real_programs.py -k 'complex'",
    ),
    Fault(
        "a line's rounding is forgiven twice",
        "checking/line.py",
        "return excess(self.difference, self.slope.bound + self.slack)",
        "return excess(self.difference, 10 * (self.slope.bound + self.slack))",
        "test_locate.py test_check.py -k 'leaves or formula or counted'",
    ),
    Fault(
        "half of the steps are enough for anything",
        "checking/line.py",
        "if slope.bound <= enough or settled or len(first) == RUNGS:",
        "if slope.bound <= enough or settled or len(first) >= HALF:",
        "test_check.py -k 'faster or too_long or verdict_and_place'",
    ),
    Fault(
        "a formula may be off by a thousand roundings",
        "checking/evidence.py",
        "OF_RULES, OF_SERIES = 100, 1e-9",
        "OF_RULES, OF_SERIES = 1000, 1e-9",
        "test_evidence.py test_check.py -k 'evidence or formula'",
    ),
    Fault(
        "a hundred times as many roundings between two calls",
        "checking/evidence.py",
        "ROUNDINGS_BETWEEN_CALLS = 1e3",
        "ROUNDINGS_BETWEEN_CALLS = 1e5",
        "test_evidence.py",
    ),
    Fault(
        "the slopes of both sides change places",
        "checking/slope.py",
        "if scale > 0 else (self.right, self.left)",
        "if scale > 0 else (self.left, self.right)",
        "test_slope.py test_locate.py -k 'kink'",
    ),
    Fault(
        "constants in a gradient are rounded more",
        "checking/measure.py",
        "OF_CLAIMS, OF_CONSTANTS = 16, 4",
        "OF_CLAIMS, OF_CONSTANTS = 16, 400",
        "test_check.py -k 'formula or counted or entries'",
    ),
    Fault(
        "a hand-written gradient keeps its own order",
        "checking/by_hand.py",
        "result = tuple(result[i] for i in order)",
        "result = tuple(result)",
        "test_check.py -k 'by_hand'",
    ),
    Fault(
        "bits are mixed once",
        "checking/moves.py",
        "return bits ^ (bits >> 16)",
        "return bits",
        "test_locate.py",
    ),
    Fault(
        "a loop is never about to converge",
        "checking/further.py",
        "(moved <= NEARLY**2 * sizes)",
        "(moved <= NEARLY**8 * sizes)",
        "test_check.py -k 'loose or solver or implicit'",
    ),
    Fault(
        "a solver runs no further",
        "checking/further.py",
        "correction = solved(parts, [r / scale for r in rest], inner)",
        "correction = [0 * r for r in rest]",
        "test_check.py -k 'loose or solver or implicit'",
    ),
    # The check: what is said.
    Fault(
        "the logarithm divides",
        "checking/nan_causes.py",
        'log_p: Cause(\n        "the logarithm of 0, or of a negative number",',
        'log_p: Cause(\n        "a division by 0",',
        "test_explain.py -k 'reason or born or power'",
    ),
    Fault(
        "the root's slope is that of a power",
        "checking/nan_causes.py",
        '"",\n        "its slope at 0 is infinite",\n        f"{_SAFE}, as in `jnp.cbrt',
        '"",\n        "its slope at 1 is infinite",\n        f"{_SAFE}, as in `jnp.cbrt',
        "test_explain.py -k 'reason or born or power'",
    ),
    Fault(
        "what is carried never starts to move",
        "checking/tape/inside.py",
        "moving[n : n + m] = [(a or b) and floats",
        "moving[n : n + m] = [a and floats",
        "test_explain.py -k 'named or iteration or loop'",
    ),
    Fault(
        "a reversed loop is walked forwards",
        "checking/tape/inside.py",
        '[:: -1 if parts.options["reverse"] else 1]',
        "[::1]",
        "test_explain.py -k 'named or iteration or loop'",
    ),
    Fault(
        "the held verdict is not asked for",
        "checking/questions/detached.py",
        "leaf.verdict is Verdict.DIFFERS and again[leaf.path].verdict.ok",
        "leaf.verdict is Verdict.DIFFERS",
        "test_detached.py",
    ),
    Fault(
        "what is stopped moves on",
        "checking/held.py",
        "return lax.all_gather(x, _AXIS)[0]",
        "return lax.all_gather(x, _AXIS)[1]",
        "test_detached.py",
    ),
    Fault(
        "a mask is blamed before NaN",
        "checking/questions/births.py",
        "worst = max((levels[slot] for slot in takers), default=0)",
        "worst = min((levels[slot] for slot in takers), default=0)",
        "test_explain.py -k 'from_the_start'",
    ),
    Fault(
        "a loose solver may change the gradient",
        "checking/questions/solvers.py",
        "STEADY = 0.1",
        "STEADY = 1e3",
        "test_check.py -k 'loose or solver or fixed_point'",
    ),
    Fault(
        "a line is named for any share of the loss",
        "checking/questions/digits.py",
        "SHARE = 0.25",
        "SHARE = 0.0",
        LOST,
    ),
    Fault(
        "an axis off by one",
        "checking/patterns.py",
        "all have index {found.index[0, axis]} on axis {axis}",
        "all have index {found.index[0, axis]} on axis {axis + 1}",
        "test_check.py -k 'pattern or ratio'",
    ),
    Fault(
        "a mean is taken for a sum",
        "checking/patterns.py",
        "if _alike(wrong.ratio, 1 / count):",
        "if _alike(wrong.ratio, 1 / (count + 1)):",
        "test_check.py -k 'pattern or ratio'",
    ),
    Fault(
        "the conjugate is not taken",
        "checking/findings.py",
        "return complex(x, -y)",
        "return complex(x, y)",
        "test_check.py -k 'complex or conjugated'",
    ),
    Fault(
        "digits that were asked for are not missed",
        "checking/report.py",
        "right = min(leaf.digits, leaf.own_dtype_digits) if seen",
        "right = max(leaf.digits, leaf.own_dtype_digits) if seen",
        "test_check.py test_explain.py -k 'digits'",
    ),
    Fault(
        "wrong and short of digits exit as right",
        "checking/report.py",
        "if not self.verdict.ok else int(not self.ok)",
        "if not self.verdict.ok else 0",
        "test_check.py test_explain.py -k 'digits'",
    ),
    Fault(
        "a loop's rows are stacked in the order of their steps",
        "checking/tape/layout.py",
        'in_place = ys if not parts.options["reverse"] else ys[::-1]',
        "in_place = ys",
        "test_explain.py -k 'loop'",
    ),
    Fault(
        "cotangents replace each other",
        "checking/tape/walk.py",
        "x if slot not in cotangents else cotangents[slot] + x",
        "x",
        "test_explain.py -k 'loop or walk'",
    ),
    Fault(
        "infinity is called NaN",
        "checking/questions/births.py",
        'kind = "NaN" if worst == 2 else "infinity"',
        'kind = "NaN" if worst >= 1 else "infinity"',
        "test_explain.py -k 'from_the_start'",
    ),
    Fault(
        "a rule's error is told beside its smallest entry",
        "checking/questions/rules.py",
        "most = max(wrong, key=lambda e: abs(e.autodiff - e.numerical))",
        "most = min(wrong, key=lambda e: abs(e.autodiff - e.numerical))",
        "test_explain.py -k 'off_by_most'",
    ),
    Fault(
        "the first iterations alone are looked at",
        "checking/questions/rules.py",
        "np.linspace(0, len(insides) - 1, min(len(insides), SAMPLE))",
        "np.arange(min(len(insides), SAMPLE))",
        "test_explain.py -k 'iteration'",
    ),
    Fault(
        "equal values share a digit less",
        "checking/questions/digits.py",
        "same = np.log10(np.maximum(np.abs(a), np.abs(b)) / np.abs(result))",
        "same = np.log10(np.minimum(np.abs(a), np.abs(b)) / np.abs(result)) - 1",
        LOST,
    ),
    Fault(
        "a percentage is a fraction",
        "checking/findings.py",
        'off = f"{100 * self.difference:.3g} %"',
        'off = f"{self.difference:.3g} %"',
        "test_explain.py -k 'off_by_most'",
    ),
    Fault(
        "a column's number is taken for the line's",
        "checking/findings.py",
        "file, number = parts[0], int(parts[1]) if len(parts) > 1 else 0",
        "file, number = parts[0], int(parts[-1]) if len(parts) > 1 else 0",
        "test_explain.py test_check.py -k 'line or born or where'",
    ),
    # Numerical derivatives.
    Fault(
        "a window's stride is ignored",
        "numerical/slab_rules.py",
        "index[a] = jnp.clip(at // stride[a], 0, n - 1)",
        "index[a] = jnp.clip(at, 0, n - 1)",
        PUSHED.format("slice or strides or theta"),
    ),
    Fault(
        "what lies between strides is inside",
        "numerical/slab_rules.py",
        " & (at < n * stride[a]) & (at % stride[a] == 0)",
        " & (at < n * stride[a])",
        PUSHED.format("slice or strides or theta"),
    ),
    Fault(
        "reversed but for one",
        "numerical/slab_rules.py",
        "n - 1 - i if a in dimensions",
        "n - i if a in dimensions",
        PUSHED.format("slice"),
    ),
    Fault(
        "padding inside is forgotten",
        "numerical/slab_rules.py",
        "index.append(low + i * (inside + 1))",
        "index.append(low + i)",
        PUSHED.format("pad"),
    ),
    Fault(
        "a window keeps its index beside padding",
        "numerical/slab_rules.py",
        "if set(one) != {1} or tuple(pad) != (0, 0)]",
        "if set(one) != {1}]",
        PUSHED.format("window or pool"),
    ),
    Fault(
        "a kernel's dilation is ignored",
        "numerical/slab_rules.py",
        'tap[d] * params["rhs_dilation"][d],',
        "tap[d],",
        PUSHED.format("conv"),
    ),
    Fault(
        "a change times two other changes is lost",
        "numerical/slab_rules.py",
        "        pairs.append((lhs.difference, rhs.difference))\n",
        "",
        PUSHED.format("product"),
    ),
    Fault(
        "a scan is always finite",
        "numerical/propagate.py",
        "self.loops_finite.append(_scan_is_finite(eqn.params, args, levels))",
        "self.loops_finite.append(jnp.array(True))",
        "test_propagation.py -k 'not_finite'",
    ),
    Fault(
        "a scan is finite whose first step is",
        "numerical/propagate.py",
        "parts.xs, **parts.options)[1].all()",
        "parts.xs, **parts.options)[1].any()",
        "test_propagation.py -k 'not_finite'",
    ),
    Fault(
        "different programs share a key",
        "numerical/interpret.py",
        "            _fingerprint_of_parameters(eqn),\n",
        "            type(_fingerprint_of_parameters(eqn)),\n",
        "test_programs.py -k 'told_apart or seen'",
    ),
    Fault(
        "programs that return other values share a key",
        "numerical/interpret.py",
        "return inputs, body, tuple(map(atom, jaxpr.outvars))",
        "return inputs, body, len(jaxpr.outvars)",
        "test_programs.py -k 'told_apart or seen'",
    ),
    Fault(
        "two traces with other numbers are one",
        "numerical/interpret.py",
        "return numbers[0] == numbers[1]",
        "return len(numbers[0]) == len(numbers[1])",
        "test_check.py test_programs.py -k 'deterministic or traces'",
    ),
    Fault(
        "a small array has the steps of a large one",
        "numerical/differences.py",
        "jnp.minimum(1, 128 * rms)",
        "jnp.maximum(1, 128 * rms)",
        "test_differences.py -k 'step or scheme or truncation'",
    ),
    Fault(
        "the largest step along a direction",
        "numerical/differences.py",
        "h = functools.reduce(jnp.minimum, steps)",
        "h = functools.reduce(jnp.maximum, steps)",
        "test_differences.py -k 'direction'",
    ),
    Fault(
        "one end is counted where there are two",
        "numerical/loop.py",
        "fitting = budget // max(1, 2 * bytes_per_entry)",
        "fitting = budget // max(1, bytes_per_entry)",
        "test_propagation.py -k 'batch'",
    ),
    Fault(
        "dtypes that stay short are not told",
        "numerical/float64.py",
        "self.narrow.update((eqn.primitive.name, dtype) for dtype in kept)",
        "self.narrow.update(())",
        "test_real_programs.py -k 'callback'",
    ),
    Fault(
        "axes change places where an index is unravelled",
        "numerical/slab.py",
        "strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]",
        "strides = [math.prod(shape[:a]) for a in range(len(shape))]",
        "test_slab.py",
    ),
    Fault(
        "indices that are equal are taken for the same",
        "numerical/slab.py",
        "i[0] if all(j is i[0] for j in i) else None",
        "i[0] if all((j is None) == (i[0] is None) for j in i) else None",
        "test_slab.py",
    ),
    Fault(
        "a reduced axis keeps its place",
        "numerical/slab_rules.py",
        "return [(tuple(i for a, i in enumerate(index) if a not in axes), x) for x in results]",
        "return [(tuple(index[: len(index) - len(axes)]), x) for x in results]",
        PUSHED.format("reduction"),
    ),
    Fault(
        "a gathered entry is one beside it",
        "numerical/slab_rules.py",
        "same = same & (origin == (0 if x.index[a] is None else x.index[a].astype(jnp.int32)))",
        "same = same & (origin >= (0 if x.index[a] is None else x.index[a].astype(jnp.int32)))",
        PUSHED.format("gather"),
    ),
    Fault(
        "a joined array begins at the one before",
        "numerical/slab_rules.py",
        "sum(jnp.shape(base_of(x))[dimension] for x in ins[: slabs[0]])",
        "sum(1 for x in ins[: slabs[0]])",
        PUSHED.format("concatenate or attention"),
    ),
    Fault(
        "the Hessian has the gradient's step",
        "numerical/differences.py",
        "batch_size, h, method, mesh)._replace(root=4)",
        "batch_size, h, method, mesh)._replace(root=3)",
        "test_differences.py -k 'hessian or second or steps'",
    ),
    Fault(
        "a given step is divided by once",
        "numerical/differences.py",
        'else 2 * h if options.scheme == "central" else h',
        "else h",
        "test_differences.py -k 'step or scheme or truncation'",
    ),
    Fault(
        "a step too small is a derivative of 0",
        "numerical/differences.py",
        "return up, down, jnp.where(up == down, jnp.nan, taken)",
        "return up, down, jnp.where(up == down, 1, taken)",
        "test_differences.py -k 'too_small'",
    ),
    # Training.
    Fault(
        "sums are not compensated",
        "training/measuring.py",
        "return new, (new - total) - term",
        "return new, 0 * lost",
        "test_fit.py test_examples.py -k 'measure or terms'",
    ),
    Fault(
        "a smaller batch counts as a whole one",
        "training/measuring.py",
        " - short * (piece.batch_size - piece.rest)",
        "",
        "test_fit.py test_examples.py -k 'measure'",
    ),
    Fault(
        "a guarded step does not look at its parameters",
        "training/steps.py",
        "finite = finite.at[1:].set(_finite(new, way))",
        "finite = finite.at[1:].set(True)",
        "test_saves.py -k 'large_state'",
    ),
    Fault(
        "only parameters are watched",
        "training/steps.py",
        "name in way.unwatched or jnp",
        "not name.startswith('params') or jnp",
        "test_steps.py -k 'state_is_watched'",
    ),
    Fault(
        "what is left out is taken",
        "training/steps.py",
        "functools.partial(jnp.where, jnp.all(finite)), new, state)",
        "lambda new, old: new, new, state)",
        "test_steps.py test_train.py -k 'left_out'",
    ),
    Fault(
        "a scale is not asked for by sam",
        "descent.py",
        'more |= {"obj_fn": value_fn, "grad_fn": grad_fn}',
        "pass",
        "test_steps.py -k 'sam or sophia'",
    ),
    Fault(
        "a refused save is not tried again",
        "training/saves.py",
        "for pause in (*PAUSES, None):",
        "for pause in (None,):",
        "test_saves.py -k 'tried_again'",
    ),
    Fault(
        "a refused save ends the run",
        "training/saves.py",
        "        except OSError as error:\n            warnings.warn(",
        "        except ZeroDivisionError as error:\n            warnings.warn(",
        "test_saves.py -k 'goes_on'",
    ),
    Fault(
        "what ends a run comes without its result",
        "training/run.py",
        "failure.fit = self.result()",
        "failure.fit = None",
        "test_fit.py test_saves.py -k 'goes_on'",
    ),
    Fault(
        "a link is followed",
        "_files.py",
        "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW",
        "os.O_RDWR | os.O_CREAT",
        "test_saves.py -k 'link'",
    ),
    Fault(
        "anything true stops a run",
        "training/run.py",
        "if isinstance(wish, bool | np.bool_) and wish:",
        "if np.any(wish):",
        "test_fit.py -k 'callback_may_return'",
    ),
    Fault(
        "an error of a loader loses the batches before it",
        "training/examples.py",
        "        if group:\n            yield group, False\n        raise",
        "        raise",
        "test_loaders.py -k 'error_of_a_loader'",
    ),
    Fault(
        "a signal waits for the loader",
        "training/examples.py",
        "while not (future.done() or stopped()):",
        "while not future.done():",
        "test_loaders.py -k 'signal'",
    ),
    Fault(
        "a program for each number of batches",
        "training/examples.py",
        "fill = together - steps if of_group == size else 0",
        "fill = 0",
        "test_loaders.py -k 'share_a_program'",
    ),
    Fault(
        "Python aborts if a loader computes when it exits",
        "training/examples.py",
        "thread.join(max(0.0, until - time.monotonic()))",
        "pass",
        "test_loaders.py -k 'python_exits'",
    ),
    Fault(
        "a test set is named like any other",
        "training/train.py",
        'return "test" if name == "test" else',
        'return "test" if True else',
        "test_loaders.py -k 'another_form'",
    ),
    Fault(
        "the losses of steps go into the log",
        "training/progress.py",
        " measures step_loss",
        " measures",
        "test_progress.py -k 'added_to'",
    ),
    Fault(
        "a line in no file is marked",
        "checking/findings.py",
        "        if line.file:\n            yield one, line",
        "        if True:\n            yield one, line",
        "test_annotations.py -k 'in_no_file'",
    ),
    Fault(
        "an array in a file is read whole",
        "training/examples.py",
        "stream = stream or any(map(_is_elsewhere, leaves))",
        "pass",
        "test_loaders.py -k 'in_slices'",
    ),
    Fault(
        "metrics may have a value for each example",
        "training/objective.py",
        "if of_one[name].shape != measured.shape:",
        "if False:",
        "test_loaders.py -k 'metrics'",
    ),
    Fault(
        "an annealed loss diverges",
        "training/fit.py",
        "    if jax.process_count() == 1:\n        given",
        "    if False:\n        given",
        "test_fit.py -k 'annealed'",
    ),
    Fault(
        "every example of a batch is to blame",
        "training/cause.py",
        "bad = ~_finite_alone(loss, moving, given.batch)",
        "bad = np.ones(len(given.rows), bool)",
        "test_steps.py -k 'to_blame'",
    ),
    Fault(
        "a step of one's own keeps its loss in the record",
        "training/task.py",
        'value = record.pop("loss")',
        'value = record["loss"]',
        "test_train.py -k 'to_the_bit or told'",
    ),
    Fault(
        "keys begin anew with each piece",
        "training/steps.py",
        "jax.random.fold_in(key, first + i)",
        "jax.random.fold_in(key, i)",
        "test_fit.py test_examples.py -k 'key or epochs or batches_of_each'",
    ),
    Fault(
        "the last example is never drawn",
        "training/steps.py",
        "jax.random.randint(key, (size,), 0, count, jnp.int32)",
        "jax.random.randint(key, (size,), 0, count - 1, jnp.int32)",
        "test_fit.py -k 'replacement or drawn'",
    ),
    Fault(
        "saves wait for the end of a chunk",
        "training/run.py",
        "longest = min(longest, self.config.saves.every - step % self.config.saves.every)",
        "pass",
        "test_fit.py test_saves.py -k 'resumed or however_fast'",
    ),
    Fault(
        "patience of one more",
        "training/run.py",
        "self.now.log.waited >= patience",
        "self.now.log.waited > patience",
        "test_fit.py -k 'patience'",
    ),
    Fault(
        "as good is better",
        "training/history.py",
        "better = number < self.best",
        "better = number <= self.best",
        "test_fit.py test_saves.py -k 'patience or best'",
    ),
    Fault(
        "a resumed epoch forgets its losses",
        "training/history.py",
        "            total=total,\n",
        "            total=0.0,\n",
        "test_fit.py test_saves.py -k 'rows or mean_loss'",
    ),
    Fault(
        "examples of one shape are the same",
        "training/saves.py",
        "total = zlib.crc32(some.tobytes(), zlib.crc32(head, total))",
        "total = zlib.crc32(head, total)",
        "test_fit.py test_saves.py -k 'another_run'",
    ),
    Fault(
        "a file's step may be any",
        "training/checkpoint.py",
        "if named and int(named[1]) != found.step:",
        "if named and int(named[1]) < 0:",
        "test_checkpoint.py test_saves.py -k 'renamed or whole or changed_bytes'",
    ),
    Fault(
        "bytes may come before a checkpoint",
        "training/checkpoint.py",
        r'if file.read(4) != b"PK\x03\x04":',
        "if not file.read(4):",
        "test_checkpoint.py -k 'whole or changed_bytes or previous'",
    ),
    Fault(
        "one checkpoint more is kept",
        "training/checkpoint.py",
        "checkpoints(folder)[:-keep]",
        "checkpoints(folder)[: -keep - 1]",
        "test_checkpoint.py -k 'newest'",
    ),
    Fault(
        "a saved learning rate wins",
        "training/optimizers.py",
        "hyperparams=new.hyperparams",
        "hyperparams=old.hyperparams",
        "test_saves.py -k 'learning_rate'",
    ),
    Fault(
        "the fastest process sets the pace",
        "training/together.py",
        "pace=int(of_all[:, -1].min())",
        "pace=int(of_all[:, -1].max())",
        "test_saves.py -k 'processes'",
    ),
    Fault(
        "the first run of a sweep is told, not the best",
        "training/sweep.py",
        "int(np.nanargmin(",
        "int(np.nanargmax(",
        "test_fit.py -k 'sweep'",
    ),
    Fault(
        "a default key is passed over",
        "training/objective.py",
        "optional = key is not None and by_keyword and key.default is not key.empty",
        "optional = key is not None and by_keyword and key.default is key.empty",
        "test_fit.py test_examples.py -k 'key or state'",
    ),
    Fault(
        "an epoch's seconds are all of the last one's",
        "training/history.py",
        "self.begun, self.spent = self.step if step is None else step, 0.0",
        "self.begun, self.spent = self.step if step is None else step, self.spent",
        "test_saves.py -k 'mean_loss or rows'",
    ),
    Fault(
        "missing values are those before",
        "training/history.py",
        "values.append(record.get(name, nothing))",
        "values.append(record.get(name, like))",
        "test_saves.py -k 'nan_there'",
    ),
    Fault(
        "half as many are sampled for a checksum",
        "training/saves.py",
        "step = max(1, len(leaf) // SAMPLED) if leaf.ndim else 1",
        "step = max(1, 2 * len(leaf) // SAMPLED) if leaf.ndim else 1",
        "test_fit.py test_saves.py -k 'another_run or checksum'",
    ),
    Fault(
        "one process that wants to stop is not heard",
        "training/together.py",
        "for flag in of_all[:, :-2].any(axis=0))",
        "for flag in of_all[:, :-2].all(axis=0))",
        "test_saves.py -k 'processes'",
    ),
    Fault(
        "a chunk grows without bound",
        "training/measuring.py",
        "return max(1, min(GROWTH * pace, fitting))",
        "return max(1, fitting)",
        "test_fit.py test_examples.py -k 'pace or next_chunk'",
    ),
    Fault(
        "the last row of a piece is left out",
        "training/examples.py",
        "stop = min(first + self.steps, of_epoch)",
        "stop = min(first + self.steps, of_epoch - 1)",
        "test_fit.py test_examples.py -k 'streamed or memory_map'",
    ),
    # Losses, the network, the data, descent.
    Fault(
        "one class for all examples",
        "losses.py",
        "t = jnp.argmax(t, axis=-1)",
        "t = jnp.argmax(t, axis=0)",
        "test_losses.py",
    ),
    Fault(
        "probabilities may be 1.1",
        "losses.py",
        "PROBABLE = 0.01",
        "PROBABLE = 0.1",
        "test_losses.py test_bad_input.py -k 'cross_entropy or losses or probabilities'",
    ),
    Fault(
        "delta is ten times as large",
        "losses.py",
        "= 1e-7,",
        "= 1e-6,",
        "test_losses.py",
    ),
    Fault(
        "weights ten times as large",
        "network.py",
        "weight_scale: float = 0.01",
        "weight_scale: float = 0.1",
        "test_network.py",
    ),
    Fault(
        "the scores are activated",
        "network.py",
        "if i < depth:",
        "if i <= depth:",
        "test_network.py",
    ),
    Fault(
        "the seed of the split is ignored",
        "data.py",
        "np.random.default_rng(seed)",
        "np.random.default_rng(0)",
        "test_data.py -k 'digits or seed'",
    ),
    Fault(
        "pixels of 15 shades",
        "data.py",
        "_rows(images, 16)[order]",
        "_rows(images, 15)[order]",
        "test_data.py -k 'digits or seed'",
    ),
    Fault(
        "the last row is not sampled",
        "data.py",
        "0, count_examples(data), jnp.int32)",
        "0, count_examples(data) - 1, jnp.int32)",
        "test_data.py -k 'batch'",
    ),
    Fault(
        "there is one class more",
        "data.py",
        "((index >= 0) & (index < classes))",
        "((index >= 0) & (index <= classes))",
        "test_data.py -k 'one_hot'",
    ),
    Fault(
        "a norm at the tolerance is too large",
        "descent.py",
        "(at.norm > tolerance)",
        "(at.norm >= tolerance)",
        "test_descent.py",
    ),
    Fault(
        "a loss that stays is a loss that rose",
        "descent.py",
        "return end, before, after, after <= before",
        "return end, before, after, after < before",
        "test_descent.py",
    ),
    Fault(
        "the valley is not so steep",
        "surfaces.py",
        "jnp.sum(100 * (x[..., 1:]",
        "jnp.sum(10 * (x[..., 1:]",
        "test_descent.py test_plots.py -k 'descent or steep'",
    ),
    Fault(
        "colours are ten times as bright",
        "data.py",
        "_rows(array, 255)",
        "_rows(array, 25)",
        "test_data.py -k 'mnist'",
    ),
    Fault(
        "biases are drawn",
        "network.py",
        'params[f"b{i}"] = jnp.zeros(columns, dtype)',
        'params[f"b{i}"] = jnp.ones(columns, dtype)',
        "test_network.py",
    ),
    Fault(
        "layers share a key",
        "network.py",
        "key, subkey = jax.random.split(key)",
        "_, subkey = jax.random.split(key)",
        "test_network.py",
    ),
    Fault(
        "a class that is ruled out is counted",
        "losses.py",
        "t * jnp.where(t == 0, 0, log_y)",
        "t * log_y",
        "test_losses.py",
    ),
    Fault(
        "a path begins after its first step",
        "descent.py",
        "points = [jnp.concatenate([x[None], later]) for x, later in pairs]",
        "points = [jnp.concatenate([later[:1], later]) for x, later in pairs]",
        "test_descent.py",
    ),
    # What commands print, what pictures show.
    Fault(
        "several targets: the last one's exit code",
        "cli/check.py",
        "    return max(codes, key=(0, 2, 1).index)\n\n\ndef explain",
        "    return codes[-1]\n\n\ndef explain",
        "test_cli.py -k 'check_takes or several'",
    ),
    Fault(
        "a lucky number is overfitting",
        "cli/train.py",
        "risen = min(test[-1] / test[lowest], several[-1] / several.min()) > 1.1",
        "risen = max(test[-1] / test[lowest], several[-1] / several.min()) > 1.1",
        "test_cli.py -k 'overfitting'",
    ),
    Fault(
        "ten lines an epoch",
        "training/progress.py",
        "progress.epoch % max(1, epochs // 10) == 0",
        "progress.epoch % max(1, epochs // 100) == 0",
        "test_progress.py",
    ),
    Fault(
        "a row of the history is that of the epoch before",
        "training/history.py",
        'measured = [f"{values[e]:.4f}"',
        'measured = [f"{values[e - 1]:.4f}"',
        "test_fit.py -k 'notebook or each_row'",
    ),
    Fault(
        "the field points uphill",
        "plots.py",
        "d0, d1 = np.moveaxis(-np.asarray(gradient), -1, 0)",
        "d0, d1 = np.moveaxis(np.asarray(gradient), -1, 0)",
        "test_plots.py -k 'field'",
    ),
    Fault(
        "the minimum is marked where it is highest",
        "plots.py",
        "best = when[test.argmin()]",
        "best = when[test.argmax()]",
        "test_plots.py -k 'minimum or training'",
    ),
    Fault(
        "a page opens what agrees",
        "checking/page.py",
        "is_open=leaf.verdict is not Verdict.AGREES",
        "is_open=leaf.verdict is Verdict.AGREES",
        "test_check.py -k 'html or page'",
    ),
    Fault(
        "a chance is that of the right answer twice",
        "plots.py",
        'f"P({said[i]}) = {y[i, said[i]]:.0%}, P({t[i]})',
        'f"P({said[i]}) = {y[i, t[i]]:.0%}, P({t[i]})',
        "test_plots.py -k 'mistakes'",
    ),
    Fault(
        "losses of 0 are drawn on a logarithmic axis",
        "plots.py",
        "positive = all(np.all(v >= 0) for v in values)",
        "positive = all(np.all(v >= -1) for v in values)",
        "test_plots.py -k 'losses'",
    ),
    Fault(
        "NaN is written into JSON",
        "cli/output.py",
        "return None  # JSON has no NaN",
        "return x  # JSON has no NaN",
        "test_cli.py -k 'json'",
    ),
    Fault(
        "dropout does not make up for what it leaves out",
        "cli/train.py",
        "return jnp.where(stays, y / (1 - args.dropout), 0)",
        "return jnp.where(stays, y, 0)",
        "test_cli.py -k 'units'",
    ),
    Fault(
        "momentum of a tenth",
        "cli/train.py",
        "functools.partial(optax.sgd, momentum=0.9)",
        "functools.partial(optax.sgd, momentum=0.1)",
        "test_cli.py -k 'momentum'",
    ),
    Fault(
        "a log has NaN",
        "training/progress.py",
        "return value if math.isfinite(value) else None",
        "return value",
        "test_progress.py",
    ),
    Fault(
        "the bound is that of the digits",
        "checking/report.py",
        'f"{leaf.bound:.1e}")',
        'f"{leaf.step:.1e}")',
        "test_check.py -k 'report or page or table'",
    ),
)


def noticed(fault: Fault) -> bool:
    """Whether tests fail with the fault in a copy of the package."""
    with tempfile.TemporaryDirectory() as directory:
        package = pathlib.Path(directory) / "jaxnn"
        shutil.copytree(HOUSE / "jaxnn", package, ignore=shutil.ignore_patterns("__pycache__"))
        place = package / fault.file
        place.write_text(fault.planted_in(place.read_text()))
        return _fail(fault.tests, directory)


def _fail(tests: str, directory: str) -> bool:
    """Whether tests fail on the package in a directory; the same examples are drawn each time."""
    given = [f"tests/{word}" if word.endswith(".py") else word for word in shlex.split(tests)]
    quick = ["-x", "-q", "-n0", "-m", "not slow and not ecosystem", "--hypothesis-seed=0"]
    environment = {
        "PYTHONPATH": directory,
        "PYTHONSAFEPATH": "1",  # else the package of the working directory would come first
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(HOUSE / ".pytest_cache" / "d" / "programs"),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *quick, "-p", "no:cacheprovider", *given],
            cwd=HOUSE,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1):  # neither passed nor failed: nothing was tried
        raise RuntimeError(f"{tests}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
    return done.returncode == 1


def main(names: list[str]) -> int:
    """Print a line for each fault, and the total; 0 if all are noticed."""
    if unknown := set(names) - {fault.name for fault in FAULTS}:
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    found = []
    for fault in chosen:
        began = time.perf_counter()
        found.append(noticed(fault))
        word = "noticed" if found[-1] else "NOT NOTICED"
        seconds = time.perf_counter() - began
        print(f"{word:11}  {seconds:4.0f} s  {fault.file}: {fault.name}", flush=True)
    print(f"{sum(found)} of {len(found)} are noticed")
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
