"""What a reader makes of a spool file, whole, growing or damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slm_core.capture.segment import (
    START,
    Frame,
    Segment,
    checksum,
    frame_bytes,
    read_frames,
    take_over,
    torn_bytes,
)

SIZE = 65536
BODIES = [b'{"n": %d, "text": "%s"}' % (number, b"x" * number * 7) for number in range(20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.seg"
    segment = Segment(path, SIZE)
    for body in BODIES:
        segment.append(body)
    segment.close()
    return path


def frames(path: Path, offset: int = 0, *, finished: bool = True) -> list[Frame]:
    return list(read_frames(path, offset, finished=finished))


def place(number: int) -> int:
    """Return the offset of a frame."""
    return START + sum(frame_bytes(len(body)) for body in BODIES[:number])


def change(path: Path, offset: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(new)] = new
    path.write_bytes(data)


def test_everything_comes_back_in_order(path: Path) -> None:
    assert [frame.body for frame in frames(path)] == BODIES
    assert not any(frame.damage for frame in frames(path))
    assert torn_bytes(path, frames(path)[-1].end) == 0


def test_reading_goes_on_where_it_stopped(path: Path) -> None:
    seventh = frames(path)[7]
    assert [frame.body for frame in frames(path, seventh.end)] == BODIES[8:]
    assert frames(path, frames(path)[-1].end) == []


def test_a_living_segment_can_be_read_while_it_grows(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "a.seg", SIZE)
    assert take_over(segment.path) is None
    offset = 0
    for body in BODIES:
        assert frames(segment.path, offset, finished=False) == []
        segment.append(body)
        (frame,) = frames(segment.path, offset, finished=False)
        assert frame.body == body
        offset = frame.end
    segment.close()
    assert segment.path.stat().st_size == segment.used == offset
    assert take_over(segment.path) is not None


def test_a_full_segment_says_so(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "a.seg", START + frame_bytes(10))
    assert not segment.has_room(17)
    assert segment.has_room(10)
    segment.append(b"0123456789")
    assert not segment.has_room(1)
    segment.close()
    assert [frame.body for frame in frames(segment.path)] == [b"0123456789"]


@pytest.mark.parametrize("number", [0, 1, 10, 18])
@pytest.mark.parametrize(
    "harm",
    [
        lambda path, at: change(path, at + 17, b"\xff"),  # body
        lambda path, at: change(path, at, b"\xff\xff\xff\xff"),  # length
        lambda path, at: change(path, at + 4, b"\0\0\0\0"),  # checksum
        lambda path, at: change(path, at + 8, b"\x63"),  # sequence
        lambda path, at: change(path, at, bytes(16)),  # the whole header
    ],
)
def test_damage_costs_one_frame(path: Path, number: int, harm: Callable[[Path, int], None]) -> None:
    at = place(number)
    harm(path, at)
    found = frames(path)
    assert [frame.body for frame in found if not frame.damage] == (
        BODIES[:number] + BODIES[number + 1 :]
    )
    (damaged,) = [frame for frame in found if frame.damage]
    assert (damaged.start, damaged.end) == (at, place(number + 1))
    assert damaged.body == path.read_bytes()[at : damaged.end]


def test_damage_in_the_last_frame(path: Path) -> None:
    change(path, place(19) + 20, b"\xff")
    *whole, last = frames(path)
    assert [frame.body for frame in whole] == BODIES[:19]
    assert last.damage
    # Its writer may still be at it.
    assert [frame.body for frame in frames(path, finished=False)] == BODIES[:19]


def test_a_frame_without_header_is_torn_not_damaged(path: Path) -> None:
    change(path, place(19), bytes(16))
    found = frames(path)
    assert [frame.body for frame in found] == BODIES[:19]
    assert torn_bytes(path, found[-1].end) == 16 + len(BODIES[19])


def test_a_damaged_head_costs_nothing_else(path: Path) -> None:
    change(path, 3, b"\0")
    head, *rest = frames(path)
    assert head.damage
    assert [frame.body for frame in rest] == BODIES


@pytest.mark.parametrize("kept", [0, 3, 16, 20, 100, 1000])
def test_a_cut_file_gives_what_is_left(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    whole = [frame.body for frame in frames(path) if not frame.damage]
    assert whole == BODIES[: len(whole)]
    assert place(len(whole) + 1) > kept or len(whole) == len(BODIES)


def test_a_swapped_frame_is_noticed(path: Path) -> None:
    first = path.read_bytes()[place(5) : place(6)]
    change(path, place(6), first)
    bodies = [frame.body for frame in frames(path) if not frame.damage]
    assert bodies == BODIES[:6] + BODIES[7:]


def test_the_checksum_of_a_long_body_is_that_of_its_parts() -> None:
    body = bytes(range(256)) * 100
    assert checksum(body, 7) != checksum(body, 8)
    assert checksum(body, 7) != checksum(body[:-1] + b"\0", 7)


def test_no_room_on_the_disk_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"File too large|No space"):
        Segment(tmp_path / "a.seg", 2**62)
    assert list(tmp_path.iterdir()) == []
