"""What is wrong with the hosts of a job, from what they say of themselves; nothing is asked here.

`launch.probe` gives a host's facts, `launch.doctor` collects them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.probe import PACKAGES

COLUMNS = ("host", "ssh", "python", *PACKAGES, "code", "GPUs", "port", "shared folder", "clock", "/dev/shm")
_CLOCK = 2.0  # seconds: locks, logs and SLURM's end times are compared between hosts
_SHM = 128 << 20  # bytes a rank; containers have 64 MiB, in which NCCL's local ranks fail


@dataclass(frozen=True)
class Patient:
    """A host as the doctor found it.

    Attributes:
        facts: `launch.probe.answer`; None: it gave none, because of `trouble`.
        clock: seconds that it is ahead of the doctor's host, as far as that can be told.
        doubt: seconds by which `clock` may be wrong.
    """

    name: str
    slots: int
    reached: bool
    trouble: str = ""
    facts: dict[str, Any] | None = None
    clock: float = 0.0
    doubt: float = 0.0


def row(patient: Patient, token: str) -> tuple[str, ...]:
    """Its line of the table, by COLUMNS."""
    if patient.facts is None:
        return (patient.name, "ok" if patient.reached else "no", *["-"] * (len(COLUMNS) - 2))
    facts = patient.facts
    gpus = f"{len(facts['gpus'])} x {facts['gpus'][0]}" if facts["gpus"] else "none"
    return (
        patient.name, "ok", facts["python"], *(facts["packages"][name] or "none" for name in PACKAGES),
        " ".join(filter(None, (facts["commit"], facts["code"]))), gpus, facts["port"].partition(":")[0] or "-",
        "seen" if facts["token"] == token else "no", _clock(patient), _size(facts["shm"]),
    )  # fmt: skip


def problems(patients: Sequence[Patient], token: str) -> list[str]:
    """One line each: host, what, and what to do."""
    found = [f"{patient.name}: {words}" for patient in patients for words in _alone(patient, token)]
    known = [patient for patient in patients if patient.facts]
    for patient in known[1:]:
        found += [f"{patient.name}: {words}" for words in _compared(patient, known[0])]
    machines: dict[str, str] = {}
    for patient in known:
        assert patient.facts
        if (first := machines.setdefault(patient.facts["host"], patient.name)) != patient.name:
            found.append(f"{patient.name}: is the same host as {first}; name it once, with the slots of both")
    return found


def _alone(patient: Patient, token: str) -> list[str]:
    """What is wrong with a host by itself."""
    if patient.facts is None:
        return [patient.trouble]
    facts, found = patient.facts, []
    for name in PACKAGES:
        if facts["packages"][name] is None:
            found.append(f"{name} is missing: `make setup`, or the same environment at the same path")
    if facts["gpus"] and len(facts["gpus"]) < patient.slots:
        found.append(f"{patient.slots} slots, but {len(facts['gpus'])} GPUs: correct the hostfile")
    if facts["port"] not in ("", "free", "reached"):
        why = "another job has it" if " taken: " in facts["port"] else "another job has it, or a firewall is between"
        found.append(f"port {facts['port']}: {why}; --master_port takes another, here and for the start")
    if facts["token"] != token:
        found.append("does not see the shared folder: mount it at the same path")
    if abs(patient.clock) > _CLOCK + patient.doubt:
        found.append(f"its clock is {patient.clock:+.1f} s off: run NTP (chrony)")
    if facts["shm"] < _SHM * patient.slots:
        found.append(
            f"/dev/shm has {_size(facts['shm'])}, {_size(_SHM)} a rank are needed: mount -o remount,size=8G /dev/shm "
            "(docker: --shm-size=8g)"
        )
    return found


def _compared(patient: Patient, first: Patient) -> list[str]:
    """Where a host differs from the first one."""
    assert patient.facts and first.facts
    pairs = [(what, mine, _identity(first.facts)[what]) for what, mine in _identity(patient.facts).items()]
    return [
        f"{what} is {mine}, on {first.name} {other or 'none'}: must be the same"
        for what, mine, other in pairs
        if mine and mine != other
    ]


def _identity(facts: dict[str, Any]) -> dict[str, str | None]:
    """What all hosts must have in common."""
    gpus = ", ".join(sorted(set(facts["gpus"]))) or "none"
    return {"Python": facts["python"], **facts["packages"], "the code": facts["code"], "the GPU": gpus}


def _clock(patient: Patient) -> str:
    within = abs(patient.clock) <= patient.doubt
    return f"±{patient.doubt:.1f} s" if within else f"{patient.clock:+.1f} s"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
