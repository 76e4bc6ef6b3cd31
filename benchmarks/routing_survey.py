"""What routing makes of every model that public libraries build, on the meta device.

    python benchmarks/routing_survey.py [--library NAME] [--only NAME] [--sample N] [--out FILE]

Each model is built from its own defaults and given to erlangen.param_groups, in another process,
with a limit of time. The report says of each library how many models were

routed: groups came back.
raised: refused with a ValueError or a TypeError.
traceback: any other error, or a process that died or ran out of time.
not built: by their own constructors; these count nowhere else.

and of each model, and in the mean over the models of a library (one that has no groups counts as
nothing declared or recognised), the shares of the matrix elements (of trainable tensors with two or
more dimensions) whose role is

declared: said by the library itself.
recognised: names and shapes agree with a convention.
assumed: from the type of the layer only.

`assumed` lists what is assumed by the class that holds it and its name there, the most first:
models is in how many, mean_share of how much of their matrix elements in the mean, tensors how
many in the first of them, which `model` names. silent lists models with something assumed of
which there was not exactly one warning.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import time
import traceback
import warnings
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import erlangen
import harness
import survey_models
import torch
from torch import nn

GRADES = ("declared", "recognised", "assumed")


# One model


def place(model: nn.Module, name: str) -> str:
    """The innermost class around a parameter that is not torch's own, and the path from there;
    positions in lists are *."""
    parts = name.split(".")
    modules = [model]
    for part in parts[:-1]:
        modules.append(getattr(modules[-1], part))
    leaf = type(modules[-1])
    own = [i for i, m in enumerate(modules) if not type(m).__module__.startswith("torch.")] or [0]
    # A layer of one weight says no more than a Linear does: who holds it?
    start = (
        own[-2] if len(own) > 1 and own[-1] == len(parts) - 1 and parts[-1] == "weight" else own[-1]
    )
    kind = type(modules[start])
    path = ".".join("*" if part.isdigit() else part for part in parts[start:])
    inside = f" ({leaf.__name__})" if start < len(parts) - 1 else ""
    return f"{kind.__module__.rsplit('.', 1)[-1]}.{kind.__qualname__} . {path}{inside}"


def shares(model: nn.Module, groups: list[dict]) -> tuple[dict, dict]:
    """Of matrix elements by grade, and what is assumed by place."""
    elements = Counter()
    assumed = {}
    for group in groups:
        names = group["param_names"]
        # Before routing gave reasons it gave a role only to what it knew.
        evidence = group.get("evidence", ["declared"] * len(names))
        why = group.get("why", [""] * len(names))
        for name, p, grade, reason in zip(names, group["params"], evidence, why, strict=True):
            if p.ndim < 2 or not p.numel():
                continue
            elements[grade] += p.numel()
            if grade == "assumed":
                entry = {"role": group["role"], "shape": list(p.shape), "why": reason}
                entry = assumed.setdefault(place(model, name), {"tensors": 0, "share": 0, **entry})
                entry["tensors"] += 1
                entry["share"] += p.numel()
    whole = sum(elements.values()) or 1
    for entry in assumed.values():
        entry["share"] /= whole
    return {grade: elements[grade] / whole for grade in GRADES}, assumed


def examine(library: str, name: str) -> dict:
    try:
        model = survey_models.build(library, name)
    except Exception as error:
        return {"status": "not built", "error": survey_models.first_line(error)}
    result = {"class": type(model).__name__}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.monotonic()
        try:
            groups = erlangen.param_groups(model)
        except (ValueError, TypeError) as error:
            return result | {"status": "raised", "error": " ".join(str(error).split())[:300]}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            error = (
                f"{survey_models.first_line(error)} ({Path(where.filename).name}:{where.lineno})"
            )
            return result | {"status": "traceback", "error": error}
    seconds = time.monotonic() - started
    grades, assumed = shares(model, groups)
    warned = sum(
        issubclass(w.category, UserWarning) and "assumed" in str(w.message) for w in caught
    )
    result |= {"status": "routed", **grades, "assumed_at": assumed, "seconds": seconds}
    return result | {"silent": warned != bool(assumed)}


def work(connection, library: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while name := connection.recv():
        connection.send(examine(library, name))


class Worker:
    """Another process, begun anew after a model that kills it or takes too long."""

    def __init__(self, work, library: str):
        self.work, self.library, self.process = work, library, None

    def examine(self, name: str, limit: float) -> dict:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(
                target=self.work, args=(theirs, self.library), daemon=True
            )
            self.process.start()
            theirs.close()
        self.connection.send(name)
        try:
            if self.connection.poll(limit):
                return self.connection.recv()
            error = f"no answer in {limit:g} s"
        except (EOFError, ConnectionError):
            error = "the process died"
        self.close()
        return {"status": "traceback", "error": error}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


# All of a library


def mean_shares(results: list[dict]) -> dict:
    built = [r for r in results if r["status"] != "not built"]
    mean = {g: round(statistics.fmean([r.get(g, 0) for r in built] or [0]), 4) for g in GRADES}
    status = Counter(r["status"] for r in results)
    counts = {key: status[key] for key in ("routed", "raised", "traceback", "not built")}
    return counts | mean


def merged(results: dict[str, dict]) -> dict[str, dict]:
    """What is assumed anywhere, by place, the most first."""
    places = {}
    for model, result in results.items():
        for key, entry in result.get("assumed_at", {}).items():
            first = {"models": 0, "mean_share": 0, "model": model} | entry
            into = places.setdefault(key, first)
            into["models"] += 1
            into["mean_share"] += entry["share"]
    for entry in places.values():
        entry["mean_share"] /= entry["models"]
        del entry["share"]
    order = sorted(places, key=lambda key: -places[key]["models"] * places[key]["mean_share"])
    return {key: places[key] for key in order}


def summary(library: str, results: dict[str, dict]) -> dict:
    result = {"all": mean_shares(list(results.values()))}
    if library == "transformers":
        causal = survey_models.causal_classes()
        result["causal"] = mean_shares([r for r in results.values() if r.get("class") in causal])
    return result | {"silent": [name for name, r in results.items() if r.get("silent")]}


def show(library: str, report: dict, results: dict[str, dict]) -> None:
    print(f"\n{library}")
    for errors in ("not built", "raised", "traceback"):
        found = {name: r["error"] for name, r in results.items() if r["status"] == errors}
        if found:
            print(f"\n  {errors} ({len(found)})")
        for name, error in found.items():
            print(f"    {name}: {error}")
    if report["assumed"]:
        print("\n  assumed, by class (models, mean share, role, tensors and shape in the first)")
    for key, e in report["assumed"].items():
        print(f"    {e['models']:4} {e['mean_share']:7.2%}  {key}")
        print(f"{'':18}{e['role']}: {e['tensors']} × {e['shape']} in {e['model']}; {e['why']}")
    by_name = {}
    for key, e in report["assumed"].items():
        path = key.split(" . ")[1]
        total = by_name.setdefault(path, [0, 0.0])
        total[0] += e["models"]
        total[1] += e["models"] * e["mean_share"]
    if by_name:
        print("\n  the same by name alone (models, sum of shares)")
    for path, (models, share) in sorted(by_name.items(), key=lambda item: -item[1][1])[:40]:
        print(f"    {models:4} {share:8.2f}  {path}")
    if slow := sorted((r.get("seconds", 0), name) for name, r in results.items())[-3:]:
        print("\n  longest:", ", ".join(f"{name} {seconds:.1f} s" for seconds, name in slow))
    if report["silent"]:
        print("\n  not exactly one warning:", *report["silent"])
    for key in ("all", "causal"):
        if key in report:
            print(f"\n  {key}:", ", ".join(f"{v} {k}" for k, v in report[key].items()))


def rounded(value):
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def as_json(report: dict) -> str:
    """A line for each of the innermost objects."""
    text = json.dumps(report, indent=1, ensure_ascii=False)
    return re.sub(r"\{[^{}]*\}", lambda match: " ".join(match.group().split()), text) + "\n"


def survey(library: str, args: argparse.Namespace) -> dict:
    try:
        names = survey_models.names(library, args.every_class, args.sample)
    except ImportError as error:
        return {"left_out": str(error)}
    chosen = [name for name in names if re.search(args.only, name)]
    worker, results = Worker(work, library), {}
    for i, name in enumerate(chosen):
        results[name] = worker.examine(name, args.limit)
        if i % 20 == 0:
            print(f"{library}: {i} of {len(chosen)}", flush=True)
    worker.close()
    report = summary(library, results) | {"assumed": merged(results)}
    show(library, report, results)
    # Of a model of which nothing is assumed there is no more to say than that.
    unimportant = ("assumed_at", "seconds", "silent")
    report["models"] = {
        name: {k: v for k, v in r.items() if k not in unimportant} for name, r in results.items()
    }
    return rounded(report)


def versions(libraries: list[str]) -> dict[str, str]:
    result = {}
    for package in (p for name in libraries for p in survey_models.LIBRARIES[name].packages):
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            pass
    return result


def main(words=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=survey_models.LIBRARIES, help="default: all")
    parser.add_argument("--only", default="", help="models in whose name this pattern is found")
    parser.add_argument("--sample", type=int, default=0, help="so many of each library, by seed")
    parser.add_argument(
        "--every-class", action="store_true", help="of transformers, not only one of each type"
    )
    parser.add_argument("--limit", type=float, default=120, help="seconds a model may take")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    args = parser.parse_args(words)
    libraries = [args.library] if args.library else list(survey_models.LIBRARIES)
    report = harness.circumstances() | {"results": {}}
    report["versions"] |= versions(libraries)
    for library in libraries:
        report["results"][library] = survey(library, args)
        if args.out:
            args.out.write_text(as_json(report))
    return report


if __name__ == "__main__":
    main()
