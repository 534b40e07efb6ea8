"""Many processes as one run: discovery, coordination, and the detection of failures.

`discovery` finds the coordinator's address and the index of this process. `coordination` joins the
processes and offers broadcasts, the barrier at the end and `abort`; behind it, `group` holds the
heartbeats and the protocol by which all processes exit together. `watchdog` diagnoses which process
blocks a run that makes no progress. `relay` detects that process 0 has died. Nothing is imported
here, because discovery must run before JAX does.
"""
