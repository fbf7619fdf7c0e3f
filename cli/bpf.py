"""``relayctl bpf``: the programs of the kernel's data path."""

import platform

from cli.main import cli, json_option
from cli.render import print_json, print_table
from relay.dataplane.bpf.program import XdpLimits, XdpProgram


@cli.group()
def bpf() -> None:
    """The BPF programs."""


@bpf.command()
@json_option
def verify(as_json: bool) -> None:
    """Compile the programs and have this kernel's verifier accept them; nothing is attached, nothing stays."""
    program = XdpProgram(XdpLimits())
    try:
        info, load_s = program.info, program.load_s
    finally:
        program.close()
    report = {
        "kernel": platform.release(),
        "programs": [
            {
                "name": "xdp_ingress",
                "tag": info.tag,
                "instructions": info.instructions,
                "verified_instructions": info.verified,
                "load_s": round(load_s, 3),
            }
        ],
    }
    if as_json:
        print_json(report)
        return
    print_table(
        f"accepted by Linux {report['kernel']}",
        ("program", "tag", "instructions", "walked by the verifier", "compile and load"),
        [("xdp_ingress", info.tag, info.instructions, info.verified, f"{load_s:.2f} s")],
    )
