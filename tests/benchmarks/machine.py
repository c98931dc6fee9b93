"""The processor, versions and threads that a measurement of speed belongs to."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.support import ROOT

LIBRARIES = ("torch", "transformers", "peft", "accelerate")
AVX2, AVX512, BF16, AMX = "AVX2", "AVX-512", "AVX-512 with bf16", "AMX"
# An AVX2-only processor is imitated with these variables; aten, oneDNN and MKL obey them, FBGEMM does not.
IMITATED_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def machine() -> dict[str, Any]:
    """Return the kind and name of the processor, the number of threads, the versions and the commit."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_kind(cpu_flags(), os.environ)
    return {
        "kind": kind,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit, with "+" if the code differs from it; kept results and guides do not count."""
    head = git("rev-parse", "--short=7", "HEAD") or "unknown"
    return head + "+" * bool(git("diff", "--name-only", "HEAD", "--", "*.py"))


def git(*arguments: str) -> str:
    """Return what git prints in this repository; nothing if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def processor_kind(flags: set[str], environment: Mapping[str, str]) -> str:
    """Return the kind of processor: the newest instructions that multiply matrices here.

    Args:
        flags: the names of the instruction sets, as in /proc/cpuinfo.
        environment: environment variables, which may imitate an AVX2-only processor.

    Raises:
        ValueError: only some of the variables of IMITATED_AVX2 are set.
    """
    known = (("amx_tile", AMX), ("avx512_bf16", BF16), ("avx512f", AVX512), ("avx2", AVX2))
    kind = next((name for flag, name in known if flag in flags), platform.machine())
    given = {name: environment[name].lower() for name in IMITATED_AVX2 if name in environment}
    if not given or kind == AVX2:
        return kind
    if given != {name: value.lower() for name, value in IMITATED_AVX2.items()}:
        raise ValueError(f"{given} restrict the instructions in part; set all of {IMITATED_AVX2}, or none")
    return f"{AVX2} (imitated on {kind})"


def has_bf16(kind: str) -> bool:
    """Return whether a kind of processor multiplies in bf16; a GPU does."""
    return kind in (BF16, AMX) or torch.cuda.is_available()


def file_part(kind: str) -> str:
    """Return the kind as a part of a file name: avx2-imitated, avx512-bf16."""
    short = kind.partition(" on ")[0].lower().replace("avx-", "avx").replace(" with ", "-")
    return re.sub(r"[^a-z0-9]+", "-", short).strip("-")


def cpu_flags() -> set[str]:
    """Return the instruction sets of the processor; without Linux's /proc/cpuinfo only the one that torch uses."""
    found = re.search(r"^flags\s*: (.*)$", cpu_information(), re.MULTILINE)
    default = {"DEFAULT": "", "AVX2": "avx2", "AVX512": "avx512f"}
    return set(found[1].split()) if found else {default.get(torch.backends.cpu.get_cpu_capability(), "")}


def processor_name() -> str:
    """Return the name of the processor, with the family and model numbers that tell generations apart."""
    text = cpu_information()
    values = [re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model")]
    if not all(values):
        return platform.processor() or platform.machine()
    name, family, model = (value[1].strip() for value in values if value)
    return f"{name} (family {family}, model {model})"


def cpu_information() -> str:
    """Return /proc/cpuinfo, or nothing on other systems than Linux."""
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.is_file() else ""
