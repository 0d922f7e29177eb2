"""A refused value is told by key, rule and value."""

import errno

import pytest

from vqa.errors import UserError, mendable, require


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "lora.r must be >= 1, got 0"), ("eight", "lora.r must be >= 1, got 'eight'"), (None, "got None")],
)
def test_a_broken_rule_names_key_rule_and_value(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require(False, "lora.r", ">= 1", value)


def test_a_kept_rule_says_nothing() -> None:
    require(True, "lora.r", ">= 1", 8)


def test_only_what_the_user_can_mend_of_the_machine_is_told_as_such() -> None:
    assert str(mendable(OSError(errno.EROFS, "Read-only file system", "/out"))).startswith("/out: Read-only")
    assert str(mendable(OSError(errno.EDQUOT, "Quota exceeded"))).startswith("writing results: Quota")
    assert str(mendable(OSError(errno.EIO, "Input/output error"))).startswith("writing results: Input/output")
    assert mendable(OSError(errno.EINVAL, "Invalid argument")) is None
