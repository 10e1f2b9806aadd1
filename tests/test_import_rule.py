"""The layers import in one direction, `unlearn_core <- tune <- pipelines`, and each framework has one home.

The rule is read off the syntax tree, so an import inside a function counts as much as one at the top.
"""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("unlearn_core", "tune", "pipelines")
FORBIDDEN = {
    "unlearn_core": ("ray", "tune", "pipelines"),
    "tune": ("pipelines",),
    "pipelines": (),
}
HOMES = {
    "deepspeed": ("unlearn_core/zero/",),
    "ray.train": ("pipelines/train.py", "pipelines/train_group.py", "pipelines/train_worker.py"),
    "ray.data": ("pipelines/evaluate.py",),
}
"""Module -> the files, or folders (ending in /), that alone may import it."""
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a file imports, also as `ray.data` after `import ray` or by a literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from ray import train` imports ray.train just as well as ray.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ray":
            yield node.lineno, f"ray.{node.attr}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def shortened_tune(tree: ast.AST) -> Iterator[int]:
    """Lines that give ray.tune another name; a bare `tune` must mean our own package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "ray" and any(a.name == "tune" for a in node.names):
            yield node.lineno
        if isinstance(node, ast.Import) and any(a.name == "ray.tune" and a.asname for a in node.names):
            yield node.lineno


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(root: Path) -> list[str]:
    """Every breach of the rule below `root`, as "file:line what"; empty when all is well."""
    found = []
    folders = (*PACKAGES, "tests", "benchmarks")
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        where = path.relative_to(root).as_posix()
        package = where.split("/")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), where)
        found += [f"{where}:{line} write `import ray.tune` in full" for line in shortened_tune(tree)]
        if NAMES_THAT_SAY_NOTHING & set(path.relative_to(root).with_suffix("").parts):
            found.append(f"{where}:1 a name that says nothing; name the file after its idea")
        for line, name in imported(tree):
            if path.name == "__init__.py" and inside(name, "ray"):
                found.append(f"{where}:{line} an __init__.py imports {name}")
            if package not in PACKAGES:
                continue  # tests and benchmarks drive every layer
            found += [f"{where}:{line} {package} imports {name}" for bad in FORBIDDEN[package] if inside(name, bad)]
            found += [
                f"{where}:{line} {name} belongs in {homes[0]}"
                for module, homes in HOMES.items()
                if inside(name, module)
                and not any(where.startswith(home) if home.endswith("/") else where == home for home in homes)
            ]
    return sorted(set(found))


def test_the_repository_keeps_the_rule():
    assert len(list((ROOT / "unlearn_core").rglob("*.py"))) > 3  # an empty walk would pass anything
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        ("unlearn_core/loop.py", "import ray", "unlearn_core imports ray"),
        ("unlearn_core/loop.py", "def f():\n    from ray import train", "unlearn_core imports ray.train"),
        ("unlearn_core/loop.py", "from pipelines.train import run", "unlearn_core imports pipelines.train.run"),
        ("unlearn_core/data/rows.py", "import tune", "unlearn_core imports tune"),
        ("unlearn_core/loop.py", "import importlib\nimportlib.import_module('ray')", "unlearn_core imports ray"),
        ("unlearn_core/loop.py", "import deepspeed", "deepspeed belongs in unlearn_core/zero/"),
        ("pipelines/train.py", "from deepspeed.runtime import zero", "belongs in unlearn_core/zero/"),
        ("pipelines/evaluate.py", "import ray.train", "ray.train belongs in pipelines/train.py"),
        ("pipelines/trial.py", "from ray.data import from_items", "belongs in pipelines/evaluate.py"),
        ("pipelines/trial.py", "import ray\nray.data.range(3)", "ray.data belongs in pipelines/evaluate.py"),
        ("tune/search.py", "import pipelines.trial", "tune imports pipelines.trial"),
        ("tune/search.py", "from ray import tune", "write `import ray.tune` in full"),
        ("tests/ray/test_search.py", "import ray.tune as rt", "write `import ray.tune` in full"),
        ("pipelines/__init__.py", "import ray", "an __init__.py imports ray"),
        ("tests/ray/__init__.py", "import ray", "an __init__.py imports ray"),
        ("unlearn_core/utils.py", "", "says nothing"),
        ("pipelines/common/files.py", "", "says nothing"),
    ],
)
def test_a_planted_breach_is_found(tmp_path, where, code, says):
    (tmp_path / where).parent.mkdir(parents=True)
    (tmp_path / where).write_text(code)
    found = violations(tmp_path)
    assert len(found) >= 1 and found[0].startswith(f"{where}:")
    assert any(says in breach for breach in found)


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("unlearn_core/zero/engine.py", "import deepspeed"),
        ("pipelines/train.py", "import ray\nimport ray.train\nfrom ray.train.torch import TorchTrainer"),
        ("pipelines/evaluate.py", "import ray\nray.data.range(3)"),
        ("tune/search.py", "import ray.tune\nfrom unlearn_core.frontier import axis"),
        ("pipelines/trial.py", "import ray\nimport tune.search\nray.init()"),
        ("unlearn_core/loop.py", "from rayleigh import deepspeedy, tuner\nfrom . import train"),
        ("tests/ray/test_train.py", "import ray.train\nimport pipelines.train"),
    ],
)
def test_what_the_rule_allows_passes(tmp_path, where, code):
    (tmp_path / where).parent.mkdir(parents=True)
    (tmp_path / where).write_text(code)
    assert violations(tmp_path) == []


# Hidden packages look uninstalled also to importlib.util.find_spec, by which transformers asks what is there.
HIDE = """
import sys

class Hide:
    def __init__(self, finder, names):
        self.finder, self.names = finder, names
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

def hide(*names):
    assert not set(names) & set(sys.modules)
    sys.meta_path[:] = [Hide(finder, names) for finder in sys.meta_path]
"""


def without(packages: tuple[str, ...], code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh Python in which these packages cannot be imported."""
    program = f"{HIDE}\nhide(*{packages!r})\n{textwrap.dedent(code)}"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_loop_imports_without_ray_datasets_pandas_and_deepspeed():
    done = without(("ray", "datasets", "pandas", "deepspeed"), "import unlearn_core.loop")
    assert done.returncode == 0, done.stderr


def test_every_core_module_imports_with_the_few_packages_it_may_need():
    """All but zero/ (DeepSpeed's home); the names hidden are those that only the functions using them may import."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "unlearn_core").rglob("*.py"))
        if "zero" not in path.parts
    ]
    hidden = ("ray", "deepspeed", "datasets", "pandas", "scipy", "rouge_score", "moocore", "matplotlib")
    done = without(
        hidden,
        f"""
        import importlib
        for module in {modules!r}:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise SystemExit(f"{{module}}: {{error}}")
        """,
    )
    assert done.returncode == 0, done.stderr


def test_hidden_packages_are_really_out_of_reach():
    done = without(("numpy",), "import json\nimport numpy")
    assert done.returncode != 0 and "No module named 'numpy'" in done.stderr
    shown = without(("numpy",), "import importlib.util\nprint(importlib.util.find_spec('numpy'))")
    assert shown.stdout.strip() == "None", shown.stderr
