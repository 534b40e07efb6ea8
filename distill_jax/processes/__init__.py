"""Many processes as one run: how they find each other, coordinate, and notice that one is gone.

`discovery` finds the coordinator and the number of this process, `coordination` joins the processes
and has heartbeats, barriers and broadcasts, `relay` reports the loss of the first process, and
`watchdog` names the process that blocks the others. Nothing is imported here, since discovery must
run before JAX does.
"""
