"""Follow-up questions of a check, in the order in which they are asked.

Each is a module with three pure functions: `applies(checked)` returns whether to ask,
`ask(checked)` the answer, and `say(checked, answer)` the updated results. Users see the first line
of the module's docstring as the question.
"""

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
