"""Names beside points: none over another, all inside, and a line where one had to move."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from safeserve.report.labels import Box, Name, leader, place, text_width

AREA = Box(40, 0, 700, 260)
NAMES = st.lists(
    st.builds(Name, st.floats(40, 740), st.floats(0, 260), st.floats(20, 170), st.just(16.0)), min_size=1, max_size=16
)


@given(NAMES)
def test_names_do_not_overlap_where_there_is_room(names: list[Name]) -> None:
    marks = [Box(name.x - 7, name.y - 7, 14, 14) for name in names]
    boxes = place(names, AREA, marks, [((0, name.y), (800, name.y)) for name in names])
    assert None not in boxes
    found = [box for box in boxes if box]
    assert [(box.width, box.height) for box in found] == [(name.width, name.height) for name in names]
    assert all(box.inside(AREA) for box in found)
    assert not any(one.overlaps(two) for one, two in combinations(found, 2))
    assert place(names, AREA, marks, []) == place(names, AREA, marks, [])


def test_sixteen_models_in_one_spot() -> None:
    names = [Name(60 + index, 20 + index, 150, 16) for index in range(16)]
    marks = [Box(name.x - 7, name.y - 7, 14, 14) for name in names]
    found = [box for box in place(names, AREA, marks) if box]
    assert len(found) == 16
    assert not any(one.overlaps(two) for one, two in combinations(found, 2))
    assert not any(box.overlaps(mark) for box in found for mark in marks)


def test_the_first_name_stands_right_above_its_point() -> None:
    (box,) = place([Name(100, 100, 50, 16)], AREA)
    assert box == Box(107, 77, 50, 16)
    assert leader(box, 100, 100) is None
    assert leader(Box(200, 77, 50, 16), 100, 100) == (200, 93)


def test_a_place_that_only_just_exists_is_found() -> None:
    # Two rows of a column of exactly one name's width; the lower one is taken.
    area, taken = Box(0, 0, 50, 32), Box(0, 16, 50, 16)
    assert place([Name(25, 31, 50, 16)], area, [taken]) == [Box(0, 0, 50, 16)]


def test_without_room_a_name_is_left_out_and_not_printed_over_others() -> None:
    assert place([Name(25, 8, 50, 16)] * 3, Box(0, 0, 50, 16)).count(None) == 2
    assert place([Name(25, 8, 51, 16)], Box(0, 0, 50, 32)) == [None]


def test_wide_letters_take_more_room() -> None:
    assert text_width("模型", 10) == 20
    assert text_width("ab", 10) < text_width("AB", 10) < text_width("MW", 10) == 20


def test_a_line_meets_a_box() -> None:
    box = Box(10, 10, 20, 10)
    assert box.meets(((0, 15), (100, 15)))
    assert box.meets(((20, 0), (20, 100)))
    assert box.meets(((12, 12), (13, 13)))
    assert box.meets(((0, 0), (40, 30)))
    assert not box.meets(((0, 15), (9, 15)))
    assert not box.meets(((0, 25), (100, 25)))
    assert not box.meets(((0, 20), (20, 40)))


def test_a_name_keeps_off_a_line_where_that_costs_little() -> None:
    (box,) = place([Name(100, 100, 50, 16)], AREA, (), [((0, 85), (300, 85))])
    assert box is not None
    assert not box.meets(((0, 85), (300, 85)))
