import asyncio
import errno

import pytest

from kensho.base.errors import (
    ConfigError,
    DeadlineMissed,
    EngineCrashed,
    EngineError,
    EngineHung,
    KenshoError,
    ModelError,
    NotEnoughMemory,
    Overloaded,
    PoisonRequest,
    WrongNumbers,
)
from kensho.resilience.classify import FailureClass, classify, classify_start
from kensho.resilience.failure_messages import RULES, failure_of

F = FailureClass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineCrashed("gone"), F.CRASH),
        (EngineCrashed("gone", stderr="CUDA error: out of memory\nAborted (core dumped)"), F.CRASH),
        (EngineCrashed("gone", stderr="Failed to initialize NVML: Driver/library version mismatch"), F.DRIVER_MISMATCH),
        (EngineCrashed("gone: the GPU has fallen off the bus"), F.DEVICE_LOST),
        (EngineHung("no token"), F.HANG),
        (WrongNumbers("nan"), F.WRONG_NUMBERS),
        (NotEnoughMemory("does not fit"), F.OUT_OF_MEMORY),
        (EngineError("CUDA error: an Illegal Memory Access was encountered"), F.STICKY),
        (EngineError("something else"), F.UNKNOWN),
        (OSError(errno.EMFILE, "Too many open files"), F.SHORTAGE),
        (OSError(errno.ENFILE, "Too many open files in system"), F.SHORTAGE),
        (BlockingIOError(errno.EAGAIN, "fork"), F.SHORTAGE),
        (MemoryError(), F.SHORTAGE),
    ],
)
def test_an_engines_failure_has_a_kind(error: BaseException, kind: FailureClass) -> None:
    assert classify(error) is kind


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        GeneratorExit(),
        Overloaded("full"),
        DeadlineMissed("late"),
        ConfigError("bad"),
        ModelError("prompt"),
        PoisonRequest("again"),
        KenshoError("anything"),
        ValueError("bad input"),
        FileNotFoundError(errno.ENOENT, "no such file"),
    ],
)
def test_what_says_nothing_about_the_engine_is_not_counted(error: BaseException) -> None:
    assert classify(error) is None


def test_what_caused_an_error_tells_a_want_of_the_machine_from_a_failure_of_the_engine() -> None:
    for number, kind in ((errno.ENOMEM, F.SHORTAGE), (errno.EPIPE, F.UNKNOWN)):
        outer = EngineError("cannot make what an engine host needs")
        outer.__cause__ = EngineError("no socket")
        outer.__cause__.__cause__ = OSError(number, "why")
        assert classify(outer) is kind
    crashed = EngineCrashed("gone")
    crashed.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert classify(crashed) is F.CRASH


NO_THREAD = "File early_death.py, line 38, in stand_watch\nRuntimeError: can't start new thread\n"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineCrashed("gone: exit code 1", stderr=NO_THREAD), F.SHORTAGE),
        (EngineCrashed("gone: SIGABRT", stderr="terminate called after throwing 'std::bad_alloc'"), F.OUT_OF_MEMORY),
        (EngineCrashed("gone: SIGSEGV", stderr="Segmentation fault"), F.CRASH),
        (EngineCrashed("gone", stderr="the GPU has fallen off the bus"), F.DEVICE_LOST),
        (EngineError("CUDA error: unspecified launch failure"), F.STICKY),
        (NotEnoughMemory("does not fit"), F.OUT_OF_MEMORY),
        (ValueError("what"), F.CRASH),
    ],
)
def test_a_host_that_dies_of_the_machines_want_before_it_is_up_is_not_blamed(error: Exception, kind: F) -> None:
    assert classify_start(error) is kind
    if isinstance(error, EngineCrashed) and kind is not F.DEVICE_LOST:
        assert classify(error) is F.CRASH


ORT = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running"
CORPUS = [
    # ONNX Runtime, as reported in microsoft/onnxruntime and its users' threads
    (
        f"{ORT} Conv node. Name:'/patch_embed/Conv' Status Message: /onnxruntime_src/onnxruntime/core/framework/"
        "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
        "onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of size 2830172160",
        F.OUT_OF_MEMORY,
    ),
    (
        "Available memory of 1048576 is smaller than requested bytes of 285081600",
        F.OUT_OF_MEMORY,
    ),
    (
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; expr=cudaMalloc((void**)&p, size);",
        F.OUT_OF_MEMORY,
    ),
    (
        f"{ORT} MemcpyToHost node. CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; file=x.cc "
        "; line=448 ; expr=cudaStreamSynchronize(static_cast<cudaStream_t>(stream_));",
        F.STICKY,
    ),
    (
        "CUDA failure 77: an illegal memory access was encountered ; GPU=0 ; expr=cudaEventDestroy(read_event_);",
        F.STICKY,
    ),
    (f"{ORT} Softmax node. CUDA error cudaErrorLaunchFailure: unspecified launch failure", F.STICKY),
    (f"{ORT} Add node. Name:'add' Status Message: add: left operand cannot broadcast on dim 1", None),
    # torch, JAX, cupy, llama.cpp
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", F.OUT_OF_MEMORY),
    ("RuntimeError: CUDA error: device-side assert triggered", F.STICKY),
    ("RuntimeError: CUDA error: misaligned address", F.STICKY),
    ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", F.STICKY),
    (
        "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes",
        F.OUT_OF_MEMORY,
    ),
    ("cudaErrorUnknown: CUDA unknown error - this may be due to an incorrectly set up environment", F.DEVICE_LOST),
    ("cudaSetDevice err: 999; CUDA is not available", F.DEVICE_LOST),
    ("Gpu API call (an illegal instruction was encountered) in call", F.STICKY),
    ("terminate called after throwing an instance of 'std::bad_alloc'", F.OUT_OF_MEMORY),
    ("the engine host is out of memory; use a smaller model or context", F.OUT_OF_MEMORY),
    # driver and management library
    ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.144", F.DRIVER_MISMATCH),
    ("CUDA driver version is insufficient for CUDA runtime version", F.DRIVER_MISMATCH),
    ("system has unsupported display driver / cuda driver combination", F.DRIVER_MISMATCH),
    ("NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus.", F.DEVICE_LOST),
    ("Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.  Reboot the system", F.DEVICE_LOST),
    ("no CUDA-capable device is detected", F.DEVICE_LOST),
    ("all CUDA-capable devices are busy or unavailable: devices are unavailable", F.DEVICE_LOST),
    ("uncorrectable ECC error encountered", F.DEVICE_LOST),
    ("Memory access fault by GPU node-1 on address 0x7f: Page not present", F.STICKY),
    # the machine
    ("OSError: [Errno 24] Too many open files: '/dev/null'", F.SHORTAGE),
    ("BlockingIOError: [Errno 11] Resource temporarily unavailable", F.SHORTAGE),
    ("RuntimeError: can't start new thread", F.SHORTAGE),
    # nothing of the kind
    ("the prompt has 4096 tokens, the context 2048", None),
    ("", None),
]


@pytest.mark.parametrize(("message", "kind"), CORPUS)
def test_recorded_messages_are_understood(message: str, kind: FailureClass | None) -> None:
    assert failure_of(message) is kind


def test_the_graver_meaning_wins_when_a_message_has_two() -> None:
    assert failure_of("out of memory after: an illegal memory access was encountered") is F.STICKY
    assert failure_of("unspecified launch failure; the GPU has fallen off the bus") is F.DEVICE_LOST


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.words[0])
def test_each_line_of_the_table_is_reached_and_names_its_source(rule: object) -> None:
    assert rule.source  # type: ignore[attr-defined]
    assert failure_of(" ... ".join(rule.words).upper()) is rule.failure  # type: ignore[attr-defined]
