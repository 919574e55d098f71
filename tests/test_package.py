"""The package as a whole: light imports, layers without circles, frozen names, its metadata."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fasttricks

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fasttricks"

PUBLIC_NAMES = {
    "AlternatingFlip",
    "Callback",
    "CutMix",
    "Cutout",
    "CyclicLR",
    "DataError",
    "DataNotFoundError",
    "DataUnavailableError",
    "DeviceLoader",
    "Draws",
    "Evaluation",
    "FreezeAfter",
    "History",
    "ImageSet",
    "Mixup",
    "Muon",
    "Normalize",
    "OneCycleLR",
    "Pipeline",
    "Precision",
    "Progress",
    "RangeTest",
    "ProgressiveResize",
    "ProxyLoader",
    "PrunedLoader",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomIntensity",
    "RandomTranslate",
    "ResNet9",
    "Schedule",
    "ScheduledGroups",
    "SpeedrunNet",
    "Summary",
    "Trainer",
    "Transform",
    "WeightAverage",
    "World",
    "__version__",
    "choose_device",
    "constant",
    "cosine",
    "cutout",
    "cycled_momentum",
    "describe_environment",
    "dirac_",
    "distributed",
    "evaluate",
    "exp_range",
    "keep_freed_memory",
    "linear",
    "load_data",
    "lr_range_test",
    "make_run_folder",
    "one_cycle",
    "orthogonalize",
    "piecewise_linear",
    "predict",
    "preserve_training_state",
    "read_digits",
    "resnet9",
    "speedrun_net",
    "step_decay",
    "summarize",
    "triangular",
    "triangular2",
    "precompile",
    "warmup",
    "whiten_",
    "write_json",
    "write_run",
    "BatchSizes",
    "EarlyStop",
    "JSONLines",
    "KeepBest",
    "Lookahead",
    "StepProfile",
    "StochasticWeightAverage",
    "TensorBoard",
    "find_batch_size",
    "profile_steps",
    "linear_scaled_lr",
    "sqrt_scaled_lr",
    "build",
    "list_models",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "use_winograd_",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "ModelSummary",
    "fuse",
    "replace_activation_",
    "summary",
    "parameter_groups",
    "split_for_muon",
}

# Ground floor first: a room imports only from itself and from those before it.
ROOMS = (
    "_axes",
    "_checks",
    "_hardware",
    "_native",
    "schedules",
    "lr_scheduler",
    "transforms",
    "models",
    "optim",
    "data",
    "engine",
    "lr_range_test",
    "benchmark",
    "plots",
    "__init__",
)

# Light imports -----------------------------------------------------------------------------------

HEAVY = {"torchvision", "matplotlib", "triton", "sklearn", "PIL", "rich", "safetensors"}

STAGES = ("torch", "fasttricks", "PIL")
LIST_LOADED = f"""
import importlib, json, sys
loaded = {{}}
for stage in {STAGES}:
    importlib.import_module(stage)
    loaded[stage] = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps(loaded))
"""


def heavy_imports(loaded, baseline):
    """The heavy modules among ``loaded`` that were not loaded in the ``baseline`` already."""
    return (set(loaded) - set(baseline)) & HEAVY


@pytest.fixture(scope="module")
def loaded():
    """Top-level modules loaded after importing each of the stages in turn, in a fresh process."""
    command = [sys.executable, "-c", LIST_LOADED]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_importing_fasttricks_loads_nothing_heavy_beyond_torch(loaded):
    assert "fasttricks" in loaded["fasttricks"]
    assert heavy_imports(loaded["fasttricks"], loaded["torch"]) == set()


def test_the_check_of_heavy_imports_fails_when_one_was_imported(loaded):
    assert heavy_imports(loaded["PIL"], loaded["torch"]) == {"PIL"}


# Layers and circles ------------------------------------------------------------------------------


def module_names(package):
    """Every module of ``package``: dotted name -> file."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_at_module_level(tree, *, for_types):
    """The import statements outside functions; those under TYPE_CHECKING only if ``for_types``."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.body if for_types else node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def imported_modules(module, names, *, for_types):
    """Those modules in ``names`` that ``module`` imports at module level."""
    path = names[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in imports_at_module_level(tree, for_types=for_types):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            candidates = [name if name in names else base for name in submodules]
        yield from (name for name in candidates if name in names)


def room_of(module):
    return [*module.split("."), "__init__"][1]


def layer_violations(package):
    """One line for each module outside the rooms and each import that goes up."""
    names = module_names(package)
    violations = [f"{name}: no such room" for name in names if room_of(name) not in ROOMS]
    if violations:
        return violations
    for module in names:
        for imported in imported_modules(module, names, for_types=True):
            if ROOMS.index(room_of(imported)) > ROOMS.index(room_of(module)):
                violations.append(f"{module} imports {imported}")
    return violations


def import_circle(package):
    """The modules of one circle of imports that run, or an empty list."""
    names = module_names(package)
    graph = {module: set(imported_modules(module, names, for_types=False)) for module in names}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def definitions(path):
    """Statements of an ``__init__.py`` other than its text, its imports and ``__all__``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not (is_text or is_list or isinstance(node, ast.ImportFrom)):
            yield ast.unparse(node)


@pytest.fixture
def tree(tmp_path):
    """Write a package from {file: source}; folders get an empty ``__init__.py``."""

    def write(files):
        package = tmp_path / "fasttricks"
        for name, source in {"__init__.py": "", **files}.items():
            path = package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(source, encoding="utf-8")
        return package

    return write


def test_rooms_import_only_from_rooms_below():
    assert layer_violations(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle():
    assert import_circle(PACKAGE) == []


def test_the_init_of_a_folder_defines_nothing():
    for path in PACKAGE.glob("*/__init__.py"):
        assert list(definitions(path)) == [], path


@pytest.mark.parametrize(
    "source",
    [
        "from fasttricks.engine import Trainer",
        "from fasttricks.engine._trainer import Trainer",
        "from fasttricks import engine",
        "import fasttricks.engine._trainer",
        "from ..engine._trainer import Trainer",
        "class Shell:\n    from fasttricks.engine import Trainer",
        "if TYPE_CHECKING:\n    from fasttricks.engine import Trainer",
    ],
)
def test_the_check_of_layers_fails_on_an_import_that_goes_up(tree, source):
    package = tree({"engine/_trainer.py": "", "models/_resnet.py": source})
    (violation,) = layer_violations(package)
    assert violation.startswith("fasttricks.models._resnet imports fasttricks.engine")


def test_the_check_of_layers_fails_on_the_top_level_package(tree):
    package = tree({"schedules.py": "from fasttricks import resnet9"})
    assert layer_violations(package) == ["fasttricks.schedules imports fasttricks"]


def test_the_check_of_layers_fails_on_an_unknown_room(tree):
    assert layer_violations(tree({"utils.py": ""})) == ["fasttricks.utils: no such room"]


def test_the_check_of_layers_allows_imports_down_and_inside_functions(tree):
    package = tree(
        {
            "plots.py": "",
            "engine/_history.py": "def plot():\n    from fasttricks import plots",
            "__init__.py": "from fasttricks.engine._history import plot",
        }
    )
    assert layer_violations(package) == []
    assert import_circle(package) == []


def test_the_check_of_circles_fails_on_two_files_of_one_room(tree):
    package = tree({"optim/_a.py": "from . import _b", "optim/_b.py": "from ._a import x"})
    assert set(import_circle(package)) == {"fasttricks.optim._a", "fasttricks.optim._b"}
    assert layer_violations(package) == []


def test_the_check_of_circles_allows_imports_for_types_alone(tree):
    source = "if typing.TYPE_CHECKING:\n    from . import _b"
    package = tree({"optim/_a.py": source, "optim/_b.py": "from ._a import x"})
    assert import_circle(package) == []


def test_the_check_of_definitions_fails_on_a_function(tree):
    source = '"""Text."""\nfrom ._a import x\n__all__ = ["x"]\ndef f(): pass'
    path = tree({"optim/__init__.py": source}) / "optim" / "__init__.py"
    assert list(definitions(path)) == ["def f():\n    pass"]


# Names and their texts ---------------------------------------------------------------------------


def has_text(value, name):
    """Whether a function or class has a text; one that a dataclass wrote for itself is none."""
    text = inspect.getdoc(value)
    return bool(text) and not (inspect.isclass(value) and text.startswith(f"{name}("))


def undocumented(owner, names):
    """Those functions, classes and public methods of classes among ``names`` without a text.

    A method that overrides a documented one inherits its text.
    """
    for name in names:
        value = inspect.getattr_static(owner, name)
        value = getattr(value, "__func__", value)
        is_class = inspect.isclass(value)
        documentable = is_class or inspect.isroutine(value) or isinstance(value, property)
        if documentable and not has_text(value, name):
            yield name
        if is_class:
            members = [member for member in vars(value) if not member.startswith("_")]
            yield from (f"{name}.{member}" for member in undocumented(value, members))


def public_rooms():
    names = [name for name in module_names(PACKAGE) if not re.search(r"\._", name)]
    return [importlib.import_module(name) for name in names]


def test_the_public_names_are_frozen():
    assert len(fasttricks.__all__) == len(set(fasttricks.__all__))
    assert set(fasttricks.__all__) == PUBLIC_NAMES


def test_every_public_module_lists_its_names_and_has_a_text():
    for room in public_rooms():
        assert room.__doc__, room.__name__
        missing = [name for name in room.__all__ if not hasattr(room, name)]
        assert missing == [], room.__name__


def test_every_public_name_has_a_docstring():
    for room in public_rooms():
        assert list(undocumented(room, room.__all__)) == [], room.__name__


def bare():
    pass


class Texted:
    """Text."""

    def bare(self):
        pass

    def texted(self):
        """Text."""

    @staticmethod
    def bare_static():
        pass

    @property
    def bare_property(self):
        pass


class Overriding(Texted):
    """Text."""

    def texted(self):
        pass


@dataclass
class Bare:
    size: int


def test_the_check_of_docstrings_fails_on_bare_functions_classes_and_methods():
    names = ["bare", "Texted", "Overriding", "Bare", "ROOT"]
    found = list(undocumented(sys.modules[__name__], names))
    methods = ["Texted.bare", "Texted.bare_static", "Texted.bare_property"]
    assert found == ["bare", *methods, "Bare"]


# Metadata ----------------------------------------------------------------------------------------


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("fasttricks").joinpath("py.typed").is_file()


def test_the_version_is_the_one_in_pyproject():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', text, flags=re.MULTILINE)
    assert fasttricks.__version__ == version


def test_the_core_dependencies_are_these_four():
    requirements = importlib.metadata.requires("fasttricks")
    core = [line for line in requirements if "extra ==" not in line]
    assert sorted(core) == [
        "safetensors>=0.4.3",
        "torch>=2.6",
        "torchvision>=0.21",
        "typing-extensions>=4.10",
    ]
