"""The steps of the story that are about computing: compile, answer, start again, offline, crash."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys

from kensho.app import GenerateOptions, Kensho, Token
from kensho.base.events import CircuitChanged, CompileFinished, CompileStage, Event, GraphLoaded, StreamMoved
from kensho.base.units import size_text
from kensho.demo.stage import FIRST, MODEL, Question, Stage, StepFailed, check, questions
from kensho.runtime.compiling.stages import STAGES

CHILD_TIMEOUT_S = 60
TOKENS_BEFORE_THE_CRASH = 5
RETURN_TIMEOUT_S = 30.0


def compile_for_this_machine(stage: Stage) -> str:
    """3. The model is compiled in a child process, in five stages that report what they do."""
    asyncio.run(_compile(stage))
    reports = [event for event in stage.events if isinstance(event, CompileStage)]
    for name in STAGES:
        of_stage = [event for event in reports if event.stage == name]
        check(bool(of_stage) and of_stage[-1].done == of_stage[-1].total > 0, f"stage {name} reported its work")
        stage.say(f"{name:<11} {of_stage[-1].total} {of_stage[-1].unit}")
    finished = stage.heard(CompileFinished)
    check(len(finished) == 1, "one graph was compiled")
    graph = finished[0]
    stage.first_answer_s = graph.seconds
    stage.say(f"kept under its content key {graph.key[:16]}...")
    return f"{size_text(graph.size_bytes)} of int8 graph in {graph.seconds:.2f} s"


def answer(stage: Stage) -> str:
    """4. A question is answered, token by token, by a neural network in an engine host process."""
    question = questions(FIRST)[0]
    stage.say(f'"{question.question}"')
    tokens, first_token_s = asyncio.run(_stream(stage, question.question))
    stage.first_answer_s += first_token_s
    check("".join(token.text for token in tokens) == question.answer, "the answer is right, word for word")
    return f"{len(tokens)} tokens, the first after {first_token_s:.2f} s"


def start_again(stage: Stage) -> str:
    """5. A new process answers from the graph cache."""
    question = questions(FIRST)[0]
    record = _run_child(stage, [], "run", MODEL, question.question)
    check(record["text"] == question.answer, "the new process gives the same answer")
    check(record["load_source"] == "disk", "the graph came from the cache")
    again_s = float(str(record["first_token_seconds"]))
    ratio = stage.first_answer_s / again_s
    stage.say(f"compile, load, first token: {stage.first_answer_s:.2f} s; from the cache: {again_s:.2f} s")
    check(ratio > 1, "a start from the cache is faster than one that compiles")
    return f"{ratio:.1f} x faster than the first time"


def offline(stage: Stage) -> str:
    """7. The origin is stopped. Check, start and answer still work and no connection is tried."""
    stage.close_origin()
    prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    probe = [*prefix, "true"]
    is_isolated = shutil.which("unshare") is not None and _succeeds(probe)
    if not is_isolated:
        stage.say("this machine refuses network namespaces; the audit hook alone watches for connections")
    around = prefix if is_isolated else []
    verified = _run_child(stage, around, "verify", "--full")
    check(verified["damaged"] == [], "verify works without a network")
    question = questions(FIRST)[1]
    record = _run_child(stage, around, "run", MODEL, question.question)
    check(record["text"] == question.answer, "the answer is right without a network")
    where = "in an empty network namespace" if is_isolated else "under an audit hook"
    stage.say(f"verify, start and answer {where}: no connection was tried")
    return where


def crash(stage: Stage) -> str:
    """8. The engine host is killed in the middle of a stream; the standby goes on; the first engine returns."""
    return asyncio.run(_crash(stage, max(questions(FIRST), key=lambda q: len(q.answer))))


async def _compile(stage: Stage) -> None:
    async with stage.open_app() as app:
        await app.compile(MODEL)


async def _stream(stage: Stage, question: str) -> tuple[list[Token], float]:
    async with stage.open_app() as app:
        stream = app.generate(MODEL, question, GenerateOptions())
        stage.show("    ")
        tokens = []
        async for token in stream:
            tokens.append(token)
            stage.show(token.text)
        stage.show("\n")
        return tokens, stream.record.first_token_seconds


async def _crash(stage: Stage, question: Question) -> str:
    async with stage.open_app(standby="hot", allow_faults=True) as app:
        is_standby_ready, is_closed = asyncio.Event(), asyncio.Event()
        app.listen(lambda event: is_standby_ready.set() if _is_standby(event) else None)
        app.listen(lambda event: is_closed.set() if _is_return(event) else None)
        undisturbed = app.generate(MODEL, question.question, GenerateOptions())
        wanted = [token.id async for token in undisturbed]

        async with asyncio.timeout(RETURN_TIMEOUT_S):
            await is_standby_ready.wait()

        stage.events.clear()
        app.arm_fault(MODEL, "primary", "slow")
        stream = app.generate(MODEL, question.question, GenerateOptions())
        ids: list[int | None] = []
        stage.say(f'"{question.question}"')
        stage.show("    ")
        victim = _primary_pid(app)
        async for token in stream:
            ids.append(token.id)
            stage.show(token.text)
            if len(ids) == TOKENS_BEFORE_THE_CRASH:
                os.kill(victim, signal.SIGKILL)
                stage.show(" [SIGKILL] ")
        stage.show("\n")
        check(len(ids) > TOKENS_BEFORE_THE_CRASH, "the stream went on after the kill")
        check(ids == wanted, "the ids are those of the undisturbed answer: none lost, repeated or changed")
        check(stream.record.failovers == 1 and len(stage.heard(StreamMoved)) == 1, "the stream moved once")

        async with asyncio.timeout(RETURN_TIMEOUT_S):
            await is_closed.wait()
        path = ["CLOSED"]
        for event in stage.heard(CircuitChanged):
            if event.engine == "primary":
                path.append(event.to_state)
                stage.say(event.message())
        check(path == ["CLOSED", "RESTARTING", "HALF_OPEN", "CLOSED"], "the circuit went its way and closed again")
        check(_primary_pid(app) != victim, "a new process took the place of the killed one")
        asked = 0
        async with asyncio.timeout(RETURN_TIMEOUT_S):  # by and by: the primary gets all requests again after 10 s
            while True:
                asked += 1
                again = app.generate(MODEL, question.question, GenerateOptions())
                check([token.id async for token in again] == wanted, "the returned engine gives the same ids")
                if again.record.engine == "primary":
                    break
        stage.say(f"requests come back to it by and by: it answered question {asked} after its return")
    stage.say("the first engine was slowed by fault injection (0.3 s a token), or the kill would come too late:")
    stage.say("this small model says it all in 5 ms. No other time was changed: a crashed engine starts again at once")
    return f"gap {stream.record.gap_ms:.0f} ms, 0 tokens lost or repeated, primary back"


def _primary_pid(app: Kensho) -> int:
    pid = app.engine_pids(MODEL)["primary"]
    if pid is None:
        raise StepFailed("the primary engine is not running", advice="see the log")
    return pid


def _is_standby(event: Event) -> bool:
    return isinstance(event, GraphLoaded) and event.engine == "standby"


def _is_return(event: Event) -> bool:
    return isinstance(event, CircuitChanged) and (event.engine, event.to_state) == ("primary", "CLOSED")


def _run_child(stage: Stage, around: list[str], *command: str) -> dict[str, object]:
    """A `kensho` command in a process of its own that reports every connection it tries; its summary."""
    program = [sys.executable, "-m", "kensho.testing.connections"]
    done = subprocess.run(
        [*around, *program, "--json", "--store", str(stage.settings.store), *command],
        capture_output=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
        env=dict(stage.settings.child_env),
    )
    lines = done.stdout.splitlines()
    summary = json.loads(lines[-1]) if lines else {}
    check(done.returncode == 0, f"kensho {command[0]} works in a new process: {summary or done.stderr[-500:]!r}")
    return dict(summary)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
