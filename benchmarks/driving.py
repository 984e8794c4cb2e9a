"""What the self-driving car that comes with Palto bears: its score where one thing is changed.

    python benchmarks/driving.py --tracks 5

The numbers of docs/applications/drive.md, "What it cannot do".
"""

from __future__ import annotations

import argparse
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

from palto.recipes import drive


class ChangedRoad(drive.Road):
    """A road on which controls come late, the friction is another, or colours are at random.

    Args:
        tracks: the tracks' numbers.
        delay: by how many frames, of 0.02 s, the controls come late.
        friction: of the road, as a share of the usual.
        colours: whether road and grass have colours at random.
    """

    def __init__(
        self, tracks: range, delay: int = 0, friction: float = 1.0, colours: bool = False
    ) -> None:
        super().__init__(tracks)
        if colours:
            self.env = gym.make("CarRacing-v3", domain_randomize=True, disable_env_checker=True)
        self._delay, self._friction = delay, friction

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Go to the start of the next track."""
        seen = super().reset()
        for tile in self.unwrapped.road:
            tile.road_friction = self._friction
        self._waiting = deque([np.zeros(2, np.float32)] * self._delay)
        return seen

    def step(self, controls: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame, with the controls of some frames ago."""
        self._waiting.append(controls)
        return super().step(self._waiting.popleft())


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "controls 0.02 s late": {"delay": 1},
    "controls 0.06 s late": {"delay": 3},
    "0.8 of the friction": {"friction": 0.8},
    "0.6 of the friction": {"friction": 0.6},
    "colours at random": {"colours": True},
}


def main() -> None:
    """Drive, and print a line for each change."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tracks", type=int, default=5, help="how many laps each (%(default)s)")
    tracks = drive.TEST_TRACKS[: parser.parse_args().tracks]
    answer = drive.pilot(drive.load_pilot()[0])
    for name, change in CHANGES.items():
        road, scores, finished = ChangedRoad(tracks, **change), [], 0
        for _ in tracks:
            pictures, _ = road.reset()
            score, over, info = 0.0, False, {}
            while not over:
                pictures, reward, ended, cut_off, info = road.step(answer(pictures[None])[0])
                score, over = score + reward, ended or cut_off
            scores.append(score)
            finished += info["finished"]
        road.close()
        print(
            f"{name}: mean {np.mean(scores):.0f}, {finished} of {len(tracks)} finished", flush=True
        )


if __name__ == "__main__":
    main()
