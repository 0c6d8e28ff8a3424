"""The house: which module may import which. Imports inside functions count, and types do too."""

import ast
import pathlib
import types

import conftest
import pytest

import jaxnn

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxnn"
# From the ground up; a module imports from rooms below its own, or from its own.
ROOMS = (
    ("_validate", "_terminal", "_notebook", "_jax"),
    ("numerical.interpret", "numerical.identity", "numerical.sources"),
    ("_files", "_programs", "_arguments", "_cache"),
    ("losses", "surfaces", "data", "_chapter"),
    ("network",),
    ("numerical",),
    ("descent",),
    ("training",),
    ("checking.evidence", "checking.findings"),
    ("plots",),
    ("checking",),
    ("training.cause",),
    ("training.fit",),
    ("training.sweep",),
    ("figures",),
    ("cli", "_pytest"),
    ("__main__",),
)


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def floor_of(module):
    """The number of a module's room: that with the longest name that it begins with."""
    floors = [
        (len(room), floor)
        for floor, rooms in enumerate(ROOMS)
        for room in rooms
        if module == room or module.startswith(f"{room}.")
    ]
    return max(floors)[1]


def imports_of(module):
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxnn"):
            base = node.module.removeprefix("jaxnn").removeprefix(".")
            inner = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            found |= {name if name in MODULES else base for name in inner}
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("jaxnn.")]
            found |= {name.removeprefix("jaxnn.") for name in names}
    return found - {module}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_rooms_below_its_own(module):
    for other in imports_of(module):
        assert floor_of(other) <= floor_of(module), f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: imports_of(module) for module in MODULES}

    def reached(module, seen=()):
        for other in graph[module]:
            assert other not in seen, " -> ".join([*seen, other])
            reached(other, (*seen, other))

    for module in graph:
        reached(module, (module,))


@pytest.mark.parametrize("module", ["descent", "training"])
def test_descent_and_training_receive_the_loss_and_the_gradient(module):
    rooms = {"losses", "network", "numerical", "checking"}
    inside = [name for name in MODULES if name == module or name.startswith(f"{module}.")]
    names = set(inside) - {"training.cause"}  # it explains a step that has failed
    for name in names:
        assert not {other.split(".")[0] for other in imports_of(name)} & rooms, name


def test_no_module_is_imported_by_a_string():
    for module, path in MODULES.items():
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and str(node.value).startswith("jaxnn.")
        ]
        texts = [node.value for node in calls if "\n" not in node.value and " " not in node.value]
        assert not texts, (module, texts)


RESULTS = """DescentPath Minimum Fit Trained History Status Progress Checkpoint GradientReport
Explanation WatchReport""".split()


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_has_a_text_and_a_form_for_notebooks(name):
    own = vars(getattr(jaxnn, name))
    assert "__repr__" in own and "_repr_html_" in own


def test_three_days_run_every_test_once(monkeypatch):
    tests, days = list(range(10)), []
    hook = types.SimpleNamespace(pytest_deselected=lambda items: None)
    config = types.SimpleNamespace(getoption={"today": True}.get, hook=hook)
    for today in range(3):
        monkeypatch.setattr(conftest, "TODAY", today)
        days.append(tests.copy())
        conftest.pytest_collection_modifyitems(config, days[-1])
    assert sorted(sum(days, [])) == tests and max(map(len, days)) == 4
