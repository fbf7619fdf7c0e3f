"""Compile, load and pin in a process of its own, so that the compiler that BCC brings (130 MB) is gone with it.

Run as ``python -m relay.dataplane.bpf.loader DIRECTORY SUFFIX SIZES``, by ``load_and_pin``.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from relay.dataplane.bpf import syscall
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.errors import BpfUnavailableError
from relay.dataplane.bpf.programs import RelayPrograms

_TIMEOUT_S = 60.0


def load_and_pin(sizes: MapSizes, directory: Path, *, suffix: str = "") -> float:
    """Pin maps and programs, the programs with ``suffix`` behind their names; returns how long loading took, in seconds.

    Maps that are pinned there already are taken up, so the caller has checked them. Raises BpfUnavailableError.
    """
    command = [sys.executable, "-P", "-m", __name__, str(directory), suffix, json.dumps(asdict(sizes))]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BpfUnavailableError(f"loading the BPF programs took longer than {_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise BpfUnavailableError(done.stdout.strip() or f"the loader ended with exit code {done.returncode}")
    return float(done.stdout)


def pin_programs(programs: RelayPrograms, directory: Path, suffix: str = "") -> None:
    """Pin both programs, in place of any that are pinned under these names."""
    for name, fd in programs.program_fds.items():
        beside = directory / f"{name}_fresh"
        beside.unlink(missing_ok=True)
        syscall.pin(fd, str(beside))
        beside.rename(directory / f"{name}{suffix}")


def main() -> None:
    """Entry point of the process: prints the seconds, or what is in the way."""
    directory, suffix = Path(sys.argv[1]), sys.argv[2]
    sockets = directory / "sockets"
    try:
        sockets_fd = syscall.open_pin(str(sockets)) if sockets.exists() else None
        programs = RelayPrograms.load(MapSizes(**json.loads(sys.argv[3])), directory, sockets_fd)
        if sockets_fd is None:
            syscall.pin(programs.maps["sockets"].fd, str(sockets))
        pin_programs(programs, directory, suffix)
    except (BpfUnavailableError, OSError) as error:
        sys.stdout.write(str(error))
        sys.exit(1)
    sys.stdout.write(str(programs.load_s))


if __name__ == "__main__":
    main()
