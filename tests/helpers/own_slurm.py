"""A Slurm cluster of one's own on this machine: a controller and nodes of one CPU, no systemd, no cgroups."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PACKAGES = ["slurm-wlm", "munge"]
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1 RealMemory=4000
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""
# cred_expire is also how long a requeued job waits, 120 s by default; a preempted job gets TERM and GraceTime


class OwnSlurm:
    """A cluster with the partitions `low` and `high`, of which `high` preempts; up inside a with block.

    Slurm is installed when it is missing, which needs root and Debian's package server.

    Args:
        nodes: Nodes, of one CPU each.
    """

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        if shutil.which("slurmctld") is None or shutil.which("munged") is None:
            for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *PACKAGES]):
                done = subprocess.run(["apt-get", *command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(
                    f"this test needs Slurm; install {' and '.join(PACKAGES)}, or leave services out: "
                    f"pytest -m 'not service'. apt-get said: {done.stderr[-500:]}"
                )

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="vqa-slurm-"))
        (self.folder / "state").mkdir()
        for node in range(1, self.nodes + 1):
            (self.folder / f"spool-n{node}").mkdir()
        port, *ports = _free_ports(self.nodes + 1)
        conf = self.folder / "slurm.conf"
        values = {"host": socket.gethostname().partition(".")[0], "port": port, "nodes": self.nodes}
        conf.write_text(CONF.format(folder=self.folder, first=ports[0], last=ports[-1], **values))
        self.environment = os.environ | {"SLURM_CONF": str(conf)}
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._run(
            *("munged", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}"),
            *(f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log"),
            f"--seed-file={self.folder}/munge.seed",
        )
        self._run("slurmctld", "-i", "-f", str(conf))
        for node in range(1, self.nodes + 1):
            self._run("slurmd", "-N", f"n{node}", "-f", str(conf))
        self._wait_for_nodes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call("scancel", "--full", "-u", "root", check=False)
        pids = [int(file.read_text()) for file in sorted(self.folder.glob("*.pid"), reverse=True)]
        for signal in (15, 9):
            for pid in pids:
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal)
            time.sleep(1)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's programs and return what it prints; they would hang without a controller."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30, check=False
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def running(self) -> list[str]:
        """Ids of the jobs that run in `low`, the oldest first."""
        return self.call("squeue", "-h", "-p", "low", "-t", "R", "-S", "i", "-o", "%A").split()

    def _run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=30)

    def _wait_for_nodes(self) -> None:
        for _ in range(150):
            idle = self.call("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N", check=False)
            if len(idle.split()) == self.nodes:
                return
            time.sleep(0.1)
        raise RuntimeError(f"Slurm did not come up; see {self.folder}/*.log")


def _free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody listens on."""
    for start in range(20001 + os.getpid() % 5000, 60000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", start + offset))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return list(range(start, start + count))
    raise RuntimeError("no free ports")
