"""The stack's memory, its ports, and the demo teacher it may need."""

from __future__ import annotations

import socket
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from slm_core.errors import StackError
from slm_core.local_stack import LocalStack
from slm_core.local_stack.ports import free_port, is_free, reserving
from slm_core.local_stack.processes import ProcessId
from slm_core.local_stack.state import StackState
from slm_core.settings import Settings


def test_the_state_comes_back_as_it_was_saved_and_is_private(tmp_path: Path) -> None:
    file = tmp_path / "stack" / "state.json"
    state = StackState(ports={"prefect": 4200}, processes={"prefect": ProcessId(7, 1.5)})
    state.save(file)
    state.save(file)
    assert StackState.load(file) == state
    assert StackState.load(file).processes["prefect"] == ProcessId(7, 1.5)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_stack_that_never_ran_has_an_empty_state_and_a_fresh_key(tmp_path: Path) -> None:
    first, second = (StackState.load(tmp_path / "state.json") for _ in range(2))
    assert first.processes == {}
    assert first.teacher_key != second.teacher_key


def test_a_new_address_for_news_is_deployed_and_a_shell_without_one_asks_for_nothing(
    tmp_path: Path,
) -> None:
    state = StackState()
    assert not state.is_deployed("code", None)
    state.note_deployed("code", None)
    assert state.is_deployed("code", None)
    assert not state.is_deployed("code", "https://hooks.example/secret")
    state.note_deployed("code", "https://hooks.example/secret")
    assert state.is_deployed("code", None)
    assert state.is_deployed("code", "https://hooks.example/secret")
    state.note_deployed("code", None)  # deployed by such a shell: who is told stays
    assert state.is_deployed("code", "https://hooks.example/secret")
    assert not state.is_deployed("code", "https://hooks.example/other")
    assert not state.is_deployed("newer code", None)
    state.save(tmp_path / "state.json")
    assert "secret" not in (tmp_path / "state.json").read_text()


def test_no_stand_in_takes_the_place_of_a_teacher(tmp_path: Path) -> None:
    file = tmp_path / "stack" / "state.json"
    StackState(own_teacher=True).save(file)
    bare = LocalStack(Settings.from_env({"SLM_HOME": str(tmp_path)}), tmp_path)
    with pytest.raises(StackError, match="SLM_TEACHER_MODEL=nano-teacher make up"):
        bare.up()
    bare.down()
    with pytest.raises(StackError, match="this shell names none"):
        bare.up()
    assert bare.status() == []


def test_the_preferred_port_is_taken_only_when_nobody_listens_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert port < free_port(port) < port + 20
    assert free_port(port) == port


def test_two_that_start_servers_at_once_choose_different_ports() -> None:
    with reserving() as one:
        first = one.free_port(48_900)
        with reserving() as other:
            assert other.free_port(48_900) == first + 1
            assert one.free_port(48_900) == first + 2
    with reserving() as later:
        assert later.free_port(48_900) == first


def test_no_free_port_says_what_to_do() -> None:
    with ExitStack() as sockets:
        for port in range(47_800, 47_820):
            taken = sockets.enter_context(socket.socket())
            with suppress(OSError):  # somebody else's: taken all the same
                taken.bind(("127.0.0.1", port))
                taken.listen()
        with pytest.raises(StackError, match="Stop what listens there"):
            free_port(47_800)
