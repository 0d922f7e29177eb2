"""A PostgreSQL server of one's own, thrown away afterwards, that may be stopped and started at will."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

BINARIES = Path("/usr/lib/postgresql")  # Debian's place: one folder per version


class OwnPostgresql:
    """A server on a free port of the loopback interface; as a context manager it is up inside the block.

    PostgreSQL is installed when it is missing, which needs root and Debian's package server.

    Raises:
        FileNotFoundError: PostgreSQL's programs are not installed.
    """

    def __init__(self) -> None:
        if not list(BINARIES.glob("*/bin/initdb")) and os.getuid() == 0:
            for command in (
                ["update", "-q"],
                ["install", "-y", "-q", "--no-install-recommends", "postgresql"],
            ):
                subprocess.run(["apt-get", *command], capture_output=True, check=False)
        versions = sorted(BINARIES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not versions:
            raise FileNotFoundError(f"no initdb under {BINARIES}; apt-get install postgresql")
        self.programs = versions[-1].parent
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])

    @property
    def url(self) -> str:
        """The address of its database for SQLAlchemy."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="vqa-postgresql-"))
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k '' -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str) -> None:
        """Stop it: "fast" tells every client, "immediate" is as good as a crash."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def _run(self, program: str, *arguments: str) -> None:
        as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*as_user, str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
