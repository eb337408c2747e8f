"""A real Slurm on this machine alone: controller, node daemon and accounting, for as long as a ``with`` block lasts.

Everything listens on loopback, lies in one folder, and needs neither systemd, nor munge, nor control groups; it needs
to be started by root, because the node daemon does. Two partitions: ``main``, and ``urgent``, whose jobs push those of
``main`` off the node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sbatch", "sacctmgr")
"""Debian: ``apt-get install slurm-wlm munge slurmdbd mariadb-server``."""
PASSWORD = "slurm"
"""Of a database that listens on loopback and is deleted afterwards."""

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
# A requeued job waits until its credential has expired: two minutes, unless told otherwise; five seconds at least.
AuthInfo=cred_expire=5
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
# Two cores whatever the machine has: a job of two fills the node, and tests take the same course everywhere.
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
KillWait=5
MinJobAge=600
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""
DATABASE_CONF = """\
AuthType=auth/none
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting}
CommunicationParameters=NoInAddrAny
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass={password}
StorageLoc=accounting
"""


def missing() -> list[str]:
    """The programs that are not installed, and ``root`` where this process is not."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return absent if os.geteuid() == 0 else [*absent, "root"]


class SlurmNode:
    """Slurm in ``folder``; commands reach it with ``environment`` added to their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = socket.gethostname().split(".")[0]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmNode:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def run(self, *command: str, check: bool = True) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **self.environment}
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _start(self) -> None:
        for name in ("state", "spool", "database"):
            (self.folder / name).mkdir(parents=True)
        values: dict[str, object] = {"host": self.name, "folder": self.folder}
        values |= dict(zip(("controller", "daemon", "accounting", "database"), _free_ports(4), strict=True))
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values), encoding="utf-8")
        database = self.folder / "slurmdbd.conf"
        database.write_text(DATABASE_CONF.format(**values, password=PASSWORD), encoding="utf-8")
        database.chmod(0o600)  # slurmdbd refuses a password that others can read
        self._start_database(values["database"])
        self._daemon("slurmdbd", "-D")
        _wait("the accounting daemon", lambda: self.run("sacctmgr", "-n", "list", "cluster", check=False) is not None)
        _wait("the cluster's account", self._register)
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D")
        _wait("the node", lambda: "idle" in self.run("sinfo", "-h", "-o", "%t", check=False))

    def _start_database(self, port: object) -> None:
        data, socket_path = self.folder / "database", self.folder / "database.sock"
        with (self.folder / "database.log").open("wb") as log:
            where = ["--no-defaults", f"--datadir={data}", "--user=root"]
            options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
            subprocess.run(["mariadb-install-db", *where, *options], stdout=log, stderr=log, check=True, timeout=120)
            listen = [f"--socket={socket_path}", "--bind-address=127.0.0.1", f"--port={port}"]
            limits = ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
        self._daemon("mariadbd", *where, *listen, *limits)
        statements = (
            "create database accounting;"
            f"create user slurm@'127.0.0.1' identified by '{PASSWORD}';"
            f"create user slurm@localhost identified by '{PASSWORD}';"
            "grant all on accounting.* to slurm@'127.0.0.1'; grant all on accounting.* to slurm@localhost;"
        )
        client = ["mariadb", "--no-defaults", "-S", str(socket_path), "-u", "root", "-e"]
        _wait("the database", lambda: subprocess.run([*client, "select 1"], capture_output=True).returncode == 0)
        subprocess.run([*client, statements], capture_output=True, check=True)

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as output:
            environment = {**os.environ, **self.environment}
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        self._daemons.append(process)

    def _register(self) -> bool:
        self.run("sacctmgr", "-i", "add", "cluster", "test", check=False)
        return "test" in self.run("sacctmgr", "-n", "-P", "list", "cluster", "format=cluster", check=False)

    def empty(self) -> None:
        """End every job, and wait until they are gone."""
        self.run("scancel", "--full", "-u", "root", check=False)
        _wait("the end of all jobs", lambda: not self.run("squeue", "-h", check=False).strip())

    def stop(self) -> None:
        """End every job and every daemon of this cluster, and wait until they are gone."""
        with contextlib.suppress(Exception):
            self.empty()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
            daemon.wait()
        self._daemons.clear()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
