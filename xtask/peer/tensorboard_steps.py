"""Reads the event files of training runs as TensorBoard does, and compares them with metrics.jsonl.

After a kill and --resume the steps since the newest checkpoint are made, and written, a second time. This fails if
TensorBoard's own reader sees a step twice, or another one than the log has, in a run that was killed and resumed:

    venv/bin/pip install tensorboard
    venv/bin/python xtask/peer/tensorboard_steps.py RUN..
"""

import json
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def logged(run, stage):
    """The curves of a stage in metrics.jsonl: by name, step and value."""
    curves = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        fields = json.loads(line)
        if fields.pop("stage") != stage:
            continue
        step = fields.pop("step")
        fields.pop("images")
        for name, value in fields.items():
            if isinstance(value, (int, float)):
                curves.setdefault(name, []).append((step, value))
    return curves


def check(run):
    for folder in sorted((run / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        curves = logged(run, folder.name)
        tags = set(events.Tags()["scalars"])
        assert tags == set(curves), (folder, tags ^ set(curves))
        for name, curve in curves.items():
            seen = [(event.step, event.value) for event in events.Scalars(name)]
            steps = [step for step, _ in seen]
            assert len(steps) == len(set(steps)), f"{folder}: {name} has steps twice: {steps}"
            assert steps == [step for step, _ in curve], f"{folder}: {name}: {steps}"
            for (step, value), (_, expected) in zip(seen, curve):
                same = math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-30)
                assert same, f"{folder}: {name} at {step} is {value}, in the log {expected}"
        files = len(list(folder.iterdir()))
        print(f"{folder}: {files} files, {len(curves)} curves, steps as in the log, none twice")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        check(Path(name))
