"""Follow-up questions of a check, in the order in which they are asked.

Each is a module with three functions: `applies(checked)`, whether there is something to ask;
`ask(checked)`, the answer; and `say(checked, answer)`, what is known then. All are pure.
"""

from jaxnn.checking.questions import births, detached, digits, rules, solvers

QUESTIONS = (solvers, detached, births, rules, digits)
