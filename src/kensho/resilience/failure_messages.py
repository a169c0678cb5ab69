"""What ONNX Runtime, CUDA and the driver say when they fail, and what it means. Data, with the source of each line.

These libraries report most failures as text alone (an ONNX Runtime maintainer: "no good way to catch", issue 9939), so
the text is all there is to go by. A line says which words (lower case) must all occur in a message; the first line
that fits decides, the graver lines first. A message that no line fits is an unknown failure, and counts as one.
"""

from kensho.base.structs import Struct
from kensho.resilience.failure_class import FailureClass


class MessageRule(Struct):
    words: tuple[str, ...]
    """All of them must occur in the message, in lower case."""
    failure: FailureClass
    source: str
    """Where this text was seen or is documented."""


_LOST, _MISMATCH = FailureClass.DEVICE_LOST, FailureClass.DRIVER_MISMATCH
_STICKY, _MEMORY, _NUMBERS = FailureClass.STICKY, FailureClass.OUT_OF_MEMORY, FailureClass.WRONG_NUMBERS
_SHORTAGE = FailureClass.SHORTAGE

RULES = (
    # The driver and its libraries are of different versions: nothing new starts until the module is reloaded.
    MessageRule(("driver/library version mismatch",), _MISMATCH, "NVML 18; mozilla/translations 1167"),
    MessageRule(("driver version is insufficient",), _MISMATCH, "CUDA runtime error 35"),
    MessageRule(("unsupported display driver",), _MISMATCH, "CUDA error 803 (system driver mismatch)"),
    MessageRule(("system_driver_mismatch",), _MISMATCH, "CUDA error 803, by name"),
    # The device is not there any more: a new process does not help.
    MessageRule(("fallen off the bus",), _LOST, "Xid 79; NVIDIA/open-gpu-kernel-modules 507"),
    MessageRule(("gpu is lost",), _LOST, "NVML 15; nvidia-smi after Xid 79"),
    MessageRule(("gpu requires reset",), _LOST, "NVML 16; Xid catalog, action RESET_GPU"),
    MessageRule(("no cuda-capable device",), _LOST, "CUDA error 100"),
    MessageRule(("devices are unavailable",), _LOST, "CUDA error 46 (busy or unavailable)"),
    MessageRule(("cuda", "unknown error"), _LOST, "CUDA error 999 after suspend; pytorch 88639, cupy 7774"),
    MessageRule(("cuda", "err: 999"), _LOST, "cudaSetDevice after suspend; ollama 6647"),
    MessageRule(("cuda", "failure: 999"), _LOST, "cudart init after suspend; ollama 6647"),
    MessageRule(("uncorrectable ecc error",), _LOST, "CUDA error 214; Xid 48"),
    MessageRule(("dxgi_error_device_removed",), _LOST, "Direct3D: the adapter is gone (887a0005)"),
    MessageRule(("hiperrornodevice",), _LOST, "ROCm, hipErrorNoDevice"),
    # "The process must be terminated and relaunched" (CUDA driver API): every later call fails as well, and the error
    # often surfaces at an innocent one (pytorch 44624). Left alive, it served only errors for 22 hours (ds4 759).
    MessageRule(("illegal memory access",), _STICKY, "CUDA error 700 (77 before CUDA 10.1); onnxruntime 2963, 26312"),
    MessageRule(("device-side assert",), _STICKY, "CUDA error 710"),
    MessageRule(("misaligned address",), _STICKY, "CUDA error 716"),
    MessageRule(("illegal instruction was encountered",), _STICKY, "CUDA error 715; opencv 6176"),
    MessageRule(("invalid program counter",), _STICKY, "CUDA error 718"),
    MessageRule(("operation not supported on global/shared address space",), _STICKY, "CUDA error 717"),
    MessageRule(("hardware stack error",), _STICKY, "CUDA error 714"),
    MessageRule(("unspecified launch failure",), _STICKY, "CUDA error 719; cupy 7774"),
    MessageRule(("the launch timed out and was terminated",), _STICKY, "CUDA error 702"),
    MessageRule(("context is destroyed",), _STICKY, "CUDA error 709"),
    MessageRule(("cudnn_status_internal_error",), _STICKY, "cuDNN after a failed launch; AdelaiDet 97"),
    MessageRule(("cublas_status_execution_failed",), _STICKY, "cuBLAS after a failed launch"),
    MessageRule(("memory access fault by gpu",), _STICKY, "ROCm runtime"),
    # Memory: the next call may work, after an arena failure often only in a new session (Deep-Live-Cam PR 1738).
    MessageRule(("failed to allocate memory for requested buffer",), _MEMORY, "ONNX Runtime BFCArena; 20038, 22702"),
    MessageRule(("available memory of", "smaller than requested bytes"), _MEMORY, "ONNX Runtime BFCArena with a limit"),
    MessageRule(("cuda failure 2:",), _MEMORY, "ONNX Runtime CudaCall, CUDA error 2"),
    MessageRule(("out of memory",), _MEMORY, "CUDA error 2, torch OutOfMemoryError, llama.cpp"),
    MessageRule(("resource_exhausted",), _MEMORY, "JAX, jax 22755"),
    MessageRule(("std::bad_alloc",), _MEMORY, "C++ on the host: ONNX Runtime CPU"),
    MessageRule(("bad allocation",), _MEMORY, "the same from Microsoft's library"),
    MessageRule(("cublas_status_alloc_failed",), _MEMORY, "cuBLAS handle without memory"),
    MessageRule(("cannot allocate memory",), _MEMORY, "errno ENOMEM"),
    # The machine's want, and not the engine's: the same start works as soon as there is room.
    MessageRule(("too many open files",), _SHORTAGE, "errno EMFILE, ENFILE"),
    MessageRule(("resource temporarily unavailable",), _SHORTAGE, "errno EAGAIN: fork, pthread_create"),
    MessageRule(("can't start new thread",), _SHORTAGE, "Python, of pthread_create"),
    # Numbers: said by whoever looked at them.
    MessageRule(("not finite",), _NUMBERS, "an engine host's own check of its logits"),
)


def failure_of(message: str) -> FailureClass | None:
    """What a library's message means; None if no line of the table fits. O(lines x length)."""
    text = message.lower()
    return next((rule.failure for rule in RULES if all(words in text for words in rule.words)), None)
