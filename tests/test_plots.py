"""Curves: what they plot, and what notebooks store of them."""

import base64
import io
import sys

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from rfs_utils import plots

_ROWS = [
    {
        "step": step,
        "reward_avg": step / 40,
        "avg_response_len": 10.0 + step % 7,
        "eval_accuracy": step / 50 if step % 10 == 0 else None,
        "eval_tokens": 8.0 + step if step % 10 == 0 else None,
    }
    for step in range(1, 41)
]


METRICS = {name: [row[name] for row in _ROWS] for name in _ROWS[0]}


def without(*names):
    return {name: column for name, column in METRICS.items() if name not in names}


def titles(fig):
    return [ax.get_title("left") for ax in fig.axes]


def xy(line):
    return list(line.get_xdata()), pytest.approx(list(line.get_ydata()))


# --- curves ---------------------------------------------------------------------------------------


def test_all_columns_give_three_panels_over_one_step_axis():
    fig = plots.plot_training(METRICS)
    assert titles(fig) == [
        "Mean reward",
        "Response length (tokens)",
        "Held-out accuracy",
    ]
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "", "Training step"]
    assert fig.axes[0].get_shared_x_axes().joined(fig.axes[0], fig.axes[2])


@pytest.mark.parametrize(
    "dropped, panels",
    [
        (["reward_avg"], 2),
        (["eval_accuracy"], 2),
        (["avg_response_len"], 3),  # the held-out lengths still fill the panel
        (["avg_response_len", "eval_tokens"], 2),
        (["avg_response_len", "eval_tokens", "eval_accuracy"], 1),
    ],
)
def test_missing_columns_leave_their_panel_out(dropped, panels):
    assert len(plots.plot_training(without(*dropped)).axes) == panels


def test_no_values_at_all_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        plots.plot_training({"step": [1], "loss": [0.1]})
    with pytest.raises(ValueError, match="no values"):
        plots.plot_training({})


def test_lines_carry_the_values_of_the_table():
    reward, length, accuracy = plots.plot_training(METRICS).axes
    steps, tens = list(range(1, 41)), [10, 20, 30, 40]
    assert xy(reward.lines[0]) == (steps, [step / 40 for step in steps])
    assert xy(length.lines[0]) == (steps, [10 + step % 7 for step in steps])
    assert xy(length.lines[2]) == (tens, [18, 28, 38, 48])
    assert xy(accuracy.lines[0]) == (tens, [0.2, 0.4, 0.6, 0.8])


def test_smoothed_line_is_the_centred_mean():
    _, length, _ = plots.plot_training(METRICS).axes
    smooth = length.lines[1]
    values = METRICS["avg_response_len"]
    assert "mean of 5 steps" in smooth.get_label()
    assert smooth.get_linewidth() > length.lines[0].get_linewidth()
    assert smooth.get_ydata()[0] == pytest.approx(sum(values[:3]) / 3)
    assert smooth.get_ydata()[20] == pytest.approx(sum(values[18:23]) / 5)
    assert smooth.get_ydata()[-1] == pytest.approx(sum(values[-3:]) / 3)


def test_legends_stand_beside_the_titles_and_hide_no_curve():
    fig = plots.plot_training(METRICS)
    fig.set_layout_engine("constrained")
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    for ax in fig.axes[:2]:
        legend = ax.get_legend().get_window_extent()
        assert legend.y0 >= ax.get_window_extent().y1 and legend.x1 <= fig.bbox.x1
        (title,) = [text for text in (ax._left_title, ax.title, ax._right_title) if text.get_text()]
        assert title.get_window_extent().x1 < legend.x0


def test_pictures_for_notebooks_are_cards_with_round_corners():
    fig = plots.plot_training(METRICS)
    artists = len(fig.get_children())
    pixels = matplotlib.image.imread(io.BytesIO(plots._png(fig)))
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3]
    assert not corners.any(), "a dark page shines through"
    assert (pixels[:, 20:-20, 3] == 1).all() and (pixels[20:-20, :, 3] == 1).all(), "everything else is opaque"
    assert len(fig.get_children()) == artists, "the card is not left in the figure"


def test_evals_may_come_from_a_table_of_their_own():
    evals = {"step": [0, 40], "eval_accuracy": [0.25, 0.75]}
    *_, accuracy = plots.plot_training(METRICS, evals).axes
    assert xy(accuracy.lines[0]) == ([0, 40], [0.25, 0.75])


def test_style_of_the_figure_leaves_the_readers_settings_alone():
    with matplotlib.rc_context():
        before = dict(matplotlib.rcParams)
        plots._png(plots.plot_training(METRICS))
        assert dict(matplotlib.rcParams) == before
        plots.set_style()
        assert matplotlib.rcParams["figure.facecolor"] == plots.PAPER


def test_good_and_bad_differ_in_grey():
    def grey(color):
        return sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(color), strict=True))

    assert abs(grey(plots.GOOD) - grey(plots.BAD)) > 0.08
    assert plots.tint(plots.INK, 1) == plots.INK.lower() and plots.tint(plots.INK, 0) == "#ffffff"


# --- metrics.csv ----------------------------------------------------------------------------------


def test_read_metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,reward_avg,eval_accuracy\n1,0.5,\n\n2,0.75,0.4\n")
    assert plots.read_metrics(path) == {
        "step": [1, 2],
        "reward_avg": [0.5, 0.75],
        "eval_accuracy": [None, 0.4],
    }
    assert len(plots.plot_training(plots.read_metrics(path)).axes) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1: the header has no column step."),
        ("1,0.5\n2,0.6\n", "line 1: the header has no column step."),
        ("step,,loss\n", "line 1: the header has an empty or a repeated column name."),
        ("step,loss,loss\n", "line 1: the header has an empty or a repeated column name."),
        ("step,loss\n1,0.5\n2\n", "line 3: expected 2 cells, found 1."),
        ("step,loss\n1,0.5,9\n", "line 2: expected 2 cells, found 3."),
        ("step,loss\n1,0.5\n2,high\n", "line 3: loss is 'high', not a number."),
    ],
)
def test_read_metrics_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        plots.read_metrics(path)
    assert str(error.value) == f"{path}, {message}"


def test_read_metrics_may_require_more_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step\n1\n")
    with pytest.raises(ValueError, match="no column reward_avg, kl."):
        plots.read_metrics(path, required=("step", "reward_avg", "kl"))


# --- showing and saving ---------------------------------------------------------------------------


@pytest.fixture
def shell():
    """A notebook-like shell, gone again after the test."""
    interactive = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    from traitlets.config import Config

    if interactive.initialized():
        pytest.skip("a shell is running already")
    yield interactive.instance(config=Config({"HistoryManager": {"enabled": False}}))
    interactive.clear_instance()


def test_show_stores_png_alt_text_and_stable_plain_text(shell):
    from IPython.utils.capture import capture_output

    bundles = []
    for _ in range(2):
        with capture_output() as captured:
            assert plots.show(plots.plot_training(METRICS), "Reward and\n length  rise.") is None
        (output,) = captured.outputs
        bundles.append((output.data, output.metadata))
    (data, metadata), again = bundles
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == "<Figure: Reward and length rise.>"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"] == {"alt": "Reward and length rise.", "width": 720}
    assert (data, metadata) == again, "two runs of a cell must store the same output"


def test_show_closes_figures_of_pyplot():
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"backend": "agg"}):
        fig = plt.figure()
        plots.show(fig, "An empty figure.")
        assert not plt.fignum_exists(fig.number)


@pytest.mark.parametrize("installed", [True, False])
def test_show_is_silent_outside_of_a_notebook(installed, monkeypatch, capsys):
    if not installed:
        monkeypatch.setitem(sys.modules, "IPython", None)
    assert plots.show(Figure(), "An empty figure.") is None
    assert capsys.readouterr().out == ""


def test_show_asks_for_an_alt_text():
    with pytest.raises(ValueError, match="alt text"):
        plots.show(Figure(), " \n")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_save_figure_leaves_only_the_finished_file(tmp_path, suffix):
    path = tmp_path / f"run.{suffix}"
    path.write_text("old")
    plots.save_figure(plots.plot_training(METRICS), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size > 1000


def test_save_figure_keeps_the_old_file_when_drawing_fails(tmp_path):
    path = tmp_path / "run.png"
    path.write_text("old")
    fig = Figure()
    fig.text(0.5, 0.5, r"$\unknown$")
    with pytest.raises(ValueError):
        plots.save_figure(fig, path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.png"] and path.read_text() == "old"


def test_bars_stand_in_order_with_their_values():
    (ax,) = plots.plot_bars({"first": 20.0, "second": 5.25}, "size", "MB").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"] and ax.yaxis_inverted()
    assert [bar.get_width() for bar in ax.patches] == [20.0, 5.25] and ax.get_xlim()[1] > 20
    assert [text.get_text() for text in ax.texts] == ["20.0 MB", "5.2 MB"] and ax.get_xlabel() == "size"
