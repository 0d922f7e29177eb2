"""A message to the user when a long command is done or has failed: a program of theirs, or an address.

`notify=` is taken from the command line only. In a configuration file, maybe a stranger's, it would start a
program or call an address, so it is refused there (`vqa.config.check`).
"""

import json
import logging
import os
import shlex
import subprocess
from collections.abc import Sequence

log = logging.getLogger(__name__)
KEY = "notify"
PATIENCE_S = 20  # for the program and for the address


def asked_for(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `notify` on a command line, and the other words of it.

    The last `notify=` counts; null and an empty value are None.
    """
    ours = [word for word in words if word.lstrip("+").partition("=")[0] == KEY]
    others = [word for word in words if word not in ours]
    given = [word.partition("=")[2] for word in ours]
    text = given[-1].strip() if given else ""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return (None if text in ("", "null") else text), others


def notify(target: str, text: str, code: int) -> None:
    """Tell the user; a message that cannot be delivered is a warning and nothing else.

    Args:
        target: `http(s)://...` gets a POST of JSON with `text` and `exit_code`. Anything else is a program
            with its arguments, started without a shell; it gets the text as its last argument, and
            VQA_EXIT_CODE.
        text: One line.
        code: The command's exit code.
    """
    try:
        if target.startswith(("http://", "https://")):
            from urllib.request import Request, urlopen  # a tenth of a second that no other command needs

            body = json.dumps({"text": text, "exit_code": code}).encode()
            request = Request(target, body, {"Content-Type": "application/json"})
            with urlopen(request, timeout=PATIENCE_S):
                return
        subprocess.run(
            [*shlex.split(target), text],
            env={**os.environ, "VQA_EXIT_CODE": str(code)},
            timeout=PATIENCE_S,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        # neither address nor arguments are repeated: they may hold a secret
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        log.warning(f"{KEY}: the message could not be delivered ({reason}); the run itself is not affected")
