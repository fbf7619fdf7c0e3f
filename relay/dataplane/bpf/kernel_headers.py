"""What BCC takes for a kernel source tree: a few stubs over the headers of linux-libc-dev.

BCC looks for a kernel's own headers, which a container or a new kernel does not have. Our programs include nothing but
the uapi, which linux-libc-dev has, so a tree of links and five small files is enough, and compiles faster.
"""

import os
import platform
from pathlib import Path

from relay.dataplane.bpf.errors import BpfUnavailableError

_SYSTEM = Path("/usr/include")
# uname -m: (the kernel's name of the architecture, the multiarch directory of its asm headers)
_ARCHITECTURES = {"x86_64": ("x86", "x86_64-linux-gnu"), "aarch64": ("arm64", "aarch64-linux-gnu")}

_STUBS = {
    "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "include/linux/version.h": "#include <uapi/linux/version.h>\n",
    "include/linux/log2.h": "",
    "include/linux/types.h": """\
#ifndef RELAYCTL_STUB_TYPES_H
#define RELAYCTL_STUB_TYPES_H
#include <uapi/linux/types.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#endif
""",
    # BCC brings a bpf.h of its own under this guard.
    "include/uapi/linux/bpf.h": f"""\
#ifndef _UAPI__LINUX_BPF_H__
#include "{_SYSTEM}/linux/bpf.h"
#endif
""",
}


def make_kernel_tree(root: Path) -> None:
    """Write the tree below ``root``. Raises BpfUnavailableError where linux-libc-dev is missing."""
    try:
        arch, multiarch = _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise BpfUnavailableError(
            f"no BPF data path on {platform.machine()}, only on x86_64 and aarch64"
        ) from None
    asm = _SYSTEM / multiarch / "asm"
    if not asm.is_dir() or not (_SYSTEM / "linux/bpf.h").is_file():
        raise BpfUnavailableError("the BPF programs need linux-libc-dev (apt-get install linux-libc-dev)")
    for name, text in {**_STUBS, f"arch/{arch}/include/asm/page.h": ""}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for header in (_SYSTEM / "linux").iterdir():
        if header.name != "bpf.h":
            (root / "include/uapi/linux" / header.name).symlink_to(header)
    (root / "include/uapi/asm-generic").symlink_to(_SYSTEM / "asm-generic")
    (root / f"arch/{arch}/include/uapi").mkdir(parents=True)
    os.symlink(asm, root / f"arch/{arch}/include/uapi/asm")
