"""How steps by XLA scale over devices and processes of one machine, and what 256 hosts would give.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --workloads gpt --seconds 60

Two processes with a core each meet on the loopback; with one core, one process is what they are
compared with. 4 devices of one process share its cores, so they can only be slower than one: by how
much, is what dividing costs. The time is the least of all steps, since others may be busy, too.
What devices send each other is what XLA's own text of the program says. The tables of docs/xla.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from typing import Any

HOSTS = 256
#: Of the network between hosts: seconds of a turn, and 10^9 bits a second.
LATENCY, BANDWIDTHS = 20e-6, (1, 10, 100)
DEVICES = (1, 2, 4)
#: So many steps are timed at least, and at most.
LEAST_STEPS, MOST_STEPS = 5, 1000


def efficiency(
    seconds: float, sent: int, exchanges: int, gigabits: float, hosts: int = HOSTS
) -> float:
    """The part of a step in which a host computes, if it computes and sends in turn.

    The gradients, which are nearly all that is sent, go round in a ring; the other exchanges are
    small, and go up and down a tree.

    Args:
        seconds: of a step of a host alone.
        sent: bytes that hosts exchange.
        exchanges: how often they do.
        gigabits: the network's 10^9 bits a second.
        hosts: how many there are.
    """
    turns = 2 * (hosts - 1) + (exchanges - 1) * 2 * math.log2(hosts)
    sending = 2 * (hosts - 1) / hosts * sent / (gigabits / 8 * 1e9)
    return seconds / (seconds + sending + turns * LATENCY)


def work(options: Any) -> None:
    """Measure as one of the processes, and print what was found as JSON."""
    os.sched_setaffinity(0, set(options.cores))
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    from steps import PaltoStep
    from workloads import WORKLOADS

    from palto.compiler.executors import chosen
    from palto.compiler.xla.processes import join

    if options.processes > 1:
        join(options.coordinator, options.processes, options.rank)
    workload = WORKLOADS[options.workloads[0]]
    executor = chosen("xla", devices=options.devices, every_process=True)
    step = PaltoStep(workload, executor, options.examples)
    step()
    times = []
    for _ in range(options.steps):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    between = step.explain().between
    sent = sum(row.written for row in between)
    print(json.dumps({"seconds": min(times), "sent": sent, "exchanges": len(between)}))


def measured(
    name: str, steps: int, *, processes: int = 1, devices: int = 1, examples: int, cores: list[int]
) -> dict[str, Any]:
    """Seconds of a step, and how many bytes each device sends in it, how often.

    Args:
        name: of the workload.
        steps: how many.
        processes: how many share the batch; each has one of the cores.
        devices: of each process.
        examples: of each process.
        cores: which.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = []
    for rank in range(processes):
        own = cores if processes == 1 else [cores[rank]]
        words = ["--work", "--workloads", name, "--steps", steps, "--processes", processes,
                 "--devices", devices, "--examples", examples, "--rank", rank,
                 "--coordinator", address, "--cores", *own]  # fmt: skip
        running.append(
            subprocess.Popen(
                [sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{name} on {processes} processes of {devices} devices has failed")
    found = [json.loads(text.splitlines()[-1]) for text in said]
    return found[0] | {"seconds": max(x["seconds"] for x in found)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["alexnet", "gpt", "fully_connected"])
    parser.add_argument("--seconds", type=float, default=20, help="of steps, in each of six ways")
    for name in ("steps", "processes", "devices", "examples", "rank"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    from workloads import WORKLOADS

    cores = (sorted(os.sched_getaffinity(0)) * 2)[:2]
    print(
        _head(
            "step",
            "1 process",
            "2 processes, as many examples each",
            "2 processes, half as many each",
            *(f"{n} devices, 2 cores" for n in DEVICES),
        )
    )
    alone = {}
    for name in options.workloads:
        batch = WORKLOADS[name].examples

        def run(
            examples: int,
            cores: list[int] = cores,
            name: str = name,
            steps: int = LEAST_STEPS,
            **options: int,
        ) -> dict[str, Any]:
            return measured(name, steps, examples=examples, cores=cores, **options)

        steps = round(options.seconds / run(batch)["seconds"])
        steps = min(max(steps, LEAST_STEPS), MOST_STEPS)
        one = run(batch, cores[:1], steps=steps)
        weak, strong = (run(n, steps=steps, processes=2) for n in (batch, batch // 2))
        shared = [run(batch, steps=steps, devices=n) for n in DEVICES]
        alone[name] = shared[0]["seconds"], weak["sent"], weak["exchanges"]
        cells = [
            _ms(one), f"{_ms(weak)}: {one['seconds'] / weak['seconds']:.0%} of twice the work",
            f"{_ms(strong)}: {one['seconds'] / strong['seconds']:.2f} times as fast",
            *map(_ms, shared),
        ]  # fmt: skip
        print(f"| {WORKLOADS[name].title} |", " | ".join(cells), "|", flush=True)
    print(f"\nOf {HOSTS} hosts:\n")
    print(_head("step", "alone", "exchanged", *(f"{x} Gb/s" for x in BANDWIDTHS)))
    for name, (seconds, sent, often) in alone.items():
        worth = [f"{HOSTS * efficiency(seconds, sent, often, x):.0f}" for x in BANDWIDTHS]
        told = f"{sent / 1e6:.1f} MB, {often} exchanges"
        print(f"| {WORKLOADS[name].title} | {1e3 * seconds:.3g} ms | {told} |",
              " | ".join(worth), "|")  # fmt: skip


def _head(*names: str) -> str:
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def _ms(found: dict[str, Any]) -> str:
    return f"{1e3 * found['seconds']:.3g} ms"


if __name__ == "__main__":
    main()
