"""The entry point: `python -m vqa.run`. It only decides who does the work and how the process ends."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vqa.config.check import register_resolvers
from vqa.config.place import CONF
from vqa.errors import UserError, mendable
from vqa.sweep.sweeper import StudySweeper

USER_MISTAKE, INTERRUPTED = 2, 130


@hydra.main(config_path=str(CONF), config_name="config")
def app(cfg: DictConfig) -> float | None:
    """One job: a stage of a single run, or a trial of a sweep. Returns a trial's score."""
    from vqa.stage import run_stage  # torch and transformers: only when there is work

    hydra_cfg = HydraConfig.get()
    alone = hydra_cfg.mode == RunMode.RUN
    try:
        sweep = hydra_cfg.runtime.choices.get("sweep")
        if alone and cfg.stage == "trial" and sweep:
            raise UserError(
                f"+sweep={sweep} searches, which takes -m: python -m vqa.run -m +sweep={sweep}. "
                "Without -m one stage of one run starts, such as stage=status study=..."
            )
        return run_stage(cfg, Path(hydra_cfg.runtime.output_dir), alone)
    except UserError as error:
        if alone:  # or Hydra would add a traceback to the log of a run that may be complete
            _leave(error)
        raise


def main() -> None:
    """Run, and leave with 0 (done), 2 (the user's mistake, one message) or 130 (Ctrl-C); 1 is a bug."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors on; this function words them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    register_resolvers()
    Plugins.instance().register(StudySweeper)  # a checkout that was never installed has no entry points
    try:
        app()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        _leave(error)
    except KeyboardInterrupt:
        print("vqa: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if (refusal := mendable(error)) is None:
            raise
        _leave(refusal)


def _leave(error: Exception) -> NoReturn:
    print(f"vqa: {error}", file=sys.stderr)
    sys.exit(USER_MISTAKE)


if __name__ == "__main__":
    main()
