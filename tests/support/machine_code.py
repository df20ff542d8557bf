"""The machine code of the kernels for GPUs, made without a GPU: prints what matters of it as JSON.

A program of its own, since Triton must not be interpreting here: TRITON_INTERPRET=0 python machine_code.py
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from horovod_sign.tensors.devices import batches, resident, triton_kernels

PLANES = {"pack": "*i16", "interpolate_pack": "*i16", "apply": "*i32", "compare": "*i32"}
OPTIONS = {
    "pack": {"ONE_BIT": False},
    "interpolate_pack": {"ONE_BIT": False, "WARM": False, "SAME": False},
    "apply": {"TIES": True, "DECAY": True},
    "tally": {"TIES": True, "BLOCK": triton_kernels._TALLIED},
    "compare": {"TIES": True, "ABSTAINS": True, "BLOCK": resident.WORDS},
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compiled(name: str, dtype: str, architecture: int, fusion: bool):
    kernel = getattr(triton_kernels, name)
    constants = {**triton_kernels._ELEMENTS[dtype], "DTYPE": dtype, **OPTIONS[name], "ALIGNED": True}
    constants["TILE"] = batches.TILE
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    planes = PLANES.get(name, "*i32")
    signature, pointers = {}, {"sign": planes, "nonzero": planes, "counts": "*i32", "scalars": "*fp64"}
    pointers |= dict.fromkeys(("rows", "decided", "decided_sign", "decided_nonzero", "found"), "*i32")
    pointers |= dict.fromkeys(("words", "length", "MESSAGES"), "i32")
    for argument in kernel.arg_names:
        number = "fp32" if argument.startswith(("beta", "rest")) else "*i64"
        signature[argument] = "constexpr" if argument in constants else pointers.get(argument, number)
    aligned = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        {(kernel.arg_names.index(k),): v for k, v in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": triton_kernels.warps_of(kernel, constants.get("WIDTH", 4)), "enable_fp_fusion": fusion}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def look(name: str, dtype: str, architecture: int, fusion: bool = False) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled(name, dtype, architecture, fusion).asm["cubin"])
        file.flush()
        code = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    instructions = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    counted = {
        "fused": sum(each.startswith(("FFMA", "DFMA", "HFMA2.MMA")) for each in instructions),
        "wide loads": sum(each.startswith("LDG.E.128") for each in instructions),
        "spills": sum(each.startswith(("LDL", "STL")) for each in instructions),
        "instructions": len(instructions),
    }
    return {"kernel": name, "dtype": dtype, "architecture": architecture, **counted}


if __name__ == "__main__":
    asked = [each.split(":") for each in sys.argv[1:]]
    print(json.dumps([look(name, dtype, int(number), bool(fusion)) for name, dtype, number, *fusion in asked]))
