"""A car learns to drive from its camera: by imitation of a teacher, then from its own mistakes.

The car is that of Gymnasium's CarRacing-v3, the track another one each time. The teacher reads the
track's plan and the car's speed, which the network never sees; the network gets two grey pictures
of the camera, 0.08 seconds apart, and answers with the steering and the pedal.

1. The teacher drives, the network learns to do the same (behaviour cloning).
2. The network drives, so it gets to where its own mistakes lead; the teacher, beside it, says what
   should have been done there, and takes the wheel when the car has left the road. The network
   learns from all that was ever said. Then again (DAgger; Ross, Gordon, Bagnell, "A Reduction of
   Imitation Learning and Structured Prediction to No-Regret Online Learning", 2011).

    palto train drive
    palto drive --video lap.mp4
"""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import palto
from palto import data, nn, optim
from palto.draw import Video, driving
from palto.formats import safetensors
from palto.train import RoundTraining, Watch, load_weights, save_weights

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures are made without a screen
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium as gym

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    import Box2D  # noqa: F401  types of SWIG's, which say nothing of their module

#: Tracks are numbered by their seeds. Training never comes to these.
VALIDATION_TRACKS = range(1_000_000, 1_000_006)
TEST_TRACKS = range(2_000_000, 2_000_020)

# --- The road, as the car sees it ----------------------------------------------------------------

HEIGHT, WIDTH = 42, 48
#: So many frames lie between the two pictures, at 50 frames a second: what moved tells the speed.
GAP = 4
#: The front wheels turn so far, in radians; CarRacing takes the angle itself.
FULL_LOCK = 0.4


def camera(picture: np.ndarray) -> np.ndarray:
    """What the network gets of the camera: (96, 96, 3) to grey (42, 48), both uint8.

    The instruments below the road are cut off, for the network is to look at the road, and mirrored
    instruments would be wrong.
    """
    grey: np.ndarray = picture[:84] @ np.array([0.299, 0.587, 0.114], np.float32)
    small: np.ndarray = grey.reshape(HEIGHT, 2, WIDTH, 2).mean((1, 3)).astype(np.uint8)
    return small


class Road(gym.Wrapper):  # type: ignore[misc]
    """CarRacing-v3 on given tracks, one after the other.

    Observations are uint8 (42, 48, 2): the picture of `GAP` frames ago and the one of now. Controls
    are float32 (2,): the steering from -1, left, to 1, right, and the pedal from -1, brake, to 1,
    gas. `info` holds what the teacher would do ("teacher"), whether the car is "lost", its "speed",
    and "parked", which becomes true when all tracks are done and nothing moves any more.

    Args:
        tracks: the tracks' numbers.
        frames: after so many a lap is over; 1,000 are CarRacing's own.
        render_mode: what `render` gives, see Gymnasium.
    """

    def __init__(
        self, tracks: Sequence[int], frames: int = 1000, render_mode: str | None = None
    ) -> None:
        game = gym.make(
            "CarRacing-v3",
            max_episode_steps=frames,
            render_mode=render_mode,
            disable_env_checker=True,  # it warns of what is the game's own affair
        )
        super().__init__(game)
        self.observation_space = gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 2), np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self._tracks = iter(tracks)
        self._frames: deque[np.ndarray] = deque(maxlen=GAP + 1)
        self._parked = False

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Go to the start of the next track."""
        track = next(self._tracks, None)
        self._parked = track is None
        if not self._parked:
            picture, _ = self.env.reset(seed=track)
            self._teacher = Teacher(self.env.unwrapped)
            self._frames.extend([camera(picture)] * (GAP + 1))
        return self._seen(), self._info()

    def step(self, controls: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One fiftieth of a second."""
        if self._parked:
            return self._seen(), 0.0, False, False, self._info()
        steering, pedal = (float(x) for x in np.clip(controls, -1, 1))
        # A brake of 0.9 and more would lock the wheels.
        action = np.array([FULL_LOCK * steering, max(pedal, 0.0), min(max(-pedal, 0.0), 0.8)])
        picture, reward, ended, cut_off, info = self.env.step(action)
        self._frames.append(camera(picture))
        finished = bool(info.get("lap_finished", False))
        return self._seen(), float(reward), ended, cut_off, self._info() | {"finished": finished}

    def _seen(self) -> np.ndarray:
        return np.stack([self._frames[0], self._frames[-1]], -1)

    def _info(self) -> dict[str, Any]:
        teacher = self._teacher
        return {
            "teacher": teacher.controls(),
            "lost": teacher.lost,
            "speed": teacher.speed,
            "parked": self._parked,
        }


class Teacher:
    """Drives by the plan of the track: pure pursuit, and a speed that the bends ahead allow.

    Lengths are in the units of the physics (the road is 13 wide), speeds in units a second.

    Args:
        game: the innermost environment of CarRacing, after its reset.

    Pure pursuit: Coulter, "Implementation of the Pure Pursuit Path Tracking Algorithm", 1992.
    """

    #: Found by trial: every lap is finished, most also when the steering is disturbed.
    TOP_SPEED, LEAST_SPEED = 90.0, 15.0
    #: The acceleration that a bend may take, and what of it is left on grass; that of braking.
    GRIP, GRASS, BRAKING = 175.0, 0.2, 50.0
    #: It steers at a point so far ahead, plus so many seconds, and so much harder than the circle
    #: to that point wants, for the tyres slip.
    AHEAD, AHEAD_SECONDS, STEERING = 6.0, 0.15, 2.5
    WHEELBASE, VIEW = 3.24, 45.0

    def __init__(self, game: Any) -> None:
        self._car = game.car
        self._middle = np.array(game.track)[:, 2:]
        forward = np.roll(self._middle, -1, 0) - self._middle
        self._lengths = np.hypot(*forward.T)
        heading = np.arctan2(forward[:, 1], forward[:, 0])
        turn = np.angle(np.exp(1j * (np.roll(heading, -2) - np.roll(heading, 2))))
        self._bend = np.abs(turn) / sum(np.roll(self._lengths, k) for k in (-1, 0, 1, 2))
        self._place = 0
        self.lost = False
        self.speed = 0.0

    def controls(self) -> np.ndarray:
        """The steering and the pedal, float32 (2,), where the car is now."""
        hull, count = self._car.hull, len(self._middle)
        position = np.array(hull.position)
        self.speed = float(np.hypot(*hull.linearVelocity))
        near = (self._place + np.arange(-10, 20)) % count
        distances = np.hypot(*(self._middle[near] - position).T)
        self._place = int(near[np.argmin(distances)])
        on_road = any(wheel.tiles for wheel in self._car.wheels)
        # Lost is who has left the road, until the car is back near its middle.
        self.lost = not on_road or (self.lost and float(distances.min()) > 3)

        places = (self._place + np.arange(int(self.VIEW / 3.5))) % count
        ahead = np.cumsum(self._lengths[places]) - self._lengths[places]
        wanted = self.AHEAD + self.AHEAD_SECONDS * self.speed
        target = [np.interp(wanted, ahead, self._middle[places, k]) for k in (0, 1)] - position
        right = float(target @ np.array(hull.GetWorldVector((1, 0))))
        before = float(target @ np.array(hull.GetWorldVector((0, 1))))
        circle = 2 * right / float(target @ target)
        steering = self.STEERING * math.atan(circle * self.WHEELBASE) / FULL_LOCK

        allowed = np.sqrt(
            self.GRIP / np.maximum(self._bend[places], 1e-4) + 2 * self.BRAKING * ahead
        ).min()
        grip = self.GRIP * (1.0 if on_road else self.GRASS)
        own = math.sqrt(0.8 * grip / max(abs(circle), 1e-4))
        speed = min(float(allowed), self.TOP_SPEED, max(own, self.LEAST_SPEED))
        if before < 0:  # the road lies behind: turn round
            steering, speed = math.copysign(1.0, right), self.LEAST_SPEED
        steering = min(max(steering, -1.0), 1.0)
        missing = speed - self.speed
        if missing > 0:  # rear wheels that pull in a bend slip
            pedal = min(0.12 * missing, 1.0) * (1 - 0.5 * abs(steering))
        else:
            pedal = max(0.04 * missing, -0.8)
        return np.array([steering, pedal], np.float32)


# --- The network ---------------------------------------------------------------------------------


class PilotNet(nn.Module):
    """From two pictures to the steering and the pedal; 279,284 parameters.

    Five kinds of features, each made of the one before, then four linear layers' worth of decision.
    After Bojarski et al., "End to End Learning for Self-Driving Cars", 2016, for smaller pictures.
    """

    def __init__(self) -> None:
        self.features = nn.Sequential(
            nn.Conv2d(2, 24, 5, stride=2), nn.ReLU(),
            nn.Conv2d(24, 36, 5, stride=2), nn.ReLU(),
            nn.Conv2d(36, 48, 3), nn.ReLU(),
            nn.Conv2d(48, 64, 3), nn.ReLU(),
        )  # fmt: skip
        self.decision = nn.Sequential(
            nn.Flatten(),
            nn.Linear(4 * 5 * 64, 160), nn.ReLU(),
            nn.Linear(160, 50), nn.ReLU(),
            nn.Linear(50, 2),
        )  # fmt: skip

    def forward(self, pictures: palto.Tensor) -> palto.Tensor:
        """Pictures uint8 (N, 42, 48, 2) to controls float32 (N, 2)."""
        return self.decide(_scaled(pictures))

    def decide(self, pictures: palto.Tensor) -> palto.Tensor:
        """The same for pictures float32, from -0.5, black, to 0.5, white."""
        controls: palto.Tensor = self.decision(self.features(pictures))
        return controls

    def explain(self, pictures: palto.Tensor) -> tuple[palto.Tensor, palto.Tensor]:
        """Controls, and what they hang on: how much each point of the pictures would change them.

        Args:
            pictures: uint8 (N, 42, 48, 2).

        Returns:
            Controls float32 (N, 2), and the sum of the absolute derivatives of steering and pedal
            by both pictures, float32 (N, 42, 48). Simonyan, Vedaldi, Zisserman, "Deep Inside
            Convolutional Networks", 2013.
        """
        seen = _scaled(pictures)
        slopes = [
            palto.abs(palto.grad(lambda x, k=k: palto.sum(self.decide(x)[:, k]))(seen))
            for k in range(2)
        ]
        return self.decide(seen), palto.sum(slopes[0] + slopes[1], axis=3)


def _scaled(pictures: palto.Tensor) -> palto.Tensor:
    return palto.astype(pictures, palto.float32) / 255 - 0.5


def pilot(model: PilotNet) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled function from pictures uint8 (N, 42, 48, 2) to controls float32 (N, 2)."""
    model.eval()

    @palto.compile
    def answer(pictures: palto.Tensor) -> palto.Tensor:
        controls: palto.Tensor = model(pictures)
        return controls

    def drive(pictures: np.ndarray) -> np.ndarray:
        with palto.no_grad():
            controls: np.ndarray = answer(palto.asarray(pictures)).numpy()
        return controls

    return drive


# --- Driving -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lap:
    """How a lap went.

    Attributes:
        track: its number.
        score: CarRacing's: 1000 for the whole track, less a tenth for each frame.
        frames: fiftieths of a second, 1,000 at most.
        finished: whether every piece of the track was driven over.
        lost: the share of the frames in which the car was off the road, or on its way back.
    """

    track: int
    score: float
    frames: int
    finished: bool
    lost: float


class View(NamedTuple):
    """What several cars see at one time, and what the teacher says."""

    pictures: np.ndarray
    teacher: np.ndarray
    lost: np.ndarray


#: From what the cars see to their controls, (N, 2).
Wheel = Callable[[View], np.ndarray]


def drive(
    driver: Wheel,
    tracks: Sequence[int],
    *,
    cars: int = 4,
    frames: int = 1000,
    witness: Callable[[View, np.ndarray], None] | None = None,
    watch: Callable[[Lap | None], None] | None = None,
) -> list[Lap]:
    """Drive a lap on each track, several cars at a time, each in a process of its own.

    Args:
        driver: who drives.
        tracks: the tracks' numbers.
        cars: how many drive at a time.
        frames: after so many a lap is over.
        witness: told at each step what the cars see, and which of them are driving, (N,).
        watch: told each lap when it is over, and None at each step.

    Returns:
        The laps, in the order of the tracks.
    """
    cars = min(cars, len(tracks))
    ahead = [list(tracks[k::cars]) for k in range(cars)]
    makers = [partial(_road_alone, list(x), frames) for x in ahead]
    fleet = gym.vector.AsyncVectorEnv(makers, context="spawn")
    try:
        pictures, info = fleet.reset()
        score, driven, lost = np.zeros(cars), np.zeros(cars, int), np.zeros(cars, int)
        over = np.zeros(cars, bool)
        laps: dict[int, Lap] = {}
        while len(laps) < len(tracks):
            driving = ~over & ~info["parked"]
            view = View(pictures, info["teacher"], info["lost"])
            if witness is not None:
                witness(view, driving)
            # A car whose lap is over goes to its next start in this step.
            pictures, reward, ended, cut_off, info = fleet.step(driver(view))
            score += reward
            driven += driving
            lost += driving & info["lost"]
            over = ended | cut_off
            for k in np.flatnonzero(over):
                lap = Lap(
                    ahead[k].pop(0), round(float(score[k]), 1), int(driven[k]),
                    bool(info["finished"][k]), round(float(lost[k] / driven[k]), 4),
                )  # fmt: skip
                laps[lap.track] = lap
                score[k] = driven[k] = lost[k] = 0
                if watch is not None:
                    watch(lap)
            if watch is not None:
                watch(None)
    except BaseException:
        with warnings.catch_warnings(action="ignore"):  # answers may be half read: wait for none
            fleet.close(terminate=True)
        raise
    fleet.close()
    return [laps[track] for track in tracks]


def _road_alone(tracks: Sequence[int], frames: int) -> Road:
    """A road in a process of its own, whose end is the affair of the process that began it."""
    if parent_process() is not None:  # Gymnasium makes one here, too, to ask it for its spaces
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Road(tracks, frames)


def wheel(model: PilotNet) -> Wheel:
    """The network drives."""
    answer = pilot(model)
    return lambda view: answer(view.pictures)


def teacher(view: View) -> np.ndarray:
    """What the teacher says."""
    return view.teacher


def chance(seed: int = 0) -> Wheel:
    """Steering and pedal at random, as a measure of what no skill at all is worth."""
    generator = np.random.default_rng(seed)
    return lambda view: generator.uniform(-1, 1, view.teacher.shape).astype(np.float32)


# --- Learning ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How the pilot is trained."""

    rounds: int = 8
    """How often driving and learning alternate."""
    laps: int = 8
    """Laps driven in a round, each on a new track."""
    steps: int = 1000
    """Steps of the optimiser in a round."""
    method: Literal["dagger", "cloning"] = "dagger"
    """Who drives after the first round: the network (dagger), or always the teacher (cloning)."""
    batch_size: int = 128
    """Examples in a step."""
    lr: float = 1e-3
    """The highest learning rate."""
    seed: int = 0
    """Equal seeds give equal runs."""
    cars: int = 4
    """How many drive at a time, each in a process of its own."""
    frames: int = 1000
    """After so many a lap is over."""

    def __post_init__(self) -> None:
        for name in ("rounds", "laps", "steps", "batch_size", "cars", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be a positive number, got {self.lr}")


@dataclass(frozen=True)
class Round:
    """What came of a round.

    Attributes:
        number: from 0.
        examples: pictures with the teacher's answers, of all rounds until now.
        lost: the share of the frames driven in this round that the teacher had to help in.
        loss: the mean squared error of the last steps.
        score: the mean of the laps on the tracks for validation.
        finished: the share of those laps that were finished.
        seconds: since the training began, interruptions not counted.
    """

    number: int
    examples: int
    lost: float
    loss: float
    score: float
    finished: float
    seconds: float


class Training(RoundTraining[Plan, Round]):
    """A run of the training in a folder, which holds the lessons, too.

    Args:
        folder: where it lies, or will lie.
        plan: how to train.

    Raises:
        ValueError, OSError: see `palto.train.RoundTraining`.
    """

    def __init__(self, folder: str | os.PathLike[str], plan: Plan) -> None:
        palto.manual_seed(plan.seed)
        self.model = PilotNet()
        steps = plan.rounds * plan.steps
        rate = optim.schedules.cosine(plan.lr, steps=steps + 1, warmup=min(200, steps // 4))
        self.optimizer = optim.Adam(self.model, lr=rate)
        super().__init__(folder, plan, self.model, self.optimizer, Round)
        self._step = self._compiled_step()

    def _compiled_step(self) -> Callable[[palto.Tensor, palto.Tensor], palto.Tensor]:
        @palto.compile
        def step(pictures: palto.Tensor, controls: palto.Tensor) -> palto.Tensor:
            # Half of all examples are mirrored: the road to the left, and the steering.
            mirrored = palto.random.uniform((pictures.shape[0], 1)) < 0.5
            other = palto.flip(pictures, axis=2)
            pictures = palto.where(mirrored[:, :, None, None], other, pictures)
            steering = palto.where(mirrored, -controls[:, :1], controls[:, :1])
            wanted = palto.concat([steering, controls[:, 1:]], axis=1)
            loss = nn.functional.mse_loss(self.model(pictures), wanted)
            loss.backward()
            self.optimizer.step()
            return loss

        return step

    def run(self, watch: Watch) -> None:
        """Drive and learn until all rounds are done.

        Raises:
            KeyboardInterrupt: somebody has asked to stop; all whole rounds are kept.
        """
        plan = self.plan
        while len(self.rounds) < plan.rounds:
            number = len(self.rounds)
            began = time.perf_counter() - (self.rounds[-1].seconds if self.rounds else 0.0)
            lost = self._lessons(number, watch)
            examples = self._examples(number + 1)
            loss = self._learn(number, examples, watch)
            laps = drive(
                wheel(self.model), VALIDATION_TRACKS, cars=plan.cars, frames=plan.frames,
                watch=_counted(watch, f"round {number}: validation", len(VALIDATION_TRACKS)),
            )  # fmt: skip
            seconds = round(time.perf_counter() - began, 1)
            one = Round(
                number, len(examples), lost, loss, mean_score(laps), share_finished(laps), seconds
            )
            self.keep(one, is_best=better(one) > max(map(better, self.rounds), default=(-1.0, 0.0)))
            watch(f"round {number}", 1.0, described(one))

    def _lessons(self, number: int, watch: Watch) -> float:
        """Drive on new tracks and keep what the teacher says; the share of frames with its help."""
        plan = self.plan
        first = 10_000 * plan.seed + number * plan.laps
        pictures: list[np.ndarray] = []
        controls: list[np.ndarray] = []
        step = 0

        def keep(view: View, driving: np.ndarray) -> None:
            nonlocal step
            step += 1
            if step % 2 == 0:  # neighbouring frames hardly differ
                pictures.append(view.pictures[driving])
                controls.append(view.teacher[driving])

        own = wheel(self.model)

        def helped(view: View) -> np.ndarray:
            return np.where(view.lost[:, None], view.teacher, own(view))

        driver = helped if number and plan.method == "dagger" else teacher
        laps = drive(
            driver, range(first, first + plan.laps), cars=plan.cars, frames=plan.frames,
            witness=keep,
            watch=_counted(watch, f"round {number}: driving", plan.laps),
        )  # fmt: skip
        safetensors.save(
            self._lesson(number),
            {"pictures": np.concatenate(pictures), "controls": np.concatenate(controls)},
        )
        return sum(x.lost * x.frames for x in laps) / sum(x.frames for x in laps)

    def _lesson(self, number: int) -> Path:
        return self.folder / f"lesson-{number:03d}.safetensors"

    def _examples(self, rounds: int) -> data.TensorDataset:
        """All that was kept in so many rounds."""
        lessons = [safetensors.load(self._lesson(k)) for k in range(rounds)]
        pictures = np.concatenate([x["pictures"].numpy() for x in lessons])
        return data.TensorDataset(
            pictures, np.concatenate([x["controls"].numpy() for x in lessons])
        )

    def _learn(self, number: int, examples: data.Dataset, watch: Watch) -> float:
        """So many steps as the plan says; the mean loss of the last hundred."""
        self.model.train()
        loader = data.DataLoader(
            examples, min(self.plan.batch_size, len(examples)), shuffle=True, drop_last=True,
            seed=self.plan.seed + number,
        )  # fmt: skip
        losses: deque[float] = deque(maxlen=100)
        for step, (pictures, controls) in enumerate(_endless(loader), 1):
            losses.append(float(self._step(pictures, controls)))
            if step % 20 == 0 and step < self.plan.steps:
                watch(
                    f"round {number}: learning from {len(examples):,} examples",
                    step / self.plan.steps, f"loss {np.mean(losses):.4f}",
                )  # fmt: skip
            if step == self.plan.steps:
                break
        return float(np.mean(losses))


def _endless(loader: data.DataLoader) -> Iterator[tuple[palto.Tensor, ...]]:
    while True:
        yield from loader


def _counted(watch: Watch, what: str, count: int) -> Callable[[Lap | None], None]:
    laps: list[Lap] = []

    def told(lap: Lap | None) -> None:
        if lap is not None:
            laps.append(lap)
            watch(what, len(laps) / count, f"mean score {mean_score(laps):.0f}")

    return told


def mean_score(laps: Sequence[Lap]) -> float:
    """The mean of the laps' scores."""
    return sum(lap.score for lap in laps) / len(laps)


def share_finished(laps: Sequence[Lap]) -> float:
    """The share of the laps that were finished."""
    return sum(lap.finished for lap in laps) / len(laps)


def better(one: Round) -> tuple[float, float]:
    """What a round is judged by: laps that are finished first."""
    return one.finished, one.score


def described(one: Round) -> str:
    """A round in a line."""
    return (
        f"{one.examples:,} examples, loss {one.loss:.4f}, teacher's help in {one.lost:.1%} of the "
        f"frames; validation {one.score:.0f}, {one.finished:.0%} of laps finished"
    )


# --- The test, and the weights -------------------------------------------------------------------

#: How the files of the weights are called, and where those lie that come with Palto.
NAME, SHIPPED = "pilot", Path(palto.__file__).parent / "weights" / "drive"


def examine(model: PilotNet, plan: Plan, watch: Watch) -> dict[str, list[Lap]]:
    """The laps of pilot, teacher and chance on the tracks for testing."""
    drivers = {"pilot": wheel(model), "teacher": teacher, "chance": chance()}
    return {
        name: drive(
            driver, TEST_TRACKS, cars=plan.cars, frames=plan.frames,
            watch=_counted(watch, f"test: {name} drives", len(TEST_TRACKS)),
        )
        for name, driver in drivers.items()
    }  # fmt: skip


def save_pilot(training: Training, laps: dict[str, list[Lap]], command: str) -> dict[str, Any]:
    """Write the model's weights and their record into the training's folder; return the record."""
    about = {
        "command": command,
        "gymnasium": gym.__version__,
        "plan": asdict(training.plan),
        "rounds": [asdict(x) for x in training.rounds],
        "round": max(training.rounds, key=better).number,
        "training seconds": training.rounds[-1].seconds,
        "tests": {
            name: {
                "mean score": round(mean_score(all_laps), 1),
                "laps finished": share_finished(all_laps),
                "laps": [asdict(x) for x in all_laps],
            }
            for name, all_laps in laps.items()
        },
    }
    return save_weights(training.folder, NAME, training.model, about)


def load_pilot(folder: str | os.PathLike[str] = SHIPPED) -> tuple[PilotNet, dict[str, Any]]:
    """A trained pilot, and the record of how it came to be; see `palto.train.load_weights`."""
    model = PilotNet()
    return model, load_weights(folder, NAME, model, made_by="palto train drive")


# --- The film ------------------------------------------------------------------------------------


def film(
    model: PilotNet,
    tracks: Sequence[int],
    path: str | os.PathLike[str],
    watch: Callable[[Lap | None], None],
) -> list[Lap]:
    """Drive, and write a video: the camera with what the network looks at, its controls, the laps.

    Args:
        model: who drives.
        tracks: the tracks' numbers.
        path: the .mp4 file.
        watch: told each lap when it is over, and None at each step.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    model.eval()

    explain = palto.compile(model.explain)
    laps: list[Lap] = []
    road = Road(tracks, render_mode="rgb_array")
    try:
        with Video(path, (840, 400), 25, extra="drive") as video:

            def show(slopes: np.ndarray, controls: np.ndarray, speed: float, title: str) -> None:
                table = [
                    f"{x.track}   {x.score:.0f}   "
                    + (f"{x.frames / 50:.1f} s" if x.finished else "not finished")
                    for x in laps
                ]
                # The network sees the upper 84 of 96 rows.
                video.add(driving(road.render(), slopes, 84 / 96, controls, speed, title, table))

            for track in tracks:
                pictures, info = road.reset()
                score, frames, lost, over = 0.0, 0, 0, False
                while not over:
                    controls, slopes = (
                        x.numpy()[0] for x in explain(palto.asarray(pictures[None]))
                    )
                    if frames % 2 == 0:
                        title = f"track {track}  {frames / 50:.1f} s  score {score:.0f}"
                        show(slopes, controls, info["speed"], title)
                    pictures, reward, ended, cut_off, info = road.step(controls)
                    score, frames, lost = score + reward, frames + 1, lost + info["lost"]
                    over = ended or cut_off
                    watch(None)
                laps.append(Lap(track, round(score, 1), frames, info["finished"],
                                round(lost / frames, 4)))  # fmt: skip
                watch(laps[-1])
            for _ in range(50):  # the whole table, for two seconds
                show(slopes, controls, info["speed"], title)
    finally:
        road.close()
    return laps
