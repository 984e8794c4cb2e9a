"""What `palto export` hands on: of each kind of trained model the network, the card, the script."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palto import Dim
from palto.extras import require
from palto.nn import Module
from palto.train.run import CONFIG_FILE, Run


@dataclass(frozen=True)
class Exported:
    """A trained model as others get it.

    Attributes:
        model: what was trained.
        function: what the ONNX file computes.
        examples: its arguments.
        dynamic_shapes: their axes of any length.
        inputs: what the file's inputs are called.
        outputs: what its outputs are called.
        title: of the card.
        task: what model cards call it.
        what: what it takes and gives, in sentences.
        licence: under which terms its data is, and what that data is, in a sentence.
        about: what is known of it: "measures", "command", "versions" and more, as JSON takes it.
        script: the text of a program that runs it without Palto.
        arguments: what that program is given.
        packages: what that program needs.
    """

    model: Module
    function: Callable[..., Any]
    examples: Sequence[Any]
    dynamic_shapes: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]
    title: str
    task: str
    what: str
    licence: str
    about: dict[str, Any]
    script: str
    arguments: str
    packages: str


_HEAD = '''\
"""Run the model without Palto: python predict.py {arguments}

Needs: pip install {packages}
"""

{imports}

here = Path(__file__).parent
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
'''
_ABOUT = 'model = json.loads((here / "config.json").read_text(encoding="utf-8"))\n'


def _script(arguments: str, packages: str, imports: Sequence[str], body: str) -> str:
    """A program; besides the imports that all have it has some of its own."""
    about = _ABOUT if "model[" in body else ""
    own = [*imports, "import sys", *(["import json"] if about else [])]
    standard = [line for line in sorted(own) if line.startswith("import ")]
    others = [line for line in own if not line.startswith("import ")]
    lines = [*standard, "from pathlib import Path", "", "import numpy as np", "import onnxruntime"]
    imported = "\n".join([*lines, *others])
    return _HEAD.format(arguments=arguments, packages=packages, imports=imported) + about + body


# --- A run of `palto train` ----------------------------------------------------------------------

_READ_PICTURE = """
for name in sys.argv[1:] or sys.exit(__doc__):
    height, width, channels = model["shape"]
    with Image.open(name) as file:
        picture = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    inputs = np.asarray(picture, np.float32).reshape(1, height, width, channels) / 255
    places = [name]
"""
_READ_ARRAY = """
for name in sys.argv[1:] or sys.exit(__doc__):
    inputs = np.load(name).astype(np.float32).reshape(-1, *model["shape"])
    places = [name] * len(inputs)
"""
_READ_TABLE = """encoder = model["encoder"]


def features(column, cell):
    is_missing = cell.lower() in ("", "na", "n/a", "nan", "null", "none", "?")
    if column["categories"] is None:
        number = column["mean"] if is_missing else float(cell)
        known = (number - column["mean"]) / column["scale"]
        return [known, is_missing] if column["indicator"] else [known]
    with contextlib.suppress(ValueError):
        if "." in cell and float(cell).is_integer():
            cell = str(int(float(cell)))  # 1.0 is the same text as 1
    return [cell == text for text in column["categories"]]


for name in sys.argv[1:] or sys.exit(__doc__):
    inputs, places = [], []
    with open(name, newline="", encoding="utf-8-sig") as file:
        delimiter = max(",;\\t|", key=file.readline().count)
        file.seek(0)
        table = csv.DictReader(file, delimiter=delimiter)
        table.fieldnames = [heading.strip() for heading in table.fieldnames or []]
        for row in table:
            places.append(f"{name}, line {table.line_num}")
            try:
                parts = [features(x, row[x["name"]].strip()) for x in encoder["columns"]]
            except (AttributeError, KeyError, ValueError) as error:
                sys.exit(f"{places[-1]}: {error!r}")
            inputs.append([number for part in parts for number in part])
    inputs = np.array(inputs, np.float32).reshape(-1, *model["shape"])
"""
_SAY_CLASSES = """\
    (scores,) = session.run(None, {"inputs": inputs})
    for place, row in zip(places, scores):
        chances = np.exp(row - row.max())
        chances /= chances.sum()
        best = np.argsort(-chances)[:3]
        print(f"{place}: " + ", ".join(f"{model['classes'][k]} {chances[k]:.1%}" for k in best))
"""
_SAY_NUMBERS = """\
    (numbers,) = session.run(None, {"inputs": inputs})
    print(f"{name}: {numbers.tolist()}")
"""
_SAY_TARGETS = """\
    (numbers,) = session.run(None, {"inputs": inputs})
    for place, (number,) in zip(places, numbers.astype(float)):
        print(f"{place}: {np.float32(number * encoder['scale'] + encoder['mean'])}")
"""
#: What a table's features are, for the card.
_ENCODED = (
    " Of a number the mean is subtracted, and the result divided by the scale; a missing one is 0. "
    "What is called column=text is 1 where the column holds that text, else 0. Means and scales "
    "are those of the encoder in config.json, by which predict.py reads tables."
)

#: What a line of a run's history holds besides measures.
_OF_TRAINING = {"epoch", "step", "seconds", "train_loss", "lr"}


def of_run(folder: Path) -> Exported:
    """The best weights of a run."""
    run = Run.open(folder)
    checkpoints = run.load_best().checkpoints
    best = None if checkpoints is None else checkpoints.best()
    assert best is not None  # load_best has found it
    saved = json.loads((run.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    history = best.state["history"]
    measures = {name: x for name, x in (history or [{}])[-1].items() if name not in _OF_TRAINING}
    table = {} if run.encoder is None else {"encoder": run.encoder.as_dict()}
    are_pictures = run.is_classification and len(run.shape) == 3
    arguments, read, imports, layout = "ARRAY.npy ...", _READ_ARRAY, [], ""
    say = _SAY_CLASSES if run.is_classification else _SAY_NUMBERS
    answer = "a number"
    if are_pictures:
        arguments, read, imports = "PICTURE ...", _READ_PICTURE, ["from PIL import Image, ImageOps"]
        layout = ", height x width x channels, numbers from 0 to 1"
    elif run.encoder is not None:
        arguments, read = "ROWS.csv ...", _READ_TABLE
        imports = ["import contextlib", "import csv"]
        layout = f" ({', '.join(run.encoder.features)})"
        if not run.is_classification:
            say = _SAY_TARGETS
            answer += f": {run.encoder.target}, less the encoder's mean, divided by its scale"
    packages = "numpy onnxruntime" + (" pillow" if are_pictures else "")
    shape = " x ".join(map(str, run.shape))
    kind = "image-classification" if are_pictures else "tabular-classification"
    classes = f"{len(run.classes)} classes ({', '.join(run.classes)})"
    licence = saved.get("licence") or "not stated: ask whoever gave you the data"
    first = next(iter(inspect.signature(run.model.forward).parameters))
    return Exported(
        model=run.model,
        function=run.model,
        examples=[np.zeros((2, *run.shape), np.float32)],
        dynamic_shapes={first: {0: Dim("batch", max=64)}},
        inputs=["inputs"],
        outputs=["scores" if run.is_classification else "prediction"],
        title=f"{run.config.model} on {run.config.data}",
        task=kind if run.is_classification else "tabular-regression",
        what=f"It takes float32 of shape N x {shape}{layout}, and gives "
        + ("a score for each of " + classes if run.is_classification else answer)
        + ("." if run.encoder is None else "." + _ENCODED),
        licence=f"{run.config.data}, licence: {licence}.",
        about=table | {
            "model": run.config.model,
            "shape": list(run.shape),
            "classes": list(run.classes),
            "measures": measures,
            "data": run.config.data,
            "licence": saved.get("licence"),
            "command": run.command,
            "configuration": dataclasses.asdict(run.config),
            "versions": saved.get("versions", {}),
        },
        script=_script(arguments, packages, imports, read + say),
        arguments=arguments,
        packages=packages,
    )  # fmt: skip


# --- The pilot of `palto train drive` ------------------------------------------------------------

_STEER = """
if len(sys.argv) != 3:
    sys.exit(__doc__)


def camera(name):
    with Image.open(name) as file:
        road = np.asarray(file.convert("RGB"))[:84]  # 96 x 96; the instruments are below
    grey = road @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey.reshape(42, 2, 48, 2).mean((1, 3)).astype(np.uint8)


pictures = np.stack([camera(name) for name in sys.argv[1:]], axis=-1)
(controls,) = session.run(None, {"pictures": pictures[None]})
print("steering {:+.3f}, pedal {:+.3f}".format(*controls[0]))
"""


def of_pilot(folder: Path) -> Exported:
    """A pilot of the self-driving car."""
    require("gymnasium", "drive", "palto export of a pilot")
    from palto.recipes import drive

    model, record = drive.load_pilot(folder)
    arguments, packages = "BEFORE.png NOW.png", "numpy onnxruntime pillow"
    pilot = record["tests"]["pilot"]
    return Exported(
        model=model.eval(),
        function=model,
        examples=[np.zeros((2, drive.HEIGHT, drive.WIDTH, 2), np.uint8)],
        dynamic_shapes={"pictures": {0: Dim("batch", max=64)}},
        inputs=["pictures"],
        outputs=["controls"],
        title="A pilot for CarRacing-v3",
        task="reinforcement-learning",
        what=f"It takes uint8 of shape N x {drive.HEIGHT} x {drive.WIDTH} x 2: grey pictures of "
        f"{drive.GAP} frames ago and of now. It gives the steering, from -1, left, to 1, and the "
        "pedal, from -1, brake, to 1, gas.",
        licence="Laps that a teacher drove in Gymnasium's CarRacing-v3 (MIT licence); no other "
        "data.",
        about=dict(record) | {
            "model": "PilotNet",
            "measures": {name: pilot[name] for name in ("mean score", "laps finished")},
            "licence": "MIT",
        },
        script=_script(arguments, packages, ["from PIL import Image"], _STEER),
        arguments=arguments,
        packages=packages,
    )  # fmt: skip


# --- The filter of `palto train echo` ------------------------------------------------------------

_CANCEL = """
if len(sys.argv) != 4:
    sys.exit(__doc__)


def read(name):
    with wave.open(name) as file:
        if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (16000, 2, 1):
            sys.exit(f"{name}: 16,000 samples a second, 16 bits, one channel are wanted")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)


far, mic = read(sys.argv[1]), read(sys.argv[2])
length, late = len(mic), model["latency"]
blocks = np.zeros((2, (length + late + 255) // 256, 256), np.float32)
for block, x in zip(blocks, (far[:length], mic)):
    block.reshape(-1)[: len(x)] = x
state = {x.name: np.zeros(x.shape, np.float32) for x in session.get_inputs()[:-2]}
clean = []
for played, heard in zip(*blocks[:, :, None]):  # 16 ms each, as in a call
    *after, now = session.run(None, {"far": played, "mic": heard, **state})
    state = dict(zip(state, after))
    clean.append(now)
samples = np.concatenate(clean).reshape(-1)[late:][:length]
with wave.open(sys.argv[3], "wb") as file:
    file.setparams((1, 2, 16000, 0, "NONE", ""))
    file.writeframes(np.clip(32768 * samples, -32768, 32767).astype("<i2").tobytes())
"""
_STATE = ("last", "tail", "past", "filters", "before", "real", "imag")


def of_filter(folder: Path) -> Exported:
    """A filter of the echo canceller: a step of a call, from the state before to the next one."""
    from palto.recipes import echo

    model, record = echo.load_filter(folder)
    arguments, packages = "FAR.wav MIC.wav OUT.wav", "numpy onnxruntime"
    scores = {
        f"{kind}, {'ERLE in dB' if name == 'erle' else name.upper()}": value
        for kind, tests in record["tests"].items()
        for name, value in tests["network"].items()
    }
    frame = np.zeros((2, echo.HOP), np.float32)
    frames = {0: Dim("frames", max=64)}
    return Exported(
        model=model.eval(),
        function=model.stream,
        examples=[model.begin(), frame, frame],
        dynamic_shapes={"far": frames, "mic": frames},
        inputs=[*_STATE, "far", "mic"],
        outputs=[*(f"next_{name}" for name in _STATE), "clean"],
        title="An echo canceller",
        task="audio-to-audio",
        what=f"It takes the next frames, float32 of shape frames x {echo.HOP}, of what a "
        "loudspeaker is given and of what a microphone hears, 16,000 samples a second in +-1, and "
        "a state: zeros at a call's beginning, later what the step before has given as next_... It "
        f"gives the microphone's sound of {echo.LATENCY} samples ago without the echo, and the "
        "next state. The echo must not come before the far end's sound, nor more than some 50 ms "
        "after; `palto echo` finds the delay of files.",
        licence="Speech of Debian's packages asterisk-core-sounds-{en,es,fr}-g722, licence: "
        "CC-BY-SA-3.0, in simulated rooms.",
        about=dict(record) | {
            "model": "KalmanFilter",
            "latency": echo.LATENCY,
            "measures": scores,
            "licence": "CC-BY-SA-3.0",
        },
        script=_script(arguments, packages, ["import wave"], _CANCEL),
        arguments=arguments,
        packages=packages,
    )  # fmt: skip


# --- Which of them -------------------------------------------------------------------------------

#: By the file that is in its folder: what makes it ready.
KINDS: dict[str, Callable[[Path], Exported]] = {
    CONFIG_FILE: of_run,
    "pilot.json": of_pilot,
    "filter.json": of_filter,
}


def holds_model(folder: Path) -> bool:
    """Whether it is the folder of a training."""
    return any((folder / name).is_file() for name in KINDS)


def exported(folder: Path) -> Exported:
    """What a folder of any kind of training holds.

    Raises:
        FileNotFoundError: it holds none, or none that has come to its end.
        ValueError: what it holds is damaged.
        MissingExtraError: the libraries of its application are not installed.
    """
    if (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} holds a chat model in Hugging Face's form, which other programs open as it "
            "is; as ONNX, palto.formats.onnx.export writes its Llama with the cache as `state`, as "
            "docs/exchange.md shows"
        )
    kind = next((kind for name, kind in KINDS.items() if (folder / name).is_file()), None)
    if kind is None:
        raise FileNotFoundError(
            f"{folder} holds no trained model: it is the folder of a `palto train` that has come "
            f"to its end, which has one of {', '.join(KINDS)}"
        )
    return kind(folder)
