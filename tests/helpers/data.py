"""Real models outside the repository; tests that need one are skipped, by its name, where it is missing."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io as sio

ROOT = Path(__file__).resolve().parents[2]


def shared_folder():
    """Return the folder that holds `data/`: HANKELRED_SHARED, or `shared` beside the repository."""
    return Path(os.environ.get("HANKELRED_SHARED") or ROOT.parent / "shared")


def needs_pieces():
    """Skip a test that reads the pieces of a study, which the source archive does not hold."""
    if not (ROOT / "docs/results/real").is_dir():
        pytest.skip(
            "the pieces in folders of docs/results are not in the source archive; take the repository"
        )


def data_file(name):
    """Return the path of a data file, such as lti/iss.mat; skip the test, naming it, where it is missing."""
    path = shared_folder() / "data" / name
    if not path.is_file():
        pytest.skip(f"data file {name} is not here; set HANKELRED_SHARED to the folder that holds data/")
    return path


def load_mat(file):
    """Read a .mat file with scipy, which from 1.18 on wants to be told the kind of its sparse matrices."""
    old = {"spmatrix": True} if "spmatrix" in inspect.signature(sio.loadmat).parameters else {}
    return sio.loadmat(file, **old)


def slicot_model(name):
    """Return (A, B, C, D) and the published Hankel singular values (None without) of a benchmark."""
    content = load_mat(data_file(f"lti/{name}.mat"))
    content = {key.lower(): value for key, value in content.items()}

    def dense(key):
        value = content[key]
        return np.asarray(value.todense() if hasattr(value, "todense") else value, dtype=float)

    A, B, C = dense("a"), dense("b"), dense("c")
    D = dense("d") if "d" in content else np.zeros((C.shape[0], B.shape[1]))
    hsv = np.sort(np.ravel(content["hsv"]))[::-1].astype(float) if "hsv" in content else None
    return (A, B, C, D), hsv


def second_order_model(name):
    """Return M, D, K, B, C of a model of second order."""
    content = {key.lower(): value for key, value in sio.loadmat(data_file(f"lti/{name}.mat")).items()}
    return tuple(
        np.asarray(content[key].todense(), dtype=float)
        if hasattr(content[key], "todense")
        else np.asarray(content[key], dtype=float)
        for key in "mdkbc"
    )
