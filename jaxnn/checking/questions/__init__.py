"""Follow-up questions of a check, in the order in which they are asked.

Each is a module with three pure functions: `applies(checked)` returns whether to ask,
`ask(checked)` the answer, and `say(checked, answer)` the updated results. Users see the first line
of the module's docstring as the question.
"""

from typing import Any

import jax

from jaxnn.checking.measure import Checked
from jaxnn.checking.questions import (
    approximations,
    births,
    corners,
    cut_off,
    detached,
    digits,
    finer,
    kinks,
    phases,
    rules,
    solvers,
)

QUESTIONS = (
    corners,
    solvers,
    detached,
    births,
    rules,
    approximations,
    phases,
    finer,
    kinks,
    digits,
    cut_off,
)

# These only explain what is wrong. If they are interrupted, what they found nothing of is unsaid.
EXPLAINING = (births, rules, kinks, digits)


def answer(question: Any, checked: Checked) -> Any:
    """The answer to a question. A rule defined inside the function may use values around it; called
    on its own, it then works only if these are constants, not tracers.
    """
    try:
        return question.ask(checked)
    except jax.errors.UnexpectedTracerError:
        return question.ask(checked._replace(programs=checked.programs.closed(checked.check.point)))
