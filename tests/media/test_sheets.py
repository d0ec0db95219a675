import numpy as np
import pytest

from broll.media.sheets import CELL_WIDTH, GUTTER, contact_sheet, evenly, poster

H, W = 48, 80


def scene(level):
    frame = np.full((H, W, 3), level, np.uint8)
    frame[:, : W // 2] //= 2
    return frame


def test_the_poster_is_the_middle_frame():
    frames = [scene(level) for level in (100, 150, 200)]
    assert np.array_equal(np.asarray(poster(frames)), frames[1])
    assert np.array_equal(np.asarray(poster(np.stack(frames))), frames[1])


def test_the_poster_avoids_black_and_flat_frames():
    black, flat = np.zeros((H, W, 3), np.uint8), np.full((H, W, 3), 200, np.uint8)
    good = scene(180)
    assert np.array_equal(np.asarray(poster([good, black, flat, black, black])), good)


def test_the_poster_of_darkness_is_dark():
    assert np.asarray(poster([np.zeros((H, W, 3), np.uint8)] * 3)).max() == 0


def test_frames_are_spread_from_the_first_to_the_last():
    assert evenly(8, 81) == [0, 11, 23, 34, 46, 57, 69, 80]
    assert evenly(8, 3) == [0, 1, 2]
    assert evenly(1, 9) == [0]


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(81, 4, 2), (8, 4, 2), (5, 4, 2), (3, 3, 1), (1, 1, 1)]
)
def test_a_sheet_is_as_large_as_its_grid(count, columns, rows):
    sheet = contact_sheet([scene(90)] * count)
    assert sheet.size == (GUTTER + columns * (W + GUTTER), GUTTER + rows * (H + GUTTER))


def test_a_sheet_shows_the_first_and_the_last_frame():
    frames = [scene(level) for level in range(50, 131)]
    sheet = np.asarray(contact_sheet(frames))
    assert abs(int(sheet[GUTTER + 2, GUTTER + W - 3, 0]) - 50) <= 1
    assert abs(int(sheet[-GUTTER - 3, -GUTTER - 3, 0]) - 130) <= 1


def test_large_frames_become_small_cells():
    sheet = contact_sheet(np.zeros((3, 480, 832, 3), np.uint8), columns=2, rows=1)
    assert sheet.size == (GUTTER + 2 * (CELL_WIDTH + GUTTER), 2 * GUTTER + 185)


def test_a_long_title_is_wrapped_under_the_frames():
    short = contact_sheet([scene(90)] * 8, title="a fox")
    long = contact_sheet([scene(90)] * 8, title="a fox runs through deep snow " * 9)
    assert short.width == long.width
    assert short.height < long.height
    ink = np.asarray(long)[2 * (H + GUTTER) + GUTTER :]
    assert ink.min() < 100
    assert ink[:, -GUTTER:].min() == 255


@pytest.mark.parametrize(
    "title",
    [
        "狐狸" * 300,
        "العربية שלום",
        "🦊👩‍👩‍👧",
        "a\nb\tc\0d",
        "half \ud800",
        "x" * 500,
        "   ",
        "ก็" * 50,
        "e\u0301" * 50,
    ],
)
@pytest.mark.parametrize("columns", [1, 4])
def test_a_title_in_any_script_does_not_break_a_sheet(title, columns):
    assert contact_sheet([scene(90)] * 8, columns=columns, title=title).height > H
