"""What tells code of the user's own from an earlier version of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from strategies import imports

FILES = {
    "mine_top.py": "import json\nimport torch\nfrom mine_base import Base\nimport mine_package.leaf\n",
    "mine_base.py": "def late():\n    import mine_late\n\nclass Base: ...\n",
    "mine_late.py": "NUMBER = 1\n",
    "mine_package/__init__.py": "",
    "mine_package/leaf.py": "from . import other\nfrom .deep.leaf import f\n",
    "mine_package/other.py": "NUMBER = 2\n",
    "mine_package/deep/__init__.py": "",
    "mine_package/deep/leaf.py": "def f(): ...\n",
    "mine_unrelated.py": "NUMBER = 3\n",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    for name in ("mine_top", "mine_late", "mine_unrelated"):
        importlib.import_module(name)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def test_what_a_module_imports_of_the_users_own_is_part_of_its_version(home: Path) -> None:
    own = [text for name, text in FILES.items() if text and name != "mine_unrelated.py"]
    assert sorted(imports.sources("mine_top")) == sorted(own)


def test_a_module_of_a_package_takes_its_package_along_and_not_those_that_import_it(home: Path) -> None:
    assert sorted(imports.sources("mine_package.leaf")) == sorted(
        FILES[f"mine_package/{name}.py"] for name in ("leaf", "other", "deep/leaf")
    )


def test_a_relative_import_that_only_works_in_a_package_is_passed_over(home: Path) -> None:
    text = "try:\n    from .mine_late import NUMBER\nexcept ImportError:\n    from mine_late import NUMBER\n"
    (home / "mine_either.py").write_text(text)
    importlib.import_module("mine_either")
    assert sorted(imports.sources("mine_either")) == sorted([text, FILES["mine_late.py"]])


def test_installed_packages_and_our_own_are_not_part_of_it() -> None:
    (text,) = imports.sources("strategies.imports")
    assert text == Path(imports.__file__).read_text()
    assert imports.sources("no_such_module") == []


def test_packages_beside_an_installed_module_are_not_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "mine_installed.py").write_text("import mine_neighbour\n")
    (site / "mine_neighbour.py").write_text("NUMBER = 1\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.import_module("mine_installed")
    assert imports.sources("mine_installed") == ["import mine_neighbour\n"]
    for name in ("mine_installed", "mine_neighbour"):
        del sys.modules[name]
