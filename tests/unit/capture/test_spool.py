import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from slm_core.capture.segment import read_frames
from slm_core.capture.spool import NotStored, Spool
from slm_core.errors import CaptureError


def make(folder: Path, **changes: Any) -> Spool:
    options: dict[str, Any] = {"segment_bytes": 8192, "spool_bytes": 1024 * 1024}
    return Spool(folder, **{**options, **changes})


def bodies(folder: Path) -> list[bytes]:
    paths = sorted(folder.glob("*.seg"))
    return [frame.body for path in paths for frame in read_frames(path, 0, finished=False)]


def test_no_file_before_the_first_record(tmp_path: Path) -> None:
    spool = make(tmp_path / "spool")
    assert not (tmp_path / "spool").exists()
    spool.put(b"{}")
    assert bodies(tmp_path / "spool") == [b"{}"]


def test_records_go_on_in_the_next_segment(tmp_path: Path) -> None:
    spool = make(tmp_path)
    stored = [b"%03d" % number + b"x" * 500 for number in range(100)]
    for body in stored:
        spool.put(body)
    assert bodies(tmp_path) == stored
    assert len(list(tmp_path.glob("*.seg"))) == 7
    assert spool.written == 100


def test_a_record_larger_than_a_segment_gets_its_own(tmp_path: Path) -> None:
    spool = make(tmp_path)
    for body in (b"small", b"x" * 500_000, b"small again"):
        spool.put(body)
    assert [len(body) for body in bodies(tmp_path)] == [5, 500_000, 11]


def test_a_record_larger_than_the_spool_harms_no_other(tmp_path: Path) -> None:
    spool = make(tmp_path)
    with pytest.raises(NotStored, match="larger than the whole spool"):
        spool.put(b"x" * 2_000_000)
    spool.put(b"small")
    assert bodies(tmp_path) == [b"small"]
    assert spool.dropped == {"larger than the whole spool": 1}


def fill(spool: Spool) -> int:
    """Store until the spool is full; return how many records fit."""
    number = 0
    while True:
        try:
            spool.put(b"x" * 1000)
        except NotStored:
            return number
        number += 1


def test_a_full_spool_drops_and_counts_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make(tmp_path, spool_bytes=40_000)
    with caplog.at_level("INFO", logger="slm_core"):
        kept = fill(spool)
        for _ in range(50):
            with pytest.raises(NotStored, match="spool is full"):
                spool.put(b"x" * 1000)
        assert len(bodies(tmp_path)) == kept == spool.written
        assert spool.dropped == {"spool is full": 51}
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        for path in tmp_path.glob("*.seg"):
            path.unlink()
        time.sleep(0.3)
        spool.put(b"fits again")
    assert bodies(tmp_path) == [b"fits again"]
    assert "goes on" in caplog.text


def test_block_waits_for_room(tmp_path: Path) -> None:
    spool = make(tmp_path, spool_bytes=40_000, on_full="block", block_seconds=10)
    drained = threading.Event()

    def drain() -> None:
        time.sleep(0.1)
        for path in tmp_path.glob("*.seg"):
            path.unlink()
        drained.set()

    while len(list(tmp_path.glob("*.seg"))) < 4:
        spool.put(b"x" * 1000)
    thread = threading.Thread(target=drain)
    thread.start()
    for _ in range(8):
        spool.put(b"y" * 1000)
    thread.join()
    assert drained.is_set()
    assert spool.dropped == {}
    assert bodies(tmp_path)[-1] == b"y" * 1000


def test_block_gives_up_in_time(tmp_path: Path) -> None:
    spool = make(tmp_path, spool_bytes=40_000, on_full="block", block_seconds=0.05)
    begun = time.perf_counter()
    fill(spool)
    assert 0.05 <= time.perf_counter() - begun < 5
    assert spool.dropped == {"spool is full": 1}


def test_raise_tells_the_application(tmp_path: Path) -> None:
    spool = make(tmp_path, spool_bytes=40_000, on_full="raise")
    with pytest.raises(CaptureError, match="Drain the spool"):
        fill(spool)
    assert spool.dropped == {"spool is full": 1}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    spool = make(tmp_path / "file" / "spool")
    with pytest.raises(NotStored, match="cannot be written"):
        spool.put(b"{}")
    assert spool.dropped == {"spool folder cannot be written": 1}


def test_after_close_records_are_dropped_and_counted(tmp_path: Path) -> None:
    spool = make(tmp_path)
    spool.put(b"{}")
    spool.close()
    spool.close()
    with pytest.raises(NotStored, match="closed"):
        spool.put(b"{}")
    assert bodies(tmp_path) == [b"{}"]
    assert next(tmp_path.glob("*.seg")).stat().st_size < 100


def test_many_threads(tmp_path: Path) -> None:
    spool = make(tmp_path)

    def work(name: int) -> None:
        for number in range(500):
            spool.put(b"%d-%d" % (name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bodies(tmp_path)) == sorted(
        b"%d-%d" % (t, n) for t in range(8) for n in range(500)
    )


def test_an_interrupted_write_neither_blocks_nor_loses(tmp_path: Path) -> None:
    spool = make(tmp_path)
    interruptions = []

    def interrupt(*_: object) -> None:
        interruptions.append(spool.new_id())
        spool.put(b"signal " + interruptions[-1].encode())

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005, 0.0005)
    try:
        for number in range(20_000):
            spool.put(b"%d" % number)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    spool.put(b"last")
    assert interruptions
    found = bodies(tmp_path)
    assert len(found) == len(set(found)) == 20_001 + len(interruptions)
    assert spool.written == len(found)


def test_ids_are_unique(tmp_path: Path) -> None:
    one, other = make(tmp_path), make(tmp_path)
    ids = [spool.new_id() for spool in (one, other) for _ in range(1000)]
    assert len(set(ids)) == 2000
    assert {len(i) for i in ids} == {32}
