"""What only the command line may say: log files, variables of processes, secrets in a value.

A configuration file may be a stranger's. Hydra opens the log files that it names before any code of ours sees
the composed configuration, and sets the variables that it names for this process and all that it starts.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra._internal import logging_config
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from vqa.config.place import CONF
from vqa.errors import UserError

# What a handler of the log may be given; "." would set any attribute of it, such as the name of its file.
HANDLER_KEYS = {
    *("class", "()", "level", "formatter", "filters", "stream"),
    *("filename", "mode", "delay", "encoding", "errors"),
}
# experiments are made to be joined
SEVERAL = re.compile(r"\+{0,2}(?!experiment=)([\w/]+)=(\[.*,.*\])", re.DOTALL)
LOG_SUFFIX = ".log"
_configure = logging_config.configure_logging  # as Hydra has it


def refuse_broken_words() -> None:
    """Refuse a word of the command line that is no text, or names several options of one group.

    Hydra would merge the options: of the keys that several set, the last option's value would be taken.

    Raises:
        UserError: Says which word.
    """
    for word in sys.argv[1:]:
        several = SEVERAL.fullmatch(word)
        if several and (CONF / several[1]).is_dir():
            raise UserError(
                f"{several[1]} takes one option, got {several[2]}: the last one would win without a word. "
                f"Name one, and set single keys ({several[1].replace('/', '.')}.key=value) beside it"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(
                f"{word}: the command line must be text in UTF-8, and \\udc.. stands for a byte that is not; "
                "rename the file or folder"
            )


def guard_log_files() -> None:
    """Have Hydra open no log file but that of the run, whatever a configuration file names.

    All logging of Hydra's goes through one function of its own, which this wraps; called again it does
    nothing.
    """
    logging_config.configure_logging = _guarded


@functools.wraps(_configure)
def _guarded(config: dict[str, Any], execution_whitelist: Any = None) -> None:
    handlers = config.get("handlers")
    for name, handler in handlers.items() if isinstance(handlers, Mapping) else ():
        if isinstance(handler, Mapping):
            _refuse_other_file(str(name), handler)
    _configure(config, execution_whitelist)


def _refuse_other_file(name: str, handler: Mapping[str, Any]) -> None:
    key = f"handlers.{name}"
    typed = any(f"{key}." in word or f"{key}=" in word for word in _words())
    others = sorted(str(given) for given in handler if given not in HANDLER_KEYS)
    if typed or ("filename" not in handler and not others):
        return
    if others:
        raise UserError(
            f"hydra.job_logging or hydra.hydra_logging: {key}.{others[0]} must be given on the command line, "
            f"not in a file; got {handler[others[0]]!r}"
        )
    file = Path(str(handler["filename"])).absolute()
    folder = Path(HydraConfig.get().runtime.output_dir).absolute() if HydraConfig.initialized() else None
    appends = handler.get("mode", "a") == "a"
    if file.parent != folder or file.suffix != LOG_SUFFIX or not appends:
        raise UserError(
            f"hydra.job_logging or hydra.hydra_logging: {key} would write {file}, and a file may name only "
            f"*{LOG_SUFFIX} in the run's folder, to be appended to; give another one on the command line: "
            f"hydra.job_logging.{key}.filename=..."
        )


def refuse_variables(config: HydraConf | DictConfig) -> None:
    """Refuse variables of the environment that a file sets for this process and all that it starts.

    `LD_PRELOAD` or `PATH` would have other programs run, `HF_ENDPOINT` would send the token elsewhere.

    Raises:
        UserError: `hydra.job.env_set` holds a name that the command line does not.
    """
    for name in map(str, config.job.env_set):
        key = re.escape(name)
        given = re.compile(rf"hydra\.job\.env_set(\.{key}=|=.*[{{,\s'\"]{key}['\"]?\s*:)")
        if not any(given.search(word) for word in _words()):
            raise UserError(
                f"hydra.job.env_set.{name} must be given on the command line, not in a file: it sets a "
                f"variable for every program that is started. If that is meant: export {name}=..."
            )


def guard_secrets(is_secret: Callable[[str], bool]) -> None:
    """Have the resolver `oc.env` give a secret only to a value that was typed.

    A file could else have a token sent to an address of its own.

    Args:
        is_secret: Whether a variable of that name holds a secret.
    """

    def variable(name: str, *default: Any) -> str | None:
        given = re.compile(rf"oc\.env:\s*{re.escape(name)}\s*[,}}]")
        if is_secret(name) and not any(given.search(word) for word in _words()):
            raise UserError(
                f"${{oc.env:{name}}} stands in a file, and a variable with a secret's name is read for the "
                "command line only: else a file of others could send it anywhere. Give that key on the "
                "command line, or use a variable of another name"
            )
        return oc.env(name, *default)

    OmegaConf.register_resolver("oc.env", variable, replace=True)


def _words() -> Iterator[str]:
    """The words of the command line; of a job that a launcher runs elsewhere those that Hydra keeps.

    As typed: one may hold `${hydra.job.num}`, which cannot be resolved outside a job.
    """
    yield from sys.argv[1:]
    if HydraConfig.initialized():
        kept: Any = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
        yield from kept["hydra"]
        yield from kept["task"]
