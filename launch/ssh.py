"""Commands on other hosts by ssh, all hosts at once; it never asks a question, and never waits for long."""

import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launch.errors import ConfigError

OPTIONS = (
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=10",
    "-o",
    "ServerAliveCountMax=3",
)
_AT_ONCE = 64
_FAILED = 255  # ssh's own failure; any other code is the command's


@dataclass(frozen=True)
class Answer:
    """What a command printed, and when it ran.

    Attributes:
        began, ended: seconds of this host's clock.
    """

    code: int
    output: str
    errors: str
    began: float
    ended: float

    @property
    def reason(self) -> str:
        """The last line of what a failed command said."""
        lines = (self.errors or self.output).strip().splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


def on_all(commands: Mapping[str, str], port: int | None = None, timeout: float = 60) -> dict[str, Answer]:
    """Run each host's command in a shell there.

    Args:
        commands: by host; "" is this host, without ssh.
        port: of ssh; None: as it is configured.
        timeout: seconds, after which an answer has code 255.

    Raises:
        ConfigError: there is no ssh on this host.
    """
    link = ["ssh", *OPTIONS, *(["-p", str(port)] if port else [])]
    lines = [[*link, host, words] if host else ["sh", "-c", words] for host, words in commands.items()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(commands, pool.map(lambda line: _run(line, timeout), lines), strict=True))


def _run(words: list[str], timeout: float) -> Answer:
    began = time.time()
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=timeout, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Answer(_FAILED, "", f"no answer within {timeout:g} s", began, time.time())
    except FileNotFoundError as error:
        raise ConfigError("ssh is not installed on this host (openssh-client)") from error
    return Answer(done.returncode, done.stdout, done.stderr, began, time.time())
