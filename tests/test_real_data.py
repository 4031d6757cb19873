"""The notebook's numbers, on the real data through the real command line."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmark import data
from tests.test_end_to_end import forgetbench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def final(tmp_path_factory) -> pd.DataFrame:
    """Mean accuracy over three seeds: a row a strategy, columns (after_task, task)."""
    folder = tmp_path_factory.mktemp("notebook")
    done = forgetbench("run", "notebook", "--offline", cwd=folder)
    assert done.returncode == 0, done.stderr
    accuracy = pd.read_csv(folder / "out" / "notebook" / "accuracy.csv")
    return accuracy.pivot_table(index="strategy", columns=["after_task", "task"], values="accuracy")


def test_mnist_is_learned_before_the_second_task(final):
    assert final[1, 1].between(0.970, 0.980).all()


@pytest.mark.parametrize(
    ("lam", "mnist", "fashion"), [(1000, 0.8589, 0.8570), (10000, 0.9391, 0.8471), (100000, 0.9657, 0.8389)]
)
def test_the_notebooks_ewc_keeps_what_the_notebook_kept(final, lam, mnist, fashion):
    row = final.loc[f"ewc[estimator=notebook,lam={lam}]"]
    assert row[2, 1] == pytest.approx(mnist, abs=0.03)
    assert row[2, 2] == pytest.approx(fashion, abs=0.025)


def test_fine_tuning_forgets_and_frozen_batchnorm_alone_keeps_more(final):
    update, frozen = (final.loc[f"naive[batchnorm={mode}]"] for mode in ("update", "freeze-after-first"))
    assert 0.15 <= update[2, 1] <= 0.45 and 0.85 <= update[2, 2] <= 0.885
    assert frozen[2, 1] > update[2, 1] + 0.05


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_published_images_are_verified(name):
    images = data.load(name)
    assert images.train_x.shape == (60_000, 784) and images.test_x.shape == (10_000, 784)
    assert images.train_y.bincount().min() > 5000 and images.test_y.bincount().min() > 800
    assert data.verify(name).startswith("verified")


def test_both_sets_are_small_enough_to_carry():
    for name in ("mnist", "fashion-mnist"):
        data.load(name)
    assert sum((data.cache_dir() / f"{name}.npz").stat().st_size for name in ("mnist", "fashion-mnist")) < 45e6
