"""The wheel, installed where nothing of this folder is."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_installs_and_works_from_an_unrelated_folder(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("forgetbench-*.whl"))
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
    # The dependencies are those of the running environment: 5 GB need no second download.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import strategies, benchmark, studies, reports; print(strategies.__file__, benchmark.__file__)"
    done = subprocess.run([str(python), "-c", code], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(packages) for file in done.stdout.split())
    for package in ("strategies", "benchmark", "studies", "reports"):
        assert (packages / package / "py.typed").is_file()
    command = environment / "bin" / "forgetbench"
    done = subprocess.run([str(command), "--help"], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Continual-learning" in done.stdout
    done = subprocess.run([str(command), "list", "presets"], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "mnist-fashion" in done.stdout, done.stderr
