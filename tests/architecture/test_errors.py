"""Every error survives a process boundary with its message, numbers and advice."""

from __future__ import annotations

import inspect
import pickle

import pytest

from slm_core import errors

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.SlmError)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_pickles_with_its_context(cls: type[errors.SlmError]) -> None:
    error = cls("Training ran out of memory. Lower the batch.", batch=4, free_bytes=1024)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.context == {"batch": 4, "free_bytes": 1024}
    assert copy.retryable == cls.retryable


def test_a_config_error_pickles_with_every_problem() -> None:
    error = errors.ConfigError("Two settings are wrong.", problems=("A is not set", "B is 0"))
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == ("A is not set", "B is 0")
    assert "B is 0" in str(copy)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_tree_in_the_docstring_names_every_class(cls: type[errors.SlmError]) -> None:
    assert cls.__name__ in (errors.__doc__ or "").split()
