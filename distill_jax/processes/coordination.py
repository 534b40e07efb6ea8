"""Coordination of the processes of one run, through JAX's coordination service.

Every process runs the same program on its own devices. `join` connects them by `jax.distributed`;
process 0 hosts the coordinator, and every other process reaches it through a `relay`, which detects
the death of process 0. From then on three events end all processes, so that none waits forever in a
computation that cannot finish: a process fails, a process sends no heartbeat, or no process makes
progress (`watchdog`).

For a single process every function here returns at once; no thread is started. Left out on purpose:
continuing with the processes that are left (the launcher restarts all of them and the run resumes),
and what the processes compute together (`parallel`).
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from distill_jax.processes import relay, watchdog
from distill_jax.processes.discovery import Rendezvous
from distill_jax.processes.group import ProcessGroup, failure_line

__all__ = [
    "HEARTBEAT_TIMEOUT",
    "STEP_TIMEOUT",
    "CoordinationError",
    "abort",
    "broadcast_from_first",
    "failure_line",
    "find_lost_process",
    "is_distributed",
    "is_first",
    "join",
    "leave",
    "process_count",
    "process_index",
    "watches_steps",
]

#: Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT_TIMEOUT = 100
#: Seconds within which all processes must have started.
JOIN_TIMEOUT = 300
#: Seconds within which at least one process must make progress.
STEP_TIMEOUT = 3600

_group: ProcessGroup | None = None  # of this process, from its first use of a distributed run


class CoordinationError(RuntimeError):
    """The processes could not be joined; one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def join(
    rendezvous: Rendezvous | None,
    *,
    stop_together: bool = False,
    timeout: float = HEARTBEAT_TIMEOUT,
    step_timeout: float = STEP_TIMEOUT,
) -> None:
    """Joins this process to its run; must come before the first computation with JAX.

    Args:
      rendezvous: from `discovery.discover`; None, for a single process, does nothing.
      stop_together: after SIGTERM in any process all agree on a step to stop at, see
        `loop.stop_on_signals`. Otherwise SIGTERM ends the process.
      timeout: seconds without a heartbeat of a process after which all abort.
      step_timeout: seconds without progress of any process after which all abort, see `watchdog`;
        0 for never.

    Raises:
      CoordinationError: not all processes came, or this one cannot reach the coordinator.
    """
    if rendezvous is None:
        return
    import jax

    jax.config.update("jax_enable_preemption_service", stop_together)
    try:
        rendezvous = _ask_cluster(rendezvous)
        jax.distributed.initialize(
            _relayed_address(rendezvous),
            rendezvous.process_count,
            rendezvous.process_index,
            rendezvous.devices if rendezvous.devices is None else list(rendezvous.devices),
            # With flags alone JAX must not detect anything.
            rendezvous.cluster or "deactivate",
            initialization_timeout=JOIN_TIMEOUT,
            # After our own, which ends with a line for the user; JAX's aborts with a C++ trace.
            heartbeat_timeout_seconds=int(timeout) + 20,
        )
    except Exception as error:
        raise CoordinationError(
            f"the processes could not be joined (coordinator {rendezvous.coordinator or 'detected'}"
            f", {rendezvous.process_count or 'detected'} processes): {error}"[:500]
        ) from error
    if is_distributed():
        watchdog.mark(0, "preparing", long=True)
        _get_group().start_heartbeat(timeout, step_timeout)


def _ask_cluster(rendezvous: Rendezvous) -> Rendezvous:
    """Completes a rendezvous by what the cluster provides: the relay needs the address.

    JAX would otherwise detect it itself, inside `initialize`. A version of JAX without this private
    function does so; its processes then have no relay.
    """
    if not rendezvous.cluster:
        return rendezvous
    try:
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        return rendezvous
    local, devices = os.environ.get("JAX_LOCAL_DEVICE_IDS"), rendezvous.devices
    if devices is None and local:
        devices = tuple(int(number) for number in local.split(","))
    coordinator, count, index, found = detect(
        rendezvous.coordinator,
        rendezvous.process_count,
        rendezvous.process_index,
        devices,
        rendezvous.cluster,
        JOIN_TIMEOUT,
    )
    if coordinator is None or count is None or index is None:
        return rendezvous
    return Rendezvous(coordinator, count, index, devices=found if found is None else tuple(found))


def _relayed_address(rendezvous: Rendezvous) -> str | None:
    """The address for JAX's client: of a relay, except in process 0 or where JAX detects it."""
    if not (rendezvous.coordinator and rendezvous.process_index):
        return rendezvous.coordinator
    reason = f"lost process 0 of {rendezvous.process_count}"

    def on_lost() -> None:
        _get_group().exit_without_coordinator(reason)

    return relay.open_relay(
        rendezvous.coordinator,
        is_running=lambda: _group is not None and _group.is_running,
        on_lost=on_lost,
    )


def _jax_state() -> Any:
    """JAX's record of `jax.distributed`, whoever initialised it; None before and after."""
    module = sys.modules.get("jax._src.distributed")
    joined = module is not None and module.global_state.client is not None
    return module.global_state if module is not None and joined else None


def _get_group() -> ProcessGroup:
    """The group of this process; without heartbeat where a program initialised JAX itself."""
    global _group
    if _group is None:
        state = _jax_state()
        _group = ProcessGroup(state.client, state.process_id, state.num_processes)
    return _group


def process_count() -> int:
    """The number of processes of the run."""
    state = _jax_state()
    return state.num_processes if state else 1


def process_index() -> int:
    """The index of this process, from 0."""
    state = _jax_state()
    return state.process_id if state else 0


def is_distributed() -> bool:
    """Whether the run has more than one process."""
    return process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes the files that are written once."""
    return process_index() == 0


def watches_steps() -> bool:
    """Whether the watchdog needs to know when the devices have computed a step."""
    return is_distributed() and _get_group().step_timeout > 0


def broadcast_from_first(make: Callable[[], Any], key: str = "") -> Any:
    """Calls `make` in process 0 and returns its result in every process; all call it together.

    An error in process 0 aborts the run, unless the result carries it.

    Args:
      make: returns what JSON can hold; called in process 0 alone.
      key: a unique name for a call outside of the main thread, where calls have no common order.

    Returns:
      The result, in a distributed run as JSON gives it back.
    """
    return _get_group().broadcast(make, key) if is_distributed() else make()


def barrier() -> None:
    """Waits for all processes, which call it together; a failure of one ends all of them."""
    if is_distributed():
        _get_group().barrier()


def leave() -> None:
    """Ends a successful run: waits at a barrier for all processes, then disconnects."""
    if not is_distributed():
        return
    _get_group().leave()
    import jax

    jax.distributed.shutdown()


def abort(code: int, line: str) -> None:
    """Ends all processes at once with this exit code; process 0 prints the line.

    Of several processes that fail together the first failure counts. Returns only in a single
    process, which ends by itself.

    Args:
      code: the exit code.
      line: what went wrong.
    """
    if is_distributed():
        _get_group().abort(code, line)


def find_lost_process() -> int | None:
    """The index of a process that stopped sending heartbeats; None when all send them.

    Takes some seconds. For a process whose computation with all of them has failed.
    """
    return _get_group().find_lost_process()
