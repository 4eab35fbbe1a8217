"""The gradient Hankel operator against dense sums, known systems, and chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds

import hankelred
from hankelred_llm import CalibrationError
from hankelred_llm.analysis import gradient_hankel
from hankelred_llm.analysis.gradient_hankel import MARGIN, GradientOperator
from hankelred_llm.analysis.lagged_sums import LAGS, RANGE, SKETCH


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def teacher(x, poles, B, C):
    """Output of sum_i C_i poles_i^k B_i, token by token."""
    a = torch.tensor(poles, dtype=x.dtype)
    u, s = x @ B.T, torch.zeros(x.shape[0], len(poles), dtype=x.dtype)
    out = []
    for t in range(x.shape[1]):
        s = a * s + u[:, t]
        out.append(s @ C.T)
    return torch.stack(out, 1)


def orthonormal(rows, columns, seed):
    return torch.linalg.qr(noise(rows, columns, seed=seed))[0]


def dense(documents, partners):
    """-sum over pairs, in loops: for documents (x, g), each with the numbers of its two partners."""
    d = documents[0][0].shape[1]
    centered, null = torch.zeros(LAGS, d, d).double(), torch.zeros(LAGS, d, d).double()
    tokens = 0
    for (x, g), (first, second) in zip(documents, partners, strict=True):
        a, b = documents[first][0], documents[second][0]
        length = min(len(x), len(a), len(b))
        tokens += length
        for t in range(length):
            for k in range(min(LAGS, t + 1)):
                s = t - k
                centered[k] -= torch.outer(g[t], x[s] - (a[s] + b[s]) / 2)
                null[k] -= torch.outer(g[t], (a[s] - b[s]) * math.sqrt(0.75))
    return centered.numpy(), null.numpy(), tokens


def both(halves):
    return (halves[0] + halves[1]).markov()[0]


def hankel(markov):
    blocks = (LAGS + 1) // 2
    return np.block([[markov[i + j] for j in range(blocks)] for i in range(blocks)])


class TestSums:
    def test_equal_dense_sums_over_pairs(self):
        x, g = noise(4, 90, 3), noise(4, 90, 3, seed=1)
        centered, null, tokens = dense(list(zip(x, g, strict=True)), [(1, 2), (0, 2), (1, 0), (2, 1)])
        operator = GradientOperator(3)
        operator.update(x, g)
        assert operator.tokens == tokens == 360
        assert np.abs(both(operator.centered) - centered).max() < 1e-11
        assert np.abs(both(operator.null) - null).max() < 1e-11

    def test_values_are_those_of_the_dense_hankel_matrix(self):
        operator = GradientOperator(3)
        operator.update(noise(5, 80, 3), noise(5, 80, 3, seed=1))
        centered, null = (np.linalg.svd(hankel(both(s) / 400))[1] for s in (operator.centered, operator.null))
        spectrum = operator.spectrum()
        assert np.abs(spectrum.values - centered[: spectrum.values.size]).max() < 1e-12 * centered[0]
        assert spectrum.null[0] >= null[0] * (1 - 1e-12)  # that of three which is the largest

    def test_masks_and_documents(self):
        """Masked tokens are taken out of a row, wherever they are; a reset starts another document."""
        lengths = [70, 66, 40, 9]
        documents = [(noise(n, 2, seed=n), noise(n, 2, seed=n + 1)) for n in lengths]
        centered, null, tokens = dense(documents, [(1, 2), (0, 2), (1, 0), (2, 1)])
        x, g = torch.full((2, 160, 2), math.nan).double(), torch.full((2, 160, 2), math.nan).double()
        keep, reset = torch.zeros(2, 160, dtype=torch.bool), torch.zeros(2, 160, dtype=torch.bool)
        rng = np.random.default_rng(0)
        for row, pair in enumerate(((0, 2), (3, 1))):
            places = np.sort(rng.permutation(160)[: sum(lengths[i] for i in pair)])
            keep[row, places] = True
            reset[row, places[lengths[pair[0]]]] = True
            for s, which in ((x, 0), (g, 1)):
                s[row, places] = torch.cat([documents[i][which] for i in pair])
        operator = GradientOperator(2)
        operator.update(x, g, keep, reset)
        assert operator.tokens == tokens
        assert np.abs(both(operator.centered) - centered).max() < 1e-11
        assert np.abs(both(operator.null) - null).max() < 1e-11

    @pytest.mark.parametrize("width", [5, 80, 150])
    def test_parts_add_up_to_the_whole(self, width):
        x, g = noise(9, 70, width), noise(9, 70, width, seed=1)
        whole = GradientOperator(width)
        parts = [GradientOperator(width) for _ in range(3)]
        for k, part in enumerate(parts):
            rows = slice(3 * k, 3 * k + 3)
            whole.update(x[rows], g[rows])
            part.update(x[rows], g[rows])
        merged = parts[0].merge(parts[1]).merge(parts[2])
        for key, value in whole.state().items():
            assert torch.allclose(merged.state()[key], value, rtol=1e-12, atol=1e-9), key
        assert parts[0].tokens == 210  # merging changes neither
        again = GradientOperator.from_state(merged.state())
        assert np.array_equal(again.spectrum().values, merged.spectrum().values)

    def test_one_sequence_at_a_time_is_paired_with_those_before(self):
        x, g = noise(6, 50, 2), noise(6, 50, 2, seed=1)
        operator = GradientOperator(2)
        for k in range(6):
            operator.update(x[k : k + 1], g[k : k + 1])
        # the first two have nobody to be compared with; each of the others has the two before
        documents = list(zip(x, g, strict=True))
        expected = np.zeros((LAGS, 2, 2))
        for k in range(2, 6):
            # a document that is its own partner adds nothing
            expected += dense([documents[k], documents[k - 1], documents[k - 2]], [(1, 2), (1, 1), (2, 2)])[0]
        assert operator.tokens == 200
        assert np.abs(both(operator.centered) - expected).max() < 1e-11

    def test_half_precision_is_summed_in_full(self):
        x, g = noise(3, 64, 4, dtype=torch.float32), noise(3, 64, 4, seed=1, dtype=torch.float32)
        half, full = GradientOperator(4), GradientOperator(4)
        half.update(x.bfloat16(), g.bfloat16())
        full.update(x.bfloat16().double(), g.bfloat16().double())
        assert torch.allclose(half.centered[0].core, full.centered[0].core, atol=1e-3)
        assert half.centered[0].core.dtype == torch.float64

    def test_refusals(self):
        operator = GradientOperator(3)
        with pytest.raises(CalibrationError, match=r"\(batch, time, 3\), got \(2, 5, 4\)"):
            operator.update(noise(2, 5, 4), noise(2, 5, 4))
        with pytest.raises(CalibrationError, match="at least three sequences"):
            operator.spectrum()
        bad = noise(3, 5, 3)
        bad[1, 2, 0] = math.inf
        with pytest.raises(CalibrationError, match="not finite"):
            operator.update(noise(3, 5, 3), bad)
        with pytest.raises(CalibrationError, match="widths 3 and 4"):
            operator.merge(GradientOperator(4))
        state = operator.state()
        with pytest.raises(CalibrationError, match=r"no 'null\.0\.core'"):
            GradientOperator.from_state({k: v for k, v in state.items() if k != "null.0.core"})
        with pytest.raises(CalibrationError, match="has shape"):
            GradientOperator.from_state({**state, "own.0.core": torch.zeros(1)})
        operator.update(noise(3, 5, 3), noise(3, 5, 3), torch.zeros(3, 5, dtype=torch.bool))
        assert operator.tokens == 0


class TestSketch:
    def test_of_few_directions_is_exact(self):
        """Inputs and outputs in fewer directions than the sketch has are found to rounding."""
        width = 300
        U, V = orthonormal(width, 20, 2), orthonormal(width, 20, 3)
        x, g = noise(4, 100, 20) @ V.T, noise(4, 100, 20, seed=1) @ U.T
        small, large = GradientOperator(20), GradientOperator(width)
        small.update(x @ V, g @ U)
        large.update(x, g)
        assert large.centered[0].core.shape == (LAGS, SKETCH, SKETCH)
        for sketched, exact in zip(
            (*small.centered, *small.null), (*large.centered, *large.null), strict=True
        ):
            markov, outputs, inputs = exact.markov()
            expected = sketched.markov()[0]
            compressed = U.T.numpy() @ outputs @ markov @ inputs.T @ V.numpy()
            assert np.abs(compressed - expected).max() < 1e-9 * np.abs(expected).max()

    def test_finds_a_system_in_noise(self):
        """Leading values within 5 % of the dense ones, where they are well above the noise."""
        width, poles = 70, [0.9, 0.6]
        B, C = orthonormal(width, 2, 2).T, orthonormal(width, 2, 3)
        x = noise(24, 256, width, dtype=torch.float32)
        g = -teacher(x, poles, B.float(), C.float()) + 0.3 * noise(
            24, 256, width, seed=1, dtype=torch.float32
        )
        operator = GradientOperator(width)
        operator.update(x, g)
        assert width > RANGE
        a, b = x.double(), x.double()
        partner = [1, 0, *range(1, 23)], [2, 2, *range(22)]
        centred = a - (b[partner[0]] + b[partner[1]]) / 2
        markov = torch.stack(
            [-torch.einsum("btp,btm->pm", g.double()[:, k:], centred[:, : 256 - k]) for k in range(LAGS)]
        )
        exact = svds(hankel(markov.numpy() / operator.tokens), k=2, return_singular_vectors=False)[::-1]
        leading = operator.spectrum().values[:2]
        assert np.abs(leading / exact - 1).max() < 0.05

    def test_memory_of_a_wide_site(self):
        numbers = sum(t.numel() for t in GradientOperator(4096).state().values())
        assert numbers == 4 * (LAGS * SKETCH**2 + 2 * RANGE * 4096) + 1
        assert 8 * numbers < 51e6


class TestRecovery:
    """What is known of the answer: white inputs, the gradient that of a linear system that is missing."""

    @pytest.mark.parametrize("poles", [[0.9], [0.9, 0.6], [0.917, -0.8]])
    def test_order_and_poles(self, poles):
        d, n = 8, len(poles)
        B, C = orthonormal(d, n, 2).T, orthonormal(d, n, 3)
        x = noise(256, 160, d)
        operator = GradientOperator(d)
        for k in range(0, 256, 32):
            operator.update(x[k : k + 32], -teacher(x[k : k + 32], poles, B, C))
        spectrum = operator.spectrum()
        assert spectrum.significant == n
        logs, rows, _ = spectrum.realize(n)
        assert np.abs(np.sort(np.exp(logs).real) - np.sort(poles)).max() < 0.03
        # rows of B lie where the teacher's do
        inside = rows @ B.numpy().T
        assert np.linalg.norm(inside) > 0.98 * np.linalg.norm(rows)

    def test_lag_copy_needs_a_state_for_each_symbol_and_lag(self):
        """Eight symbols, centred, are seven directions; a delay by 8 tokens holds nine of each: 63 states."""
        symbols = torch.eye(8).double() - 1 / 8
        tokens = torch.randint(8, (64, 128), generator=torch.Generator().manual_seed(0))
        operator = GradientOperator(8)
        x = symbols[tokens]
        g = torch.zeros_like(x)
        g[:, 8:] = -x[:, :-8]
        operator.update(x, g)
        assert operator.spectrum().significant == 63

    def test_flip_flop_is_one_slow_state(self):
        """A bit that is set every twelfth token: its memory fades as (11/12)^k."""
        rng = torch.Generator().manual_seed(0)
        written = torch.rand(128, 128, generator=rng) < 1 / 12
        bit = torch.randint(2, (128, 128), generator=rng) * 2.0 - 1
        bit = torch.where(written, bit, torch.zeros(())).double()
        held = torch.zeros(128, 128).double()
        for t in range(128):
            held[:, t] = torch.where(
                written[:, t], bit[:, t], held[:, t - 1] if t else torch.zeros(()).double()
            )
        operator = GradientOperator(2)
        operator.update(torch.stack([bit, written.double()], 2), -torch.stack([held, 0 * held], 2))
        spectrum = operator.spectrum()
        assert spectrum.significant == 1
        assert abs(float(np.exp(spectrum.realize(1)[0].real)[0]) - 11 / 12) < 0.03

    def test_a_bias_is_no_memory(self):
        """Means of inputs and gradients, at each position, are the same in other sequences."""
        d = 6
        x = noise(32, 100, d) + 5 * noise(1, 100, d, seed=5)
        g = noise(32, 100, d, seed=1) + 5 * noise(1, 100, d, seed=6)
        operator = GradientOperator(d)
        operator.update(x, g)
        assert operator.spectrum().significant == 0

    @pytest.mark.parametrize("same", ["inputs", "gradients"])
    def test_nothing_to_compare_is_refused(self, same):
        # copies of one row gave zeros for every value and for the threshold, and a rank of 1 from them
        x, g = noise(8, 60, 4), noise(8, 60, 4, seed=1)
        x, g = (x[:1].expand(8, -1, -1), g) if same == "inputs" else (x, 0 * g)
        operator = GradientOperator(4)
        operator.update(x, g)
        with pytest.raises(CalibrationError, match="all sequences have the same inputs, or all gradients"):
            operator.spectrum()

    def test_too_slow_poles_are_held_at_the_slowest(self):
        x = noise(32, 200, 2)
        operator = GradientOperator(2)
        operator.update(x, -teacher(x, [1.0], torch.eye(2)[:1].double(), torch.eye(2)[:, :1].double()))
        logs, _, _ = operator.spectrum().realize(1)
        assert np.exp(logs.real).max() <= gradient_hankel.SLOWEST_MODULUS + 1e-12


class TestChance:
    @pytest.mark.parametrize("pole, most", [(0.0, 0), (0.9, 3)])
    def test_unrelated_inputs_and_gradients_rarely_count(self, pole, most):
        """White ones never in 20 draws; with a correlation over 10 tokens and unequal channels seldom."""
        scale = torch.exp(-0.5 * torch.arange(6)) if pole else torch.ones(6)
        passed = 0
        for seed in range(20):
            x, g = (noise(16, 96, 6, seed=2 * seed + k) * scale for k in (0, 1))
            for t in range(1, 96):
                x[:, t] += pole * x[:, t - 1]
                g[:, t] += pole / 2 * g[:, t - 1]
            operator = GradientOperator(6)
            operator.update(x, g)
            passed += operator.spectrum().significant > 0
        assert passed <= most

    def test_threshold(self):
        operator = GradientOperator(2)
        operator.update(noise(3, 70, 2), noise(3, 70, 2, seed=1))
        spectrum = operator.spectrum()
        assert spectrum.threshold == MARGIN * spectrum.null[0]
        assert isinstance(spectrum.full, hankelred.Reduction)
