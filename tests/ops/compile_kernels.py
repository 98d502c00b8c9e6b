"""Compile the Triton backend's kernels for an NVIDIA H100 or H200 (compute capability 9.0) on a machine without a GPU.

The backend is called as ever, on CPU tensors, but each launch only compiles: types, alignment and sizes are the real ones.
Run by test_lsh_triton.py in a process of its own, without the interpreter; prints one line of JSON per kernel.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from reformer_lab.ops.lsh_attention import triton
from reformer_lab.ops.lsh_attention.options import LSHOptions

CASES: dict[str, dict[str, Any]] = {
    **{f"{str(dtype).removeprefix('torch.')} x {width}": {"dtype": dtype, "width": width}
       for dtype in triton.DTYPES for width in (64, 128)},
    "cross, both ways, dropout": {"cross_bucket": True, "causal": False, "dropout_p": 0.1},
    "bucket, as often": {"coverage": "bucket", "correct_duplicates": False},
    "odd widths, eight rounds": {"width": 17, "width_v": 65, "num_hashes": 8, "dropout_p": 0.1},
    "one round": {"num_hashes": 1, "cross_bucket": True},
}  # fmt: skip


class Driver:
    """What the compiler asks of a GPU's driver."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


def main() -> None:
    compiled: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: JITFunction, *arguments: Any, warmup: bool, **keywords: Any) -> SimpleNamespace:
        kernel = run(self, *arguments, warmup=True, **keywords)
        compiled[self.__name__] = kernel
        return kernel

    driver.set_active(Driver())
    JITFunction.run = compile_only
    for name in sys.argv[1:]:
        compiled.clear()
        call(**CASES[name])
        for kernel_name, kernel in compiled.items():
            ptx = kernel.asm["ptx"]
            facts = {
                "case": name, "kernel": kernel_name, "shared": kernel.metadata.shared, "machine_code": len(kernel.asm["cubin"]),
                "tf32": "tf32" in ptx, "double": any(f"{operation}.f64" in ptx for operation in ("mul", "add", "fma.rn")),
                "tensor_cores": "mma" in ptx,
            }  # fmt: skip
            print(json.dumps(facts), flush=True)


def call(
    *, dtype: torch.dtype = torch.bfloat16, width: int = 64, width_v: int | None = None, num_hashes: int = 4,
    causal: bool = True, coverage: str = "chunk", cross_bucket: bool = False, correct_duplicates: bool = True,
    dropout_p: float = 0.0,
) -> None:  # fmt: skip
    """Go through hashing, forward and backward once."""
    options = LSHOptions(
        num_hashes=num_hashes, chunk_length=64, chunks_before=1, chunks_after=0, causal=causal, coverage=coverage,
        cross_bucket=cross_bucket, correct_duplicates=correct_duplicates, logit_scale=1.0, dropout_p=dropout_p,
    )  # fmt: skip
    qk, v = torch.ones(1, 2, 256, width, dtype=dtype), torch.ones(1, 2, 256, width_v or width, dtype=dtype)
    triton.hash_vectors(qk, torch.ones(1, 2, width, num_hashes, 4), (8,))
    buckets = torch.zeros(1, 2, num_hashes, 256, dtype=torch.int64)
    output, logsumexp, maximum, total = triton.forward(qk, v, buckets, None, options)
    triton.backward(qk, v, buckets, None, output, maximum, total, options, output, logsumexp)


if __name__ == "__main__":
    main()
