"""Published numbers: tables as they are printed, and how far rounding in their last digit reaches."""

from __future__ import annotations

import numpy as np


def table(text):
    """Return the matrix of a printed table, one row a line."""
    rows = [[float(x) for x in line.split()] for line in text.strip().splitlines()]
    return np.array(rows)


def half_unit(decimals):
    """Return what rounding to so many decimals may have changed."""
    return 0.5 * 10.0**-decimals * (1 + 1e-9)


def response_at(system, points):
    """Frequency response at complex points, shape (points, p, m), by plain solves."""
    A, B, C, D = (np.atleast_2d(M) for M in system)
    eye = np.eye(A.shape[0])
    return np.array([C @ np.linalg.solve(s * eye - A, B.astype(complex)) + D for s in points])


def printed_response(system, points, decimals):
    """Return the response of a printed model at complex points, and by how much its digits leave it open.

    Every entry of A, B, C and D may be off by half a unit of the last decimal; the second result bounds,
    entry by entry and to first order with a tenth to spare, what that does to the response.
    """
    A, B, C = (np.atleast_2d(M) for M in system[:3])
    h, slack = half_unit(decimals), []
    for s in points:
        resolvent = np.linalg.inv(s * np.eye(A.shape[0]) - A)
        left, right = np.abs(C @ resolvent).sum(1)[:, None], np.abs(resolvent @ B).sum(0)[None]
        slack.append(1.1 * h * (left * right + left + right + 1))
    return response_at(system, points), np.array(slack)


def assert_same_response(system, printed, points, decimals):
    """Compare a model with a printed one, which may be in other states, at complex points."""
    expected, slack = printed_response(printed, points, decimals)
    excess = np.abs(response_at(system, points) - expected) / slack
    assert excess.max() <= 1, f"off by {excess.max():.3g} times what the printed digits leave open"
