"""Texts from others made safe to show: secrets masked, control characters written out, formulas disarmed.

Whatever goes to a log, a file of a run, a page or a tracking server passes one of these functions.
"""

import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MASK = "***"
_SECRET_WORDS = "password|passwd|secret|token|apikey|api_key|access_key|credential|credentials"
# whole words only: `hf_token` is a secret, `visual_tokens` and `tokenizer` are not
_SECRET_KEY = re.compile(rf"(?:^|[._-])(?:{_SECRET_WORDS})$", re.IGNORECASE)
_SECRET_PAIR = re.compile(rf"((?:^|[?&\s._+-])(?:{_SECRET_WORDS})=)[^&\s]+", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/]*@")
_URL_HTTP_USER = re.compile(r"(https?://)[^\s/:@]+@")  # https://<token>@host
SHORTEST_SECRET = 8  # characters of a variable's value that is looked for: `TOKEN=1` would mask every 1
_PLAIN = "\n\t\u200c\u200d"  # the last two join letters of Persian and Hindi, and parts of an emoji


def mask_secrets(value: Any, key: str = "") -> Any:
    """A copy of nested dicts and lists with passwords and tokens replaced by ***.

    Masked are strings under keys such as `hf_token` or `db.password`, passwords inside URLs
    (`postgresql://user:***@host/db`), `token=...` pairs inside strings such as Hydra overrides, and what
    environment variables such as HF_TOKEN hold, wherever it stands.

    Args:
        value: Dicts, lists and scalars.
        key: The key the value stands under, if any.
    """
    if isinstance(value, Mapping):
        return {name: mask_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_secrets(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key) and not value.startswith("${"):  # the name of a variable is no secret
        return MASK
    for secret in _environment_secrets():
        value = value.replace(secret, MASK)
    text = _URL_HTTP_USER.sub(rf"\1{MASK}@", _URL_PASSWORD.sub(rf"\1{MASK}@", value))
    return _SECRET_PAIR.sub(rf"\1{MASK}", text)


def is_secret_name(name: str) -> bool:
    """Whether a variable of the environment has a secret's name, such as HF_TOKEN and PGPASSWORD."""
    return re.search(rf"(?:{_SECRET_WORDS})$", name, re.IGNORECASE) is not None


def _environment_secrets() -> list[str]:
    """Values of this process's variables with a secret's name."""
    found = {
        value for name, value in os.environ.items() if len(value) >= SHORTEST_SECRET and is_secret_name(name)
    }
    return sorted(found, key=len, reverse=True)


def shown(text: str) -> str:
    """A text for terminal and log: secrets masked, control characters written as \\x1b.

    A name with an escape sequence could else move the cursor, hide lines or set the clipboard; one with
    a direction mark could show another name. Lines after the first are indented, so that none can pass for a
    line of the log.
    """
    clean = "".join(letter if _is_plain(letter) else _code(letter) for letter in str(mask_secrets(text)))
    return clean.replace("\n", "\n  ")


def _is_plain(letter: str) -> bool:
    return letter in _PLAIN or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _code(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


class SafeRecord(logging.LogRecord):
    """A line of the log whose message is `shown`, whichever library it comes from."""

    def getMessage(self) -> str:  # noqa: N802  (logging's name)
        """The message with its arguments."""
        return shown(super().getMessage())


def make_logs_safe() -> None:
    """Have every line of the log of this process made safe.

    A line that cannot be written, since the disk is full, is dropped: `logging` would print a traceback for
    each, and the run itself says what is wrong.
    """
    logging.setLogRecordFactory(SafeRecord)
    logging.raiseExceptions = False
