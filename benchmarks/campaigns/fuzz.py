"""Hostile and damaged input for everything that is read: is it refused in one sentence, or read as what it is?

For each kind of input, cases are drawn by hypothesis from a seed: honest bytes altered, and content made to be wrong,
with right checksums where there are any. A case ends in one of four ways:

    refused   `InvalidInput`, one line
    right     read, and an oracle that is told what was written agrees
    wrong     read, and the oracle does not agree
    foreign   any other exception, or more than one line

An audit hook of the interpreter watches meanwhile which files are opened for writing, made, moved or removed; what lies
outside the folder of outputs is counted. So is every class that a pickle asks for.

`python benchmarks/campaigns/fuzz.py --cases 12000`
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from hybridlib.codecs import Adaptive, DecimalRounding, Message, MinMax, Raw, decode
from hybridlib.denoising import state as state_module
from hybridlib.denoising.denoisers import Space
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.files import check_inside, read_image, read_table, write_atomically, write_image, write_table
from hybridlib.paths import PARAMETERS
from hybridlib.prompts import PromptSet
from hybridlib.study.parameters import STUDIES, base
from hybridlib.trust import InvalidInput, seal

ENDS = ("refused", "right", "wrong", "foreign")
KEY = bytes(range(32))
STEPS = 6


class Case(NamedTuple):
    """What is read, and what the oracle is told: what was meant, or None where nothing may be read."""

    data: bytes
    meant: Any = None


class Kind(NamedTuple):
    """One kind of input: its cases, how it is read from a file, whether what was read is right."""

    name: str
    cases: st.SearchStrategy[Case]
    read: Callable[[Path], Any]
    right: Callable[[Any, Case], bool]


class Outcome(NamedTuple):
    """What became of the cases of a kind; `examples` shows the first of each bad end."""

    ends: Counter[str]
    outside: int
    examples: dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 if nothing was wrong, foreign or outside."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12_000, help="over all kinds (default 12000)")
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args(arguments)
    outcomes = campaign(kinds(), given_.cases, given_.seed)
    print_table(outcomes)
    return int(any(bad(outcome) for outcome in outcomes.values()))


def bad(outcome: Outcome) -> int:
    """Cases that should not be."""
    return outcome.ends["wrong"] + outcome.ends["foreign"] + outcome.outside


def print_table(outcomes: dict[str, Outcome]) -> None:
    names = ("refused in one sentence", "read and right", "wrong accepted", "foreign errors", "files outside")
    print(f"{'kind':>16} {'cases':>7}" + "".join(f"{name:>25}" for name in names))
    for name, (ends, outside, _) in outcomes.items():
        numbers = (ends["refused"], ends["right"], ends["wrong"], ends["foreign"], outside)
        print(f"{name:>16} {ends.total():7,}" + "".join(f"{number:25,}" for number in numbers))
    for name, outcome in outcomes.items():
        for end, example in outcome.examples.items():
            print(f"{name}, {end}: {example}")


def campaign(chosen: list[Kind], cases: int, number: int) -> dict[str, Outcome]:
    """Run every kind, each with an equal share of the cases, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs"
        outputs.mkdir()
        base.OUTPUTS, usual = outputs, base.OUTPUTS
        sys.dont_write_bytecode = True  # or a late import would be taken for a case that writes
        try:
            outcomes = {}
            for place, kind in enumerate(chosen):  # one seed would draw much the same for all of them
                outcomes[kind.name] = run(kind, -(-cases // len(chosen)), 1000 * number + place, outputs)
                print(f"{kind.name}: {dict(outcomes[kind.name].ends)}", file=sys.stderr, flush=True)
            return outcomes
        finally:
            base.OUTPUTS = usual


def run(kind: Kind, cases: int, number: int, outputs: Path) -> Outcome:
    """One kind. Its cases lie in a file in `outputs`."""
    ends: Counter[str] = Counter()
    examples: dict[str, str] = {}
    file, outside = outputs / "case", 0

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases)
    def each(case: Case) -> None:
        nonlocal outside
        file.write_bytes(case.data)
        with watched(outputs) as touched:
            end, told = ending(kind, case, file)
        ends[end] += 1
        outside += len(touched)
        if end in ("wrong", "foreign"):
            examples.setdefault(end, f"{told} <- {case.data[:300]!r}")
        if touched:
            examples.setdefault("outside", f"{touched[0]} <- {case.data[:300]!r}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each()
    return Outcome(ends, outside, examples)


def ending(kind: Kind, case: Case, file: Path) -> tuple[str, str]:
    try:
        found = kind.read(file)
    except InvalidInput as error:
        return ("refused" if "\n" not in str(error) else "foreign"), str(error)
    except Exception as error:
        return "foreign", repr(error)
    try:
        return ("right" if kind.right(found, case) else "wrong"), repr(found)[:300]
    except Exception as error:  # the oracle cannot even compare
        return "wrong", repr(error)


# --- what is touched

_watching: list[tuple[str, list[str]]] = []  # hooks cannot be taken away, so there is one for the process
_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    inside, touched = _watching[-1]
    if event in _RUNS:
        touched.append(f"{event} {arguments!r}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        touched += _not_inside(event, arguments[:1], inside)
    elif event in _WRITES:
        touched += _not_inside(event, arguments[:2], inside)


def _not_inside(event: str, paths: tuple[Any, ...], inside: str) -> list[str]:
    named = [os.fsdecode(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))]
    return [f"{event} {path}" for path in named if not os.path.realpath(path).startswith(inside + os.sep)]


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What is done outside `folder` while the block runs."""
    touched: list[str] = []
    _watching.append((os.path.realpath(folder), touched))
    try:
        yield touched
    finally:
        _watching.pop()


# --- altered bytes


def altered(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with bits flipped, cut off, cut out, doubled, overwritten, or other bytes altogether."""
    place = st.integers(0, len(data) - 1)
    some = st.binary(min_size=1, max_size=9)
    return st.one_of(
        st.builds(
            lambda bits: _flipped(data, bits), st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=4)
        ),
        place.map(lambda end: data[:end]),
        st.builds(lambda a, b: data[: min(a, b)] + data[max(a, b) + 1 :], place, place),
        st.builds(lambda at, new: data[:at] + new + data[at:], place, some),
        st.builds(lambda at, new: data[:at] + new + data[at + len(new) :], place, some),
        st.builds(lambda at: data + data[at:], place),
        st.binary(max_size=64),
    )


def _flipped(data: bytes, bits: list[int]) -> bytes:
    new = bytearray(data)
    for bit in bits:
        new[bit // 8] ^= 1 << bit % 8
    return bytes(new)


# --- codec messages

CODECS = (Raw(), DecimalRounding(4.0), DecimalRounding(1.5, "deflate"), MinMax(6), MinMax(8, "png"), Adaptive(0.25))
WORDS = ("raw:int8", "decimal:1e30,range", "decimal:nan,deflate", "minmax:99,range", "minmax:8,webp", "zip:1", ":", "")
SIDES = st.sampled_from([0, 1, 3, 4, 8, 300, 65_535])


def messages() -> st.SearchStrategy[Case]:
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)) * 3
    honest = [codec.encode(latents, [5])[0] for codec in CODECS]

    def content(data: bytes) -> st.SearchStrategy[Case]:
        message = Message.open(data)
        specification = st.one_of(st.just(message.specification), st.sampled_from(WORDS), st.text(max_size=20))
        shape = st.one_of(st.just(message.shape), st.tuples(SIDES, SIDES, SIDES))
        payload = st.one_of(st.just(message.payload), altered(message.payload))
        return st.builds(_message, specification, shape, st.sampled_from([0, 1, 2, 2, 3, 255]), payload)

    return st.sampled_from(honest).flatmap(
        lambda data: st.one_of(altered(data).map(lambda new: Case(new, new if new == data else None)), content(data))
    )


def _message(specification: str, shape: tuple[int, int, int], dtype: int, payload: bytes) -> Case:
    """A message with a right checksum; it may be read as latents of this shape and dtype."""
    name = specification.encode("utf-8")[:255]
    body = b"HLC\x01" + bytes([len(name)]) + name + struct.pack("<BHHH", dtype, *shape) + payload
    return Case(body + struct.pack("<I", zlib.crc32(body)), (shape, dtype))


def right_latents(found: Any, case: Case) -> bool:
    """Finite, and of the shape and dtype that the header tells; nothing at all where the bytes were altered."""
    if case.meant is None:
        return False
    if isinstance(case.meant, tuple):
        shape, dtype = case.meant
        told = (torch.float16, torch.bfloat16, torch.float32)[dtype]
        return tuple(found.shape) == (1, *shape) and found.dtype == told and bool(torch.isfinite(found).all())
    return True


# --- states


def honest_state() -> DenoiseState:
    path = Trajectory.hybrid("a ring", "a red ring", 2, 1, num_inference_steps=3).with_codec(1, DecimalRounding(4.0))
    return DenoiseState(
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)),
        step=3,
        sigmas=torch.linspace(1, 0, STEPS + 1),
        history={"model_outputs.1": torch.ones(1, 4, 8, 8), "lower_order_nums": torch.tensor(2)},
        past=path,
        model="a model",
        solver="a solver",
        versions={"torch": "2"},
        space=Space(4, 1.5, 0.0, "flow", "shift 3"),
    )


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [-1, 0, 1, 2, 3, 99, 1 << 70, 1.5, float("nan"), float("inf"), -1e308, "", "a" * 99, "raw:float16"]
    ),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
TENSORS = (
    torch.zeros(1, 4, 8, 8),
    torch.full((1, 4, 8, 8), float("nan")),
    torch.zeros(2, 4, 8, 8),
    torch.zeros(0),
    torch.tensor(1 << 40),
    torch.zeros(7, dtype=torch.bool),
    torch.zeros(1, 4, 8, 8, dtype=torch.float64),
    torch.linspace(1, 0, STEPS + 1),
)


def states(key: bytes | None) -> st.SearchStrategy[Case]:
    from safetensors.torch import load

    state = honest_state()
    plain = state.to_bytes()
    header = json.loads(plain[8 : 8 + int.from_bytes(plain[:8], "little")])
    told, tensors = json.loads(header["__metadata__"]["state"]), load(plain)
    paths = st.sampled_from(list(_nodes(told)))
    names = st.sampled_from(["latents", "sigmas", "history.x", "x", *tensors])

    def content(path: tuple[Any, ...], kind: str, value: Any, name: str, tensor: torch.Tensor | None) -> Case:
        new, mine = json.loads(json.dumps(told)), dict(tensors)
        new = _changed(new, path, kind, value)
        if tensor is not None:
            mine[name] = tensor
        text = json.dumps(new)
        return Case(seal(_state_file(text, mine), key), "content")

    honest = seal(plain, key)
    others = [plain] if key else []  # without its seal
    others += [seal(plain, KEY[::-1])] if key else [seal(plain, KEY)]  # of another key
    made = st.builds(
        content,
        paths,
        st.sampled_from(["none", "replace", "remove", "add"]),
        VALUES,
        names,
        st.one_of(st.none(), st.sampled_from(TENSORS)),
    )
    changed = altered(honest).map(lambda new: Case(new, "same"))
    return st.one_of(changed, made, st.sampled_from([Case(data) for data in others]))


def _state_file(text: str, tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = {"format": state_module.FORMAT, "state": text, "sha256": state_module._checksum(text, tensors)}
    return save(tensors, metadata=about)


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from _nodes(inner, (*path, key))


def _changed(content: Any, path: tuple[Any, ...], kind: str, value: Any) -> Any:
    """JSON with what is at the path replaced, removed, or given a neighbour."""
    if kind == "none":
        return content
    if not path:
        return value
    place = content
    for key in path[:-1]:
        place = place[key]
    if kind == "remove":
        del place[path[-1]]
    elif kind == "add" and isinstance(place, dict):
        place["unknown"] = value
    else:
        place[path[-1]] = value
    return content


def right_state(found: DenoiseState, case: Case) -> bool:
    """One that could have been made: finite, within its schedule, the same after another trip through bytes."""
    if case.meant is None:
        return False
    if case.meant == "same":
        return _same(found, honest_state())
    again = DenoiseState.from_bytes(found.to_bytes())
    return (
        found.latents.ndim == 4
        and len(found.latents) == 1
        and bool(torch.isfinite(found.latents).all() and torch.isfinite(found.sigmas).all())
        and type(found.step) is int
        and 1 <= found.step == found.past.stop < len(found.sigmas)
        and all(isinstance(word, str) for word in (found.model, found.solver))
        and _same(again, found)
    )


def _same(one: DenoiseState, other: DenoiseState) -> bool:
    names = ("step", "past", "model", "solver", "versions", "space")
    tensors = [{"latents": s.latents, "sigmas": s.sigmas} | s.history for s in (one, other)]
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    )


# --- parameter files and prompt sets

UNREADABLE = "unreadable"
PATHS = [
    "../x",
    "/tmp/x",
    "a/b",
    "..",
    ".",
    "~",
    "x/../../y",
    "link",
    "a\x00b",
    "-",
    "",
    "smoke",
    "mine-2.0",
    "a" * 300,
]
SCALARS = [
    "1",
    "-1",
    "0x10",
    "1e3",
    "1.0e+400",
    ".nan",
    ".inf",
    "yes",
    "null",
    "'x'",
    "[]",
    "{}",
    "[1, 2]",
    "2001-99-99",
]
SCALARS += ["9" * 5000, "!!python/object/apply:os.system [id]", "!!int ''", "!!bool x", "!!binary x", "&a [*a]", "*b"]
SCALARS += ["[" * 300, "{a: " * 200 + "1" + "}" * 200, "a\\nb", '"\\ud800"', "? [a]\n: b", "!!set {a}", "=", "<<"]
DOCUMENTS = ["", "null", "- a", "{1: 2}", "a: [", "\t", "%YAML 9.9\n---\na: 1", "--- a\n--- b", "\ufeffprofile: smoke"]
DOCUMENTS += ["a: &a [x, x]\nb: &b [*a, *a]\nmodel: [*b, *b]", "<<: {profile: x}", "[" * 400, "profile: a\nprofile: b"]


def parameters(study: str) -> st.SearchStrategy[Case]:
    cls = STUDIES[study]
    names = st.sampled_from([*cls.model_fields, "modle", "model_config", "self", "x y", "é"])
    line = st.builds(
        lambda name, value: f"{name}: {value}", names, st.one_of(st.sampled_from(SCALARS), st.text(max_size=9))
    )
    places = st.sampled_from(PATHS).map(lambda path: f"profile: {json.dumps(path)}")
    lines = st.lists(st.one_of(line, line, places), max_size=4).map("\n".join)
    honest = (PARAMETERS / "miniature" / f"{study}.yaml").read_bytes()
    text = st.one_of(lines, lines, st.sampled_from(DOCUMENTS), st.text(max_size=40))
    encoded = text.map(lambda words: words.encode("utf-8", "replace"))
    return st.one_of(encoded, encoded, altered(honest), st.just(honest)).map(lambda data: Case(data, _plainly(data)))


def _plainly(data: bytes) -> Any:
    """What a YAML document says, by the stock loader; `UNREADABLE` if that refuses it."""
    try:
        return yaml.safe_load(data.decode("utf-8"))
    except Exception:
        return UNREADABLE


def read_parameters(study: str) -> Callable[[Path], Any]:
    def read(file: Path) -> Any:
        found = STUDIES[study].from_yaml(file)
        with contextlib.suppress(OSError):  # a profile may be a name that is taken by a file
            write_atomically(base.OUTPUTS / found.profile / found.notebook / "touched", b"")
        return found

    return read


def right_parameters(found: Any, case: Case) -> bool:
    """Every value is the document's, of the same type, and nothing that the document says is left out."""
    said = {} if case.meant is None else case.meant
    told = found.model_dump()
    return isinstance(said, dict) and all(
        name in told and told[name] == value and _alike(told[name], value) for name, value in said.items()
    )


def _alike(mine: Any, its: Any) -> bool:
    if isinstance(its, list):
        return isinstance(mine, list) and all(map(_alike, mine, its))
    return type(mine) is type(its) or (type(mine) is float and type(its) is int)


NEARLY = [  # prompt sets of which stock YAML makes numbers, lists and nothing
    "groups: [{public: 3, personal: [{prompt: a}]}]",
    "groups: [{public: a, personal: [{prompt: yes}]}]",
    "groups: [{public: [a], personal: [{prompt: b}]}]",
    "groups: [{public: a, personal: [{prompt: b, negative: null}]}]",
    "groups: [{public: a, personal: [{prompt: b}], x: 1}]",
    "groups: [{public: a, personal: [{prompt: b}]}]",
]
TEXTS = ["a ring", "", " ", "3", "yes", "null", "[a]", "{a: b}", "'a: b'", "é", "a ring"]


def prompt_sets() -> st.SearchStrategy[Case]:
    word = st.one_of(st.sampled_from(TEXTS), st.text(alphabet="ab ", max_size=4).map(json.dumps))
    key = st.sampled_from(["prompt", "prompt", "prompt", "negative", "negtive"])
    pair = st.lists(st.tuples(key, word), max_size=3).map(lambda kv: "{" + ", ".join(f"{k}: {v}" for k, v in kv) + "}")
    personal = st.one_of(st.lists(pair, max_size=3).map(lambda pairs: "[" + ", ".join(pairs) + "]"), word)
    group = st.builds(
        lambda p, q, extra: f"{{public: {p}, personal: {q}{extra}}}", word, personal, st.sampled_from(["", ", x: 1"])
    )
    groups = st.lists(group, max_size=2).map(lambda gs: "groups: [" + ", ".join(gs) + "]")
    honest = b"groups:\n  - public: a star\n    personal:\n      - {prompt: a red star, negative: a blue star}\n"
    texts = st.one_of(groups, groups, st.sampled_from(NEARLY), st.sampled_from(DOCUMENTS), st.text(max_size=20))
    data = st.one_of(texts.map(lambda words: words.encode("utf-8", "replace")), altered(honest), st.just(honest))
    return data.map(lambda data: Case(data, _plainly(data)))


def right_prompts(found: PromptSet, case: Case) -> bool:
    """The very texts of the document, in its order."""
    groups = case.meant["groups"]
    pairs = [pair for group in groups for pair in group["personal"]]
    texts = [*found.public, *found.personal, *found.negative]
    return (
        all(isinstance(text, str) for text in texts)
        and all(set(group) == {"public", "personal"} for group in groups)
        and list(found.public) == [group["public"] for group in groups]
        and list(found.personal) == [pair["prompt"] for pair in pairs]
        and list(found.negative) == [pair.get("negative", "") for pair in pairs]
        and all(text.strip() for text in (*found.public, *found.personal))
    )


# --- names of images, tables, pictures


def image_names() -> st.SearchStrategy[Case]:
    part = st.sampled_from(["a", "..", ".", "", "seed1", "a b", "...", "é", "/", "\\", "..a", "a..", "~"])
    return st.lists(part, min_size=1, max_size=4).map("/".join).map(lambda name: Case(name.encode(), name))


def write_named(file: Path) -> Any:
    """Write an image of this name below outputs/images, if the runner lets it pass."""
    name = file.read_bytes().decode()
    try:
        check_inside(pd.Series([name]))
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    with contextlib.suppress(OSError):  # such as the name of a folder
        write_atomically(base.OUTPUTS / "images" / name, b"")
    return base.OUTPUTS / "images" / name


def right_name(found: Path, case: Case) -> bool:
    return os.path.realpath(found).startswith(os.path.realpath(base.OUTPUTS / "images"))


def tables() -> st.SearchStrategy[Case]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(40)],
            "seed": range(40),
            "clip": rng.normal(size=40),
            "npi": [True, False] * 20,
        }
    )
    table.attrs["metrics"] = {"clip": "which"}
    with tempfile.TemporaryDirectory() as place:
        write_table(table, Path(place) / "t.parquet")
        honest = (Path(place) / "t.parquet").read_bytes()
    stock = io.BytesIO()
    pd.DataFrame({"other": [1]}).to_parquet(stock)
    lacks = st.just(Case(stock.getvalue()))
    return (
        st.one_of(altered(honest), altered(honest), altered(honest), st.just(honest)).map(
            lambda data: Case(data, table)
        )
        | lacks
    )


def right_table(found: pd.DataFrame, case: Case) -> bool:
    return case.meant is not None and found.equals(case.meant) and found.attrs == case.meant.attrs


def pictures() -> st.SearchStrategy[Case]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 9, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as place:
        write_image(Image.fromarray(pixels), Path(place) / "i.png")
        honest = (Path(place) / "i.png").read_bytes()

    def header(width: int, height: int, depth: int, colour: int) -> Case:
        """The head of a PNG with a right checksum."""
        head = b"IHDR" + struct.pack(">II5B", width, height, depth, colour, 0, 0, 0)
        data = honest[:12] + head + struct.pack(">I", zlib.crc32(head)) + honest[33:]
        return Case(data, pixels if (width, height, depth, colour) == (9, 12, 8, 2) else (width, height))

    sides = st.sampled_from([0, 1, 9, 12, 8192, 65_536, 2**31 - 1, 2**32 - 1])
    made = st.builds(header, sides, sides, st.sampled_from([1, 2, 8, 16, 99]), st.sampled_from([0, 2, 3, 4, 6, 9]))
    others = [_saved(format_) for format_ in ("GIF", "BMP", "TIFF", "PPM", "ICO")]
    return st.one_of(
        altered(honest).map(lambda data: Case(data, pixels)),
        altered(honest).map(lambda data: Case(data, pixels)),
        made,
        st.sampled_from([Case(data) for data in others]),
    )


def _saved(format_: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, format_)
    return file.getvalue()


def right_picture(found: Image.Image, case: Case) -> bool:
    """The pixels that were written; of a head that was made up, at least its size."""
    if case.meant is None or found.mode != "RGB":
        return False
    if isinstance(case.meant, tuple):
        return found.size == case.meant
    return np.array_equal(np.asarray(found), case.meant)


def kinds() -> list[Kind]:
    """All of them."""
    rng = random.Random(0)
    studies = ["01_figures", "05_image_quality", rng.choice([name for name in STUDIES if name > "06"])]
    return [
        Kind("messages", messages(), lambda file: decode([file.read_bytes()]), right_latents),
        Kind("states", states(None), DenoiseState.load, right_state),
        Kind("sealed states", states(KEY), lambda file: DenoiseState.load(file, KEY), right_sealed),
        *(Kind(name[:16], parameters(name), read_parameters(name), right_parameters) for name in studies),
        Kind("prompt sets", prompt_sets(), lambda file: PromptSet.load(str(file)), right_prompts),
        Kind("image names", image_names(), write_named, right_name),
        Kind("tables", tables(), lambda file: read_table(file, ("clip",)), right_table),
        Kind("pictures", pictures(), read_image, right_picture),
    ]


def right_sealed(found: DenoiseState, case: Case) -> bool:
    """Content made by who holds the key is judged like any other; bytes changed by others are not read at all."""
    return case.meant is not None and right_state(found, case)


if __name__ == "__main__":
    sys.exit(main())
