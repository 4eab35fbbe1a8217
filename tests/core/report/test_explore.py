"""The interactive figure and the page show what Reduction computes, for every order and kind of model."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers.figures import closed_figures, plt  # noqa: F401
from helpers.reference import damped_chain, gains, heat, random_system
from matplotlib.backend_bases import KeyEvent, MouseEvent

import hankelred
from hankelred import explore


def page_data(path):
    """The numbers in a page, and the page."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r"const data = (.*);\n", text).group(1)), text


def response_axes(explorer):
    return next(ax for ax in explorer.figure.axes if "frequency" in ax.get_xlabel())


def spectrum_axes(explorer):
    return next(ax for ax in explorer.figure.axes if ax.get_xlabel() == "order $k$")


def curve(explorer, label):
    (line,) = [line for line in response_axes(explorer).get_lines() if line.get_label() == label]
    return line


def click(explorer, order):
    ax = spectrum_axes(explorer)
    x, y = ax.transData.transform((order, ax.get_ylim()[0] * 2))
    event = MouseEvent("button_press_event", explorer.figure.canvas, x, y, button=1)
    explorer.figure.canvas.callbacks.process("button_press_event", event)


def press(explorer, key):
    event = KeyEvent("key_press_event", explorer.figure.canvas, key)
    explorer.figure.canvas.callbacks.process("key_press_event", event)


@pytest.mark.parametrize("order", [1, 4, 7])
def test_curves_are_those_of_the_reduction(order):
    system = heat(20)
    reduction = hankelred.reduce(system, 3)
    explorer = explore(reduction)
    explorer.set_order(order)
    w = curve(explorer, "reduced").get_xdata()
    expected = gains(reduction.at(order).system, w)
    np.testing.assert_allclose(curve(explorer, "reduced").get_ydata(), expected, rtol=1e-9)
    np.testing.assert_allclose(curve(explorer, "full").get_ydata(), gains(system, w), rtol=1e-9)
    (level,) = set(curve(explorer, "error bound").get_ydata())
    assert level == reduction.at(order).error_bound
    assert explorer.current.largest_error <= reduction.at(order).error() * (1 + 1e-6)
    assert explorer.current.largest_error >= 0.5 * reduction.at(order).error()
    assert f"order {order}," in repr(explorer)


def test_click_slider_and_keys_choose_the_order():
    explorer = explore(hankelred.reduce(heat(20), 3))
    explorer.figure.canvas.draw()
    click(explorer, 5)
    assert explorer.order == 5
    explorer._slider.set_val(2)
    assert explorer.order == 2
    for key, order in (
        ("right", 3),
        ("left", 2),
        ("left", 1),
        ("end", explorer.orders[-1]),
        ("right", explorer.orders[-1]),
    ):
        press(explorer, key)
        assert explorer.order == order == explorer._slider.val
    press(explorer, "x")
    click(explorer, 0.2)
    assert explorer.order == 0


def test_order_is_drawn_without_drawing_the_axes_again():
    """Drawing both logarithmic axes takes most of a second, so a change of the order must not do it."""
    explorer = explore(hankelred.reduce(heat(20), 3))
    explorer.figure.canvas.draw()
    before = np.asarray(explorer.figure.canvas.buffer_rgba()).copy()
    drawn = []
    explorer.figure.canvas.mpl_connect("draw_event", lambda event: drawn.append(event))
    explorer.set_order(6)
    after = np.asarray(explorer.figure.canvas.buffer_rgba())
    assert not drawn
    assert (before != after).any()


@pytest.mark.parametrize("order", [-1, 99, 2.5, True, "3"])
def test_orders_that_cannot_be_shown(order):
    explorer = explore(hankelred.reduce(heat(20), 3))
    with pytest.raises(hankelred.OrderError, match="choose a whole number from 0 to"):
        explorer.set_order(order)


def test_unstable_states_are_kept_at_every_order():
    A = np.diag([1.0, -1.0, -3.0, -20.0])
    explorer = explore(hankelred.reduce((A, np.ones((4, 1)), np.ones((1, 4)), 0), 3))
    assert explorer.orders[0] == 1
    press(explorer, "home")
    assert explorer.order == 1
    explorer.figure.canvas.draw()


@pytest.mark.parametrize(
    ("dt", "label"),
    [
        (True, "angular frequency (rad/sample)"),
        (0.1, "angular frequency (rad/s)"),
        (0, "angular frequency (rad/s)"),
    ],
)
def test_units(dt, label):
    if dt == 0:
        reduction = hankelred.reduce(damped_chain(5), 4)
    else:
        A = np.diag([0.5, -0.3, 0.9])
        reduction = hankelred.reduce((A, np.ones((3, 1)), np.ones((1, 3)), 0), 2, dt=dt)
    explorer = explore(reduction)
    assert response_axes(explorer).get_xlabel() == label
    if dt == 0.1:
        assert response_axes(explorer).get_xlim()[1] == pytest.approx(np.pi / 0.1)


def test_several_channels_show_the_largest_singular_value():
    assert (
        response_axes(explore(hankelred.reduce(random_system(0, 6, 2, 3), 3))).get_ylabel()
        == "largest singular value"
    )


def test_model_estimated_from_data_has_no_full_model():
    rng = np.random.default_rng(0)
    u = rng.standard_normal(400)
    y = hankelred.simulate(([[0.8]], [[1.0]], [[1.0]], 0), u, dt=True)
    explorer = explore(hankelred.identify(u, y, 1, dt=True))
    explorer.figure.canvas.draw()
    assert [line.get_label() for line in response_axes(explorer).get_lines()] == ["reduced"]
    assert "bound" not in explorer.current.summary()


def test_warnings_of_a_method_are_shown_not_raised(recwarn):
    """An order that splits repeated values is lowered with a warning: the figure shows it in its own line."""
    A = np.diag([-1.0, -1.0, -5.0])
    system = (A, np.diag([1.0, 1.0, 0.1]), np.diag([1.0, 1.0, 0.1]), 0)
    explorer = explore(hankelred.reduce(system, 2, method="hankel_norm"))
    recwarn.clear()
    explorer.set_order(1)
    assert explorer.current.note
    assert not recwarn.list


@pytest.mark.parametrize("source", [(np.eye(2), 1, 1, 0), [1.0, 0.1], None])
def test_what_is_no_reduction_is_refused(source):
    with pytest.raises(hankelred.ModelError, match="explore takes a Reduction"):
        explore(source)


def test_page_holds_what_reduction_computes(tmp_path):
    reduction = hankelred.reduce(heat(20), 3)
    reduction.report(tmp_path / "report.html")
    data, text = page_data(tmp_path / "report.html")
    assert [one["order"] for one in data["orders"]] == list(range(reduction.numerical_rank + 1))
    assert data["orders"][data["first"]]["order"] == 3
    np.testing.assert_allclose(data["values"], reduction.hankel_singular_values, rtol=1e-3)
    for one in data["orders"][:6]:
        at = reduction.at(one["order"])
        assert one["bound"] == pytest.approx(at.error_bound, rel=1e-3)
        np.testing.assert_allclose(one["gain"], gains(at.system, np.array(data["frequencies"])), rtol=2e-2)
    assert "src=" not in text and "http://www.w3.org/2000/svg" in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text), "the page must work without a network"
    assert "%" + "DATA%" not in text


def test_latency_of_a_new_order():
    """A slider is of use only where the picture follows: within 0.3 s at 240 states."""
    import time

    explorer = explore(hankelred.reduce(damped_chain(120), 12))
    explorer.figure.canvas.draw()
    seconds = []
    for order in (20, 35, 50, 21, 36):
        start = time.process_time()
        explorer.set_order(order)
        seconds.append(time.process_time() - start)
    assert sorted(seconds)[2] < 0.3, seconds


def test_names_cannot_break_the_page():
    """A name with markup in it must stay text: the page is made to be sent to others."""
    from hankelred.reduction.interactive import order_curves
    from hankelred.report.page import page

    curves = order_curves(hankelred.reduce(heat(10), 2))
    bad = "</script><script>alert(1)</script>"
    text = page(dataclasses.replace(curves, title=bad, gain_label=bad, facts=((bad, bad),)))
    assert bad not in text and "&lt;script&gt;" in text


def test_page_that_cannot_be_written(tmp_path):
    with pytest.raises(hankelred.FileFormatError, match="does not exist"):
        hankelred.reduce(heat(10), 2).report(tmp_path / "no" / "report.html")


def test_curves_of_the_page(tmp_path):
    """Bounds were a slope, not steps; curves below the lowest gain ran along the frame."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node, which runs the scripts of the page, is not installed")
    hankelred.reduce(heat(10), 2).report(tmp_path / "report.html")
    text = page_data(tmp_path / "report.html")[1]
    functions = re.findall(r"^function (?:line|steps)\(.*?^}", text, re.DOTALL | re.MULTILINE)
    calls = (
        "line([0, 1, 2, 3], [-9, null, 2, 1e-9], x => x, Math.log10), "
        "steps([0, 1, 2], [3, 2, 1], x => x, y => y)"
    )
    script = "\n".join([*functions, f"console.log(JSON.stringify([{calls}]))"])
    shown = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == ["M2.0,0.3L3.0,-9.0", "M0.0,3.0H0.5V2.0H1.0H1.5V1.0H2.0"]
    assert text.count("...inside(") == 4 and 'FULL, "dot"]' in text and 'NOISE, "band"]' in text


def test_page_with_the_name_of_another_format(tmp_path):
    """HTML was written into report.pdf, which the command line refused."""
    reduction = hankelred.reduce(heat(10), 2)
    for name in ("report.pdf", "report", "report.html.gz"):
        with pytest.raises(hankelred.FileFormatError, match=r"a page ends in \.html, \.htm, got"):
            reduction.report(tmp_path / name)
    assert not list(tmp_path.iterdir())
    reduction.report(tmp_path / "report.HTM")


def test_large_orders_are_limited_and_the_chosen_one_is_there(tmp_path):
    from hankelred.report.page import MOST_ORDERS

    reduction = hankelred.reduce(damped_chain(50), 95)
    reduction.report(tmp_path / "report.html")
    data, _ = page_data(tmp_path / "report.html")
    assert len(data["orders"]) == MOST_ORDERS + 1
    assert data["orders"][data["first"]]["order"] == reduction.order


def test_notebook_shows_a_table_and_a_picture():
    figures = plt.get_fignums()
    text = hankelred.reduce(heat(20), 3)._repr_html_()
    assert "<table>" in text and "<svg" in text and "error bound" in text
    assert plt.get_fignums() == figures, "the figures of the user are left alone"


def test_notebook_shows_the_fit_of_a_model_from_data():
    """The table had an unknown error bound and the size of a full model that does not exist, but no fit."""
    rng = np.random.default_rng(0)
    u = rng.standard_normal(300)
    y = np.convolve(u, 0.8 ** np.arange(80))[:300] + 0.1 * rng.standard_normal(300)
    identified = hankelred.identify(u, y, 1)
    w = np.linspace(0.1, 3, 40)
    fitted = hankelred.fit_frequency_response(1 / (1j * w + 1) + 0.1 / (1j * w + 8), 1, omega=w)
    for model, fits in (
        (identified, [identified.fit[0], identified.held_back_fit[0]]),
        (fitted, [fitted.fit[0]]),
    ):
        text = model._repr_html_()
        assert "error bound" not in text and "full model" not in text and "pilot model" in text
        assert all(f">{value:.6f}"[:5] in text for value in fits)
    assert "held-back fit" in identified._repr_html_()


def test_one_state_is_not_one_states():
    """The repr of a reduction of one state was "Reduction of 1 states"."""
    reduction = hankelred.reduce((-1, 1, 1, 0), 1)
    assert repr(reduction).startswith("<Reduction of 1 state to order 1")
    assert "<td style='text-align:left'>1 state</td>" in reduction._repr_html_()


def test_states_that_E_makes_algebraic_count():
    """The size of a model with a singular E was that of its finite poles."""
    from hankelred.reduction.interactive import order_curves

    E = np.diag([1.0, 1.0, 0.0])
    A, B, C = np.array([[-1.0, 0, 0], [0, -2, 1], [1, 0, 1]]), np.ones((3, 1)), np.ones((1, 3))
    reduction = hankelred.reduce((A, B, C, 0, E), 1)
    assert repr(reduction).startswith("<Reduction of 3 states to order 1")
    assert order_curves(reduction).title == "truncation of 3 states"


def test_notebook_shows_the_reduction_of_a_simulator():
    def simulate(x0, u):
        A, B, C = np.diag([0.5, 0.2]), np.ones((2, 1)), np.ones((1, 2))
        x, states = np.asarray(x0, dtype=float), []
        for k in range(u.shape[1]):
            states.append(x)
            x = A @ x + B @ u[:, k]
        X = np.array(states).T
        return X, C @ X

    gramians = hankelred.empirical_gramians(simulate, horizon=40, step=1, n_states=2, n_inputs=1)
    reduction = gramians.reduce(1)
    assert "none known" in reduction._repr_html_()
    with pytest.raises(hankelred.ModelError, match="simulator"):
        explore(reduction)


def test_notebook_shows_empirical_gramians():
    """A cell showed one line without the values, and "to inf" where the horizon was too short."""
    figures = plt.get_fignums()
    linear = (np.diag([-1.0, -3.0]), np.ones((2, 1)), np.ones((1, 2)), 0)
    text = hankelred.empirical_gramians(linear)._repr_html_()
    assert "error of controllability" in text and "<svg" in text
    alone = hankelred.empirical_gramians(linear, kinds="controllability")._repr_html_()
    assert "error of controllability" in alone and "<svg" not in alone
    assert "<svg" in hankelred.empirical_gramians(linear, kinds="cross")._repr_html_()
    assert plt.get_fignums() == figures


def test_command_line_writes_the_page(tmp_path):
    from click.testing import CliRunner

    from hankelred.cli.main import cli
    from hankelred.files import write_model
    from hankelred.models.linear_model import as_model

    model, target = tmp_path / "model.json", tmp_path / "report.html"
    write_model(as_model(heat(10)), model)
    run = CliRunner().invoke(cli, ["reduce", str(model), "--order", "2", "--report", str(target)])
    assert run.exit_code == 0, run.output
    assert page_data(target)[0]["orders"]
    wrong = CliRunner().invoke(cli, ["reduce", str(model), "--report", str(tmp_path / "report.pdf")])
    assert "a page ends in .html" in str(wrong.exception)
    again = CliRunner().invoke(cli, ["reduce", str(model), "--report", str(model)])
    assert again.exit_code != 0
