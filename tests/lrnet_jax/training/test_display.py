"""What a run shows, on terminals of some widths and where there is none."""

import io
from types import SimpleNamespace

import pytest

from lrnet_jax.training.display import Display, duration
from tests.screen import seen

FIGURES = ["loss 1.000", "12345 images/s", "accuracy 45.6 %", "waited 0.4 s for input"]


class Screen(io.StringIO):
    """Keeps what is written to a terminal."""

    encoding = "utf-8"

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def lines(self):
        return seen(self.getvalue(), self.columns)


@pytest.fixture
def clock():
    now = SimpleNamespace(seconds=100.0)
    now.read = lambda: now.seconds
    return now


def show(clock, screen, **kwargs):
    return Display(
        screen, is_terminal=True, columns=lambda: screen.columns, clock=clock.read,
        **{"total_steps": 200, **kwargs},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (20, " 50 % 68750/13750"),
        (40, " 50 % 68750/137500  1 d 14 h left"),
        (60, " 50 % |████     | 68750/137500  1 d 14 h left  loss 1.000"),
        (80, " 50 % |██████       | 68750/137500  1 d 14 h left  loss 1.000  12345 images/s"),
        (
            120,
            " 50 % |██████      | 68750/137500  1 d 14 h left  loss 1.000  12345 images/s  "
            "accuracy 45.6 %  waited 0.4 s for input",
        ),
        (
            200,
            f" 50 % |{20 * '█'}{20 * ' '}| 68750/137500  1 d 14 h left  loss 1.000  12345 images/s"
            "  accuracy 45.6 %  waited 0.4 s for input",
        ),
    ],
)
def test_a_bar_is_whole_at_any_width(clock, columns, line):
    screen = Screen(columns)
    display = show(clock, screen, total_steps=137_500, first_step=0)
    clock.seconds += 2 * 68_750
    display.progress(68_750, FIGURES)
    (shown,) = screen.lines()
    assert shown == line
    assert len(shown) <= columns - 3  # "^C" is on the same line


def test_lines_are_above_the_one_bar(clock):
    screen = Screen(60)
    display = show(clock, screen)
    display.line("new run")
    display.restart(1)
    clock.seconds += 10
    display.progress(51, FIGURES)
    display.line("evaluation")
    with display.busy("evaluating"):
        assert screen.lines()[-1].endswith("51/200  30 s left  evaluating")
    clock.seconds += 10
    display.progress(200, ["loss 0.500"])
    display.close()
    display.close()  # a second one does nothing
    display.line("final")
    assert screen.lines() == [
        "new run",
        "evaluation",
        "100 % |█████████████████████████████| 200/200  loss 0.500",
        "final",
        "",
    ]


def test_a_resumed_run_reckons_with_its_own_steps(clock):
    screen = Screen(80)
    display = show(clock, screen, first_step=100)
    clock.seconds += 60  # compilation
    display.restart(101)
    display.progress(101, [])
    assert "101/200  99 steps left" in screen.lines()[-1]
    clock.seconds += 9
    display.progress(110, [])
    assert "110/200  1 min 30 s left" in screen.lines()[-1]


def test_letters_where_the_terminal_has_no_blocks(clock):
    screen = Screen(80)
    screen.encoding = "ascii"
    show(clock, screen).progress(100, [])
    assert "|####" in screen.lines()[0]
    assert screen.lines()[0].isascii()


def test_plain_lines_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    display = Display(stream, total_steps=200, is_terminal=False, clock=clock.read)
    clock.seconds += 10
    with display.busy("evaluating"):
        display.progress(50, FIGURES)
    display.progress(200, FIGURES[:1])
    display.close()
    assert stream.getvalue() == (
        "step 50/200   25 %  loss 1.000  12345 images/s  accuracy 45.6 %  waited 0.4 s for input  "
        "30 s left\nstep 200/200  100 %  loss 1.000\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(44.6, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3 * 86400 + 4 * 3600, "3 d 04 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
