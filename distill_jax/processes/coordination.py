"""Many processes as one run: how they find each other, agree, and end together.

Every process runs the same program on its own devices. `launch` says how they find each other, and
`jax.distributed` joins them. Small things are agreed on through its coordination service, on the
host and beside whatever the devices compute. A process that ends by an error, or is not heard of
any more, ends all, and so does a step that no process gets through (`stalls`): none waits for ever
in a computation that can no longer finish. The first process carries the coordination service; the
others reach it by a `relay`, which tells them when it has died.

A single process has nothing of this: it looks at a few variables, starts no thread and waits for
nobody. Left out on purpose: going on with the processes that are left (the launcher starts all of
them again, and the run resumes), and what the processes compute together (`parallel`).
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from distill_jax.processes import relay, watchdog
from distill_jax.processes.discovery import Launch

#: Seconds after which a process that is not heard of counts as dead.
HEARTBEAT_TIMEOUT = 100
#: Seconds within which all processes have to have been started.
JOIN_TIMEOUT = 300
#: Seconds in which some process has to go on with the steps.
STEP_TIMEOUT = 3600

RESUME_HINT = "and the same command goes on from the last checkpoint"

_SAID = "distill_jax/said/"  # what the first process has told the others
_ALIVE = "distill_jax/alive/"  # of each process a number, which grows, and what it does
_ENDED = "distill_jax/ended"  # the first error, in JSON
_HEARD = "distill_jax/heard/"  # who knows of it
_FAREWELL = 10.0  # seconds for everybody to know of it
_LAST = 1.0  # more for the others to be gone, who lose their coordinator
_LOOK = 5.0  # seconds in which a process that lives is heard of several times
_FOR_EVER = 7 * 24 * 3600 * 1000  # milliseconds; whoever waits is ended by `_watch` long before

_numbers = itertools.count()  # every process asks the same things in the same order
_finished = threading.Event()
_joined = threading.Event()
_answered = threading.Event()  # the first process has answered since this was cleared
_watching: threading.Thread | None = None
_step_limit = 0.0  # seconds; 0 for none


class CoordinationError(RuntimeError):
    """The processes could not be joined; one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def join(
    how: Launch | None,
    *,
    stop_together: bool = False,
    timeout: float = HEARTBEAT_TIMEOUT,
    step_timeout: float = STEP_TIMEOUT,
) -> None:
    """Joins this process with the others; must come before the first computation with JAX.

    Args:
      how: of `discovery.discover`; None does nothing.
      stop_together: SIGTERM in any process is for all of them to agree upon, by `stop_requested`.
        Else it ends the process.
      timeout: seconds after which a process that is not heard of ends all.
      step_timeout: seconds after which all end if no process goes on, see `stalls`; 0 for never.

    Raises:
      CoordinationError: the processes did not all come, or this one cannot reach the first.
    """
    global _watching, _step_limit
    if how is None:
        return
    import jax

    jax.config.update("jax_enable_preemption_service", stop_together)
    try:
        how = _asked(how)
        address = how.coordinator
        if address and how.process:
            gone = f"process 0 of {how.processes} has gone"
            address = relay.open_relay(address, _in_run, lambda: _first_lost(gone))
        jax.distributed.initialize(
            address,
            how.processes,
            how.process,
            how.devices if how.devices is None else list(how.devices),
            # By flags alone nothing is to be detected.
            how.cluster or "deactivate",
            initialization_timeout=JOIN_TIMEOUT,
            # Behind our own, which ends with a line in place of an abort.
            heartbeat_timeout_seconds=int(timeout) + 20,
        )
    except Exception as error:
        raise CoordinationError(
            f"the processes could not be joined (coordinator {how.coordinator or 'detected'}, "
            f"{how.processes or 'detected'} processes): {error}"[:500]
        ) from error
    if is_distributed():
        watchdog.mark(0, "preparing", long=True)
        _step_limit = step_timeout
        _joined.set()
        _watching = threading.Thread(target=_watch, args=(timeout,), name="hosts", daemon=True)
        _watching.start()
        if not is_first():
            threading.Thread(target=_mind, args=(timeout,), name="first", daemon=True).start()


def _in_run() -> bool:
    return _joined.is_set() and not _finished.is_set()


def _asked(how: Launch) -> Launch:
    """With what a cluster tells, which JAX would else ask for itself: the relay has to know.

    Where this version of JAX has no such function, it asks, and nothing lies between.
    """
    if not how.cluster:
        return how
    try:
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        return how
    local, devices = os.environ.get("JAX_LOCAL_DEVICE_IDS"), how.devices
    if devices is None and local:
        devices = tuple(int(number) for number in local.split(","))
    coordinator, processes, process, devices = detect(
        how.coordinator, how.processes, how.process, devices, how.cluster, JOIN_TIMEOUT
    )
    if None in (coordinator, processes, process):
        return how
    devices = devices if devices is None else tuple(devices)
    return Launch(coordinator, processes, process, devices=devices)


def _state() -> Any:
    """JAX's own record, also of a program that has called `jax.distributed` itself; None before."""
    module = sys.modules.get("jax._src.distributed")
    joined = module is not None and module.global_state.client is not None
    return module.global_state if joined else None


def process_count() -> int:
    """How many there are."""
    state = _state()
    return state.num_processes if state else 1


def process_index() -> int:
    """Which this is, from 0."""
    state = _state()
    return state.process_id if state else 0


def is_distributed() -> bool:
    """Whether there are several."""
    return process_count() > 1


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return process_index() == 0


def watches_steps() -> bool:
    """Whether it counts when the steps of this process have been computed."""
    return is_distributed() and _step_limit > 0


def broadcast_from_first(make: Callable[[], Any], key: str = "") -> Any:
    """What the first process makes, in every process; all of them call it together.

    An error in the first process ends all, or has to be among what is made.

    Args:
      make: gives what JSON can hold; called in the first process alone.
      key: a name of its own for each call beside the main thread, where calls have no order.

    Returns:
      It, as JSON gives it back where there are several processes.
    """
    if not is_distributed():
        return make()
    key = _SAID + (key or str(next(_numbers)))
    if is_first():
        said = json.dumps(make())
        _state().client.key_value_set(key, said)
    else:
        said = _state().client.blocking_key_value_get(key, _FOR_EVER)
    return json.loads(said)


def leave() -> None:
    """The good end of every process, in which they wait for each other; does nothing for one."""
    if not is_distributed():
        return
    _state().client.wait_at_barrier("distill_jax/finish", _FOR_EVER)
    _finished.set()
    if _watching is not None:
        _watching.join()
    import jax

    jax.distributed.shutdown()


def abort(code: int, line: str) -> None:
    """Ends all processes at once, with this code and one line, said by the first process.

    The first error counts: of processes that fail together one is heard. Does nothing for a single
    process, which may end as it likes.

    Args:
      code: the exit code.
      line: what went wrong.
    """
    if not is_distributed():
        return
    global _going
    client = _state().client
    _going = about = {"code": code, "process": process_index(), "line": line}
    try:
        client.key_value_set(_ENDED, json.dumps(about))
    except Exception:
        about = _ended(client) or about  # another was faster, or the first process is gone
    _leave(client, about)


def find_lost_process() -> int | None:
    """A process that has gone, as it looks within some seconds; None when all are heard of.

    For who finds that a computation of all of them has failed.
    """
    client, seen = _state().client, {}
    deadline = time.monotonic() + _LOOK
    while time.monotonic() < deadline:
        gone = _silent(_alive(client), seen, 0.8 * _LOOK)
        time.sleep(0.1)
    return gone


def _ended(client: Any) -> dict[str, Any] | None:
    try:
        return json.loads(client.key_value_try_get(_ENDED))
    except Exception:
        return None


_leaving = threading.Lock()
_going: dict[str, Any] | None = None  # what this process is about to end with


def _leave(client: Any, about: dict[str, Any]) -> None:
    """Ends this process, the first one when the others know: it is their coordinator."""
    global _going
    with _leaving:  # for good: the other thread that comes here must not end the process earlier
        _going = about
        own = about["process"] == process_index()
        if is_first():
            _say(about["line"])
        others = set(range(process_count())) - {process_index()}
        deadline = time.monotonic() + _FAREWELL
        try:
            client.key_value_set(f"{_HEARD}{process_index()}", "", allow_overwrite=True)
            awaited = others if is_first() else {0} if own else set()
            while awaited and time.monotonic() < deadline:
                heard = {name for name, _ in client.key_value_dir_get(_HEARD)}
                awaited = {n for n in awaited if f"{_HEARD}{n}" not in heard} - {about.get("dead")}
                time.sleep(0.05)
            if own and awaited and not is_first():
                _say(about["line"])
            if is_first():
                time.sleep(_LAST)
        except Exception:
            if own and not is_first():
                _say(about["line"])
        _exit(about["code"])


def _first_lost(how: str) -> None:
    """Ends this process, to which the first one does not answer.

    Each says so: without the first process they cannot agree on who does.
    """
    # Whoever leaves already may wait for an answer that never comes.
    _leaving.acquire(timeout=2 * _LAST)
    line = f"distill-jax: failed: {how}; all have stopped, {RESUME_HINT}"
    about = _going or {"code": 1, "process": process_index(), "line": line}
    if about["process"] == process_index():
        _say(about["line"])
    _exit(about["code"])


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _watch(timeout: float) -> None:
    """In the background: says that this process lives, and ends it where another has ended."""
    client, pause = _state().client, min(1.0, timeout / 10)
    seen: dict[int, tuple[str, float]] = {}
    for number in itertools.count():
        try:
            said = f"{number} {watchdog.status()}"
            client.key_value_set(f"{_ALIVE}{process_index()}", said, allow_overwrite=True)
            if (about := _ended(client)) is not None:
                _leave(client, about)
            _answered.set()
            if is_first() and (about := _judged(_alive(client), seen, timeout)) is not None:
                client.key_value_set(_ENDED, json.dumps(about))
                _leave(client, about)
        except Exception as error:
            if _finished.is_set():
                return
            why = " ".join(str(error).split())[:200]
            _first_lost(f"process 0 of {process_count()} cannot be reached ({why})")
        if _finished.wait(pause):
            return


def _mind(timeout: float) -> None:
    """In the background: ends this process when the first one does not answer `_watch` any more.

    Counts its own looks, not the clock: a machine that was suspended has not waited.
    """
    looks, pause = 0, timeout / 10
    while not _finished.wait(pause):
        looks = 0 if _answered.is_set() else looks + 1
        _answered.clear()
        if looks > 10:
            _first_lost(f"process 0 of {process_count()} was not heard of for {timeout:g} s")


def _alive(client: Any) -> dict[int, str]:
    """What each process has said last."""
    return {int(name.rsplit("/", 1)[1]): said for name, said in client.key_value_dir_get(_ALIVE)}


def _judged(
    alive: Mapping[int, str], seen: dict[int, tuple[str, float]], timeout: float
) -> dict[str, Any] | None:
    """With what all have to end, by what they have said last; None while all is well."""
    about = {"code": 1, "process": 0}
    if (dead := _silent(alive, seen, timeout)) is not None:
        how = f"process {dead} of {process_count()} was not heard of for {timeout:g} s"
        about["dead"] = dead
    elif _step_limit and len(alive) == process_count():
        reports = {number: said.partition(" ")[2] for number, said in alive.items()}
        how = watchdog.diagnose(watchdog.parse(reports), _step_limit)
    else:
        how = None
    return how and {**about, "line": f"distill-jax: failed: {how}; all have stopped, {RESUME_HINT}"}


def _silent(
    alive: Mapping[int, str], seen: dict[int, tuple[str, float]], timeout: float
) -> int | None:
    """A process that has said nothing new for so long."""
    now = time.monotonic()
    for number, said in alive.items():
        if number not in seen or seen[number][0] != said:
            seen[number] = (said, now)
        elif now - seen[number][1] > timeout:
            return number
    return None
