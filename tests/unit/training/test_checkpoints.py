from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from slm_core.errors import CheckpointCorrupt, DiskFull
from slm_core.testing.limits import largest_file
from slm_core.training import checkpoints

FILES = {"adapter.safetensors": b"weights", "optimizer.safetensors": b"moments"}


def save(folder: Path, *steps: int, keep: int = 9) -> Path:
    path = folder
    for step in steps:
        path = checkpoints.save(folder, step, FILES, {"step": step}, keep=keep)
    return path


def newest_step(folder: Path) -> int:
    found = checkpoints.newest(folder)
    assert found is not None
    return found.step


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "adapter.safetensors").read_bytes())
    data[0] ^= 1
    (path / "adapter.safetensors").write_bytes(bytes(data))


def truncate(path: Path) -> None:
    (path / "optimizer.safetensors").write_bytes(b"mom")


def lose_a_file(path: Path) -> None:
    (path / "adapter.safetensors").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def tear_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b'{"files": {"adap')


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"files": {}}')


def change_the_state(path: Path) -> None:
    (path / "state.json").write_text('{"step": 99}')


def test_the_newest_comes_back_with_its_files_and_state(tmp_path: Path) -> None:
    save(tmp_path, 5, 100, 20)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (100, {"step": 100})
    assert {name: (found.path / name).read_bytes() for name in FILES} == FILES


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "absent") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        truncate,
        lose_a_file,
        lose_the_manifest,
        tear_the_manifest,
        empty_the_manifest,
        change_the_state,
    ],
)
def test_a_damaged_one_falls_back_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(save(tmp_path, 1, 2))
    assert newest_step(tmp_path) == 1


def test_a_damaged_one_does_not_push_out_a_sound_one(tmp_path: Path) -> None:
    save(tmp_path, 1, keep=2)
    for step in (2, 3):
        flip_a_bit(save(tmp_path, step, keep=3))
    assert newest_step(tmp_path) == 1
    save(tmp_path, 2, keep=2)
    assert newest_step(tmp_path) == 2
    flip_a_bit(tmp_path / "step-00000002")
    assert newest_step(tmp_path) == 1


def test_nothing_sound_is_an_error_and_stays_one(tmp_path: Path) -> None:
    flip_a_bit(save(tmp_path, 1))
    flip_a_bit(save(tmp_path, 2))
    for _ in range(2):
        with pytest.raises(CheckpointCorrupt, match="remove"):
            checkpoints.newest(tmp_path)


def test_a_half_written_one_is_never_seen(tmp_path: Path) -> None:
    save(tmp_path, 1)
    draft = tmp_path / "draft-00000002"
    draft.mkdir()
    (draft / "adapter.safetensors").write_bytes(b"half")
    assert newest_step(tmp_path) == 1
    assert not draft.exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    flip_a_bit(save(tmp_path, 7))
    save(tmp_path, 7)
    assert newest_step(tmp_path) == 7


@pytest.mark.parametrize("name_prefix", ["step-", "best-"])
def test_one_that_was_being_replaced_when_the_run_was_killed_comes_back(
    tmp_path: Path, name_prefix: checkpoints.Prefix
) -> None:
    path = checkpoints.save(tmp_path, 7, FILES, {}, keep=2, name_prefix=name_prefix)
    path.rename(tmp_path / f"draft-old-{path.name}")
    (tmp_path / f"draft-{path.name}").mkdir()
    checkpoints.newest(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    # Killed a moment later, when the replacement had its name.
    shutil.copytree(path, tmp_path / f"draft-old-{path.name}")
    checkpoints.newest(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_replacement_that_fails_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 7)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "draft-step-00000007":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="Input/output"):
            save(tmp_path, 7)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert newest_step(tmp_path) == 7


def test_a_full_disk_leaves_the_older_ones_and_no_draft(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = {**FILES, "optimizer.safetensors": b"m" * 20_000}
    with largest_file(10_000), pytest.raises(DiskFull, match=r"optimizer\.safetensors") as caught:
        checkpoints.save(tmp_path, 2, files, {}, keep=1)
    assert caught.value.context["free_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_step(tmp_path) == 1
    checkpoints.save(tmp_path, 2, files, {}, keep=1)
    assert newest_step(tmp_path) == 2


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    assert checkpoints.best(tmp_path) is None
    for step, loss in ((10, 0.5), (20, 0.4)):
        state = {"val_loss": loss}
        checkpoints.save(tmp_path, step, FILES, state, keep=1, name_prefix="best-")
    save(tmp_path, 20, 30, 40, keep=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best-00000020", "step-00000030", "step-00000040"}
    found = checkpoints.best(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (20, {"val_loss": 0.4})
    assert newest_step(tmp_path) == 40


def test_a_damaged_best_is_no_best_and_stops_nothing(tmp_path: Path) -> None:
    flip_a_bit(checkpoints.save(tmp_path, 3, FILES, {}, keep=1, name_prefix="best-"))
    assert checkpoints.best(tmp_path) is None
    assert checkpoints.newest(tmp_path) is None
