"""The entry point: `python -m vqa.run`. It only decides who does the work and how the process ends."""

import io
import os
import sys
from pathlib import Path
from traceback import extract_tb
from typing import NoReturn

import hydra
from hydra._internal import defaults_list
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, omegaconf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vqa.config.check import register_resolvers
from vqa.config.messages import asked_language, speak, spoken, told
from vqa.config.near import with_advice
from vqa.config.place import CONF
from vqa.config.typed import guard_log_files, guard_secrets, refuse_broken_words, refuse_variables
from vqa.config.words import command_line, completion, spelled_out
from vqa.errors import UserError, mendable
from vqa.machine.notification import asked_for, notify
from vqa.machine.retry import chain_of
from vqa.machine.safe_text import is_secret_name, make_logs_safe, mask_secrets, shown
from vqa.sweep.sweeper import StudySweeper
from vqa.terminal import TerminalHandler

USER_MISTAKE, INTERRUPTED = 2, 130


# What Hydra itself may execute of a configuration: its plugins, and nothing that a callback, a logging
# factory or a launcher of a stranger's file names. VQA_TRUST adds to it: the environment is the user's own.
MAY_RUN = (
    "vqa.sweep.sweeper.StudySweeper",
    "vqa.sweep.workers.pool.JobCallback",
    "vqa.terminal.TerminalHandler",
    "hydra._internal.core_plugins.*",
    *os.environ.get("VQA_TRUST", "").split(),
)


@hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=MAY_RUN)
def app(cfg: DictConfig) -> float | None:
    """One job: a stage of a single run, or a trial of a sweep. Returns a trial's score."""
    from vqa.stage import run_stage  # torch and transformers: only when there is work

    speak(OmegaConf.select(cfg, "lang"))
    hydra_cfg = HydraConfig.get()
    alone = hydra_cfg.mode == RunMode.RUN
    try:
        refuse_variables(hydra_cfg)
        sweep = hydra_cfg.runtime.choices.get("sweep")
        if alone and cfg.stage == "trial" and sweep:
            given = [*hydra_cfg.overrides.task, *hydra_cfg.overrides.hydra]
            command = command_line(["-m", *(word for word in given if not word.startswith("hydra.mode="))])
            raise UserError(
                f"+sweep={sweep} searches, which takes -m: without it one stage of one run starts, such as "
                f"stage=status study=... Next: {command}"
            )
        return run_stage(cfg, Path(hydra_cfg.runtime.output_dir), alone)
    except UserError as error:
        if alone:  # or Hydra would add a traceback to the log of a run that may be complete
            _leave(error)
        raise
    finally:
        if alone:
            _remove_empty(Path(hydra_cfg.runtime.output_dir), Path(cfg.env.output_root))


def _remove_empty(folder: Path, root: Path) -> None:
    """Take away the folder that Hydra made for a stage, and its study's, where nothing was written."""
    if folder.parent.parent != root.absolute():  # a folder that the user named
        return
    for place in (folder, folder.parent):
        try:
            place.rmdir()
        except OSError:  # not empty, or gone already
            return


def main() -> None:
    """Run, and leave with 0 (done), 2 (the user's mistake, one message) or 130 (Ctrl-C); 1 is a bug.

    `notify=` is told how it ended. It is taken off the command line first: an address may be a secret, which
    no configuration, record or worker gets to see.
    """
    target, words = asked_for(sys.argv[1:])
    sys.argv[1:] = words
    if target is None:
        _main()
        return
    code = 1
    try:
        _main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        how = {0: "done", USER_MISTAKE: "refused", INTERRUPTED: "interrupted"}.get(code, "failed")
        notify(target, f"vqa {how}: {mask_secrets(' '.join(words))}", code)


def _main() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors on; this function words them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    make_logs_safe()
    guard_log_files()
    speak(asked_language(sys.argv[1:]))
    TerminalHandler.worded = _told
    for stream in (sys.stdout, sys.stderr):  # a terminal without Korean gets codes instead of an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    register_resolvers()
    guard_secrets(is_secret_name)
    Plugins.instance().register(StudySweeper)  # a checkout that was never installed has no entry points
    try:
        if sys.argv[1:] == ["--completion"]:
            print(completion())
            return
        refuse_broken_words()
        sys.argv[1:] = spelled_out(sys.argv[1:])
        app()
    except UserError as error:
        _leave(error)
    except (HydraException, OmegaConfBaseException) as error:
        ours = [cause for cause in chain_of(error) if isinstance(cause, UserError)]
        _leave(ours[0] if ours else UserError(with_advice(str(error))))
    except YAMLError as error:
        _leave(UserError(f"a configuration file is no YAML: {' '.join(str(error).split())}; mend it"))
    except ValueError as error:  # how `logging` hands on that Hydra refused a factory
        refused = [cause for cause in chain_of(error) if isinstance(cause, HydraException)]
        if refused:
            _leave(UserError(f"hydra.job_logging or hydra.hydra_logging: {refused[0]}"))
        if extract_tb(error.__traceback__)[-1].filename != defaults_list.__file__:
            raise
        _leave(UserError(f"{error}: a group such as image takes a file's name; leave it out for its default"))
    except RecursionError as error:
        if not any(frame.filename == omegaconf.__file__ for frame in extract_tb(error.__traceback__)):
            raise
        _leave(UserError("a configuration file is nested too deeply to be read; mend it"))
    except KeyboardInterrupt:
        print(f"vqa: {_told('stopped; the same command goes on from here')}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if (refusal := mendable(error)) is None:
            raise
        _leave(refusal)


def _told(text: str) -> str:
    return told(spoken(), text)


def _leave(error: Exception) -> NoReturn:
    print(shown(f"vqa: {_told(str(error))}"), file=sys.stderr)
    sys.exit(USER_MISTAKE)


if __name__ == "__main__":
    main()
