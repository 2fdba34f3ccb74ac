import pytest
from pydantic import ValidationError

from slm_core.capture import CaptureSpec


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sample_rate": 1.5}, "less than or equal to 1"),
        ({"redact_patterns": ["("]}, "not a regular expression"),
        ({"redact_patterns": ["a*"]}, "matches the empty string"),
        ({"redact": ["faces"]}, "secrets"),
        ({"segment_bytes": 10_000, "spool_bytes": 5_000}, "more than spool_bytes"),
        ({"on_ful": "drop"}, "Extra inputs"),
    ],
)
def test_impossible_specs_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CaptureSpec.model_validate(wrong)


def test_every_field_is_described() -> None:
    assert all(field.description for field in CaptureSpec.model_fields.values())
