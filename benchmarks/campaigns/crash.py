"""Studies that are killed again and again: what is lost of them, and what comes out wrong?

Each study of a profile runs headless as a process of its own, twice undisturbed, and then in rounds: SIGKILL at random
moments, started again after each, until it has finished. Then every image and every table is compared with the
undisturbed run. What already differs between the two undisturbed runs, such as measured times, is left out of the
comparison, and named.

A kill takes the whole process tree (the command, the notebook's kernel, Ray), or the kernel alone, or with
`--cluster ray` a single worker, whose shard must be made again by itself.

    python benchmarks/campaigns/crash.py --kills 100 --seed 0
    python benchmarks/campaigns/crash.py --kills 10 --studies 02 07 --cluster ray

Prints a line for each kill and a row for each study, writes `outputs/campaigns/crash.json`, and ends with status 1 if
a row was lost or wrong. The outputs of the first such round of a study are kept as `outputs/campaigns/<study>/wrong`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import yaml
from safetensors import safe_open

from hybridlib.files import checksum, read_table, write_json
from hybridlib.paths import OUTPUTS, PARAMETERS, ROOT

PROFILE = "crash-campaign"  # a folder of outputs/, so that no run of one's own is touched
COMPARED = (".png", ".parquet", ".csv", ".json", ".npy", ".safetensors")
TIMES = (".spent.json",)  # tell how long it took
KINDS = ("tree", "kernel", "worker")
CHECK_EVERY_S = 0.02
KILLS_PER_ROUND = 3


@dataclass
class Report:
    """What the kills did to one study."""

    study: str
    runs: int = 0
    kills: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    rows: int = 0  # of all tables, and files of no rows, in one round
    rows_lost: int = 0
    rows_wrong: int = 0
    images: int = 0  # in one round
    images_lost: int = 0
    images_wrong: int = 0
    not_survived: int = 0  # runs that failed because one worker died
    varying: list[str] = field(default_factory=list)  # differs between undisturbed runs
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether nothing was lost and nothing is wrong."""
        lost = self.rows_lost or self.rows_wrong or self.images_lost or self.images_wrong
        return not (lost or self.not_survived)


# --- one run


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"TQDM_DISABLE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process: subprocess.Popen[bytes], kind: str) -> bool:
    """SIGKILL the whole tree, the kernel of the notebook, or one Ray worker; False if there is no such process."""
    members = family(process.pid)
    if kind == "tree":
        chosen = members
    elif kind == "kernel":
        chosen = [member for member in members[1:] if "ipykernel_launcher" in _command(member)]
    else:
        chosen = [member for member in members[1:] if _command(member).startswith("ray::Worker")][:1]
    for member in chosen:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    if kind == "kernel" and chosen:
        try:  # a command whose kernel died ends by itself
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            print("  a command did not notice that its kernel died", flush=True)
    if kind != "worker" and chosen:
        for member in members:  # and leaves nobody behind
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(members, timeout=30)
        process.wait()
    return bool(chosen)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def finish(process: subprocess.Popen[bytes], study: str) -> None:
    if process.wait() != 0:
        raise SystemExit(f"{study} failed undisturbed, with status {process.returncode}: run it by hand and see why")


def files_in(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


# --- what came out


def outcome(folder: Path) -> dict[str, Path]:
    """The files that a run is judged by, by their place in the folder."""
    paths = (path for path in folder.rglob("*") if path.suffix in COMPARED and not path.name.endswith(TIMES))
    return {str(p.relative_to(folder)): p for p in paths if ".ledger" not in p.parts and ".scores" not in p.parts}


def differing(a: Path, b: Path) -> set[str]:
    """What differs between two files: columns of tables, else the whole file under ""."""
    if checksum(a) == checksum(b):
        return set()
    if a.suffix == ".safetensors":  # notes in the header stand in no order
        return set() if _contents(a) == _contents(b) else {""}
    if a.suffix != ".parquet":
        return {""}
    first, second = read_table(a), read_table(b)
    if list(first) != list(second) or len(first) != len(second) or first.attrs != second.attrs:
        return {""}
    return {column for column in first if not first[column].equals(second[column])}


def _contents(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Notes and arrays of a safetensors file, the latter as type, shape and bytes."""
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, {n: (str(a.dtype), a.shape, a.tobytes()) for n, a in arrays.items()}


def compare(whole: Path, again: Path, varying: dict[str, set[str]], report: Report) -> None:
    """Count what is missing in `again` and what is other than in `whole`, and print where."""
    expected, found = outcome(whole), outcome(again)
    rows = images = 0
    for name, path in expected.items():
        is_image, leave = path.suffix == ".png", varying.get(name, set())
        number = len(read_table(path)) if path.suffix == ".parquet" else 1
        images, rows = images + is_image, rows + (0 if is_image else number)
        lost, wrong, changed = 0, 0, set[str]()
        if name not in found:
            lost = number
        elif "" not in leave and (changed := differing(path, found[name]) - leave):
            lost, wrong = _rows_apart(path, found[name], changed) if path.suffix == ".parquet" else (0, 1)
        if is_image:
            report.images_lost, report.images_wrong = report.images_lost + lost, report.images_wrong + wrong
        else:
            report.rows_lost, report.rows_wrong = report.rows_lost + lost, report.rows_wrong + wrong
        if lost or wrong:
            where = f" in {', '.join(sorted(changed))}" if changed - {""} else ""
            print(f"  {report.study}: {name}: {lost} lost, {wrong} wrong{where}", flush=True)
    for name in found.keys() - expected.keys():  # nobody asked for it
        print(f"  {report.study}: {name}: not in the undisturbed run", flush=True)
        report.rows_wrong += 1
    report.rows, report.images = rows, images


def _rows_apart(whole: Path, again: Path, columns: set[str]) -> tuple[int, int]:
    """Rows lost and rows wrong."""
    first, second = read_table(whole), read_table(again)
    if list(first) != list(second):
        return len(first), 0
    lost = max(0, len(first) - len(second))
    surplus = max(0, len(second) - len(first))
    names = [column for column in first if "" in columns or column in columns]
    common = min(len(first), len(second))
    a, b = first[names].head(common).reset_index(drop=True), second[names].head(common).reset_index(drop=True)
    same = (a == b) | (a.isna() & b.isna())
    return lost, surplus + int((~same.all(axis=1)).sum())


# --- a study


def undisturbed(command: Sequence[str], study: str, folder: Path, kept: Path) -> tuple[float, int]:
    """Run once, move the outputs away; returns seconds and the number of files, of parts and ledgers too."""
    began = time.perf_counter()
    finish(start(command), study)
    seconds = time.perf_counter() - began
    number = files_in(folder)
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(kept)
    return seconds, number


def campaign(
    study: str,
    command: Sequence[str],
    folder: Path,
    kept: Path,
    kills: int,
    rng: random.Random,
    kinds: Sequence[str] = ("tree",),
) -> Report:
    """Kill one study this often, in rounds, and compare after each.

    Args:
        command: starts the study, or lets it go on; it writes into `folder`, which is emptied.
        kept: where the undisturbed runs are put.
        kinds: of kills, drawn from at random.
    """
    report, began = Report(study), time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    seconds, number = undisturbed(command, study, folder, kept / "whole")
    undisturbed(command, study, folder, kept / "twice")
    first, second = outcome(kept / "whole"), outcome(kept / "twice")
    varying = {
        name: apart
        for name, path in first.items()
        if (apart := differing(path, second[name]) if name in second else {""})
    }
    report.varying = sorted(f"{name} {', '.join(sorted(columns))}".strip() for name, columns in varying.items())
    report.runs = 2
    while report.kills < kills:
        wanted = min(KILLS_PER_ROUND, kills - report.kills)
        moments = sorted(rng.uniform(0.02, 0.98) for _ in range(wanted))
        for moment in moments:
            process, kind = start(command), rng.choice(kinds)
            report.runs += 1
            if struck(process, kind, moment, seconds, number, folder, by_files=rng.random() < 0.75):
                report.kills += 1
                report.kinds[kind] = report.kinds.get(kind, 0) + 1
            state = f"{files_in(folder)} of {number} files"
            print(f"  {study}: kill {report.kills} of {kills} ({kind}) at {moment:.0%}, {state}", flush=True)
            if kind == "worker" and process.wait() != 0:
                report.not_survived += 1
        finish(start(command), study)
        report.runs, report.rounds = report.runs + 1, report.rounds + 1
        whole_before = report.whole
        compare(kept / "whole", folder, varying, report)
        if whole_before and not report.whole:  # to be looked at
            shutil.rmtree(kept / "wrong", ignore_errors=True)
            folder.rename(kept / "wrong")
        else:
            shutil.rmtree(folder)
    report.seconds = time.perf_counter() - began
    return report


def struck(
    process: subprocess.Popen[bytes],
    kind: str,
    moment: float,
    seconds: float,
    number: int,
    folder: Path,
    by_files: bool,
) -> bool:
    """Wait for a share of the files of a whole run to be there, or of its time to be over, and kill.

    False if the process ended before, or had no such part.
    """
    began = time.perf_counter()
    while process.poll() is None:
        late = time.perf_counter() - began > (3 * seconds if by_files else moment * seconds)
        if late or (by_files and files_in(folder) >= moment * number):
            if kill(process, kind):
                return True
            if late and kind != "tree":
                return kill(process, "tree")
        time.sleep(CHECK_EVERY_S)
    return False


def parameter_folder(profile: str, study: str, target: Path) -> Path:
    """The parameter file of a study under the campaign's own profile name."""
    values = yaml.safe_load((PARAMETERS / profile / f"{study}.yaml").read_text(encoding="utf-8")) or {}
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{study}.yaml").write_text(yaml.safe_dump(values | {"profile": PROFILE}), encoding="utf-8")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all studies together (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", nargs="*", metavar="N", help="numbers, such as 02; all of the profile by default")
    parser.add_argument("--profile", default="smoke", help="a folder of params/ (default smoke)")
    parser.add_argument("--cluster", choices=("local", "ray"), default="local", help="where images are made")
    given = parser.parse_args()
    available = sorted(path.stem for path in (PARAMETERS / given.profile).glob("*.yaml"))
    studies = [name for name in available if not given.studies or name.split("_")[0] in given.studies]
    if not studies or given.kills < 1:
        print(f"error: no such study in {', '.join(available)}, or kills below 1", file=sys.stderr)
        return 2
    kept, rng = OUTPUTS / "campaigns", random.Random(given.seed)
    reports = []
    for place, study in enumerate(studies):
        kills = given.kills // len(studies) + (place < given.kills % len(studies))
        if not kills:
            continue
        command, kinds = _command_of(study, given.profile, given.cluster, kept)
        folder = OUTPUTS / PROFILE
        print(f"{study}: two undisturbed runs, then {kills} kills", flush=True)
        reports.append(campaign(study, command, folder, kept / study, kills, rng, kinds))
        told = ["study", "runs", "kills", "rows", "rows_lost", "rows_wrong", "images", "images_lost", "images_wrong"]
        print(pd.DataFrame([asdict(r) for r in reports])[told].to_string(index=False), flush=True)
        write_json(
            {"seed": given.seed, "cluster": given.cluster, "studies": [asdict(r) for r in reports]}, kept / "crash.json"
        )
    for report in (r for r in reports if r.varying):
        print(f"{report.study}: differs by itself, so it was not compared: {'; '.join(report.varying)}")
    return 0 if all(report.whole for report in reports) else 1


def _command_of(study: str, profile: str, cluster: str, kept: Path) -> tuple[list[str], tuple[str, ...]]:
    """How a study is started, and which kinds of kills it gets."""
    parameters = parameter_folder(profile, study, kept / "params" / study)
    command = [sys.executable, "-m", "hybridlib", "reproduce", str(parameters), "--workers", "1"]
    from hybridlib.study.parameters import STUDIES

    if cluster == "ray" and "cluster" in STUDIES[study].model_fields:
        return [*command, "--cluster", "ray"], KINDS
    return command, KINDS[:2]


if __name__ == "__main__":
    sys.exit(main())
