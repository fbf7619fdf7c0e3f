"""``relayctl bpf``: the programs of the kernel's data path."""

import platform

from cli.main import cli, json_option
from cli.render import print_json, print_table
from relay.dataplane.bpf.program import BpfLimits, RelayPrograms


@cli.group()
def bpf() -> None:
    """The BPF programs."""


@bpf.command()
@json_option
def verify(as_json: bool) -> None:
    """Compile the programs and have this kernel's verifier accept them; nothing is attached, nothing stays."""
    programs = RelayPrograms(BpfLimits())
    try:
        infos, load_s = programs.info(), programs.load_s
    finally:
        programs.close()
    if as_json:
        described = {name: info._asdict() for name, info in infos.items()}
        print_json({"kernel": platform.release(), "load_s": round(load_s, 3), "programs": described})
        return
    print_table(
        f"accepted by Linux {platform.release()}, compiled and loaded in {load_s:.2f} s",
        ("program", "tag", "instructions", "walked by the verifier"),
        [(name, info.tag, info.instructions, info.verified) for name, info in infos.items()],
    )
