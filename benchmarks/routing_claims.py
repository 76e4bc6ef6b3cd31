"""What routing claims of small models of public libraries, put to the test on their outputs.

    python benchmarks/routing_claims.py [--library NAME] [--only NAME] [--number N] [--seed N]
                                        [--out FILE]

Models are drawn in an order that the seed fixes, until so many have run (of transformers' types 40,
of timm's entry points 200, unless a number is given; of torchvision and diffusers all that
tiny_models.py has); those that do not build small, or do not run on the inputs made for them, are
named and not counted. claims/ says what is done to them. Of every block that a model's groups claim
the report says

right: moving its heads, neurons or experts leaves the outputs, cutting across them does not.
wrong: one of these does not hold.
unsure: the sizes of its tensors do not fit each other, or no test decides.
untested: what belongs to it was not found, or the outputs do not depend on it, and why.

Exits with 1 if anything is wrong.
"""

import argparse
import random
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import claims
import erlangen
import harness
import survey_models
import tiny_models
import torch
from routing_survey import Worker, as_json, rounded, versions

STATUS = ("right", "wrong", "unsure", "untested")
NUMBERS = {"transformers": 40, "timm": 200}


def first_class(model_type: str) -> str:
    return survey_models.transformers_classes()[model_type][0]


def make(library: str, name: str):
    """A model in float64 (or, where that does not run, float32) and what runs it."""
    torch.manual_seed(0)
    if library == "transformers":
        with torch.device("meta"):
            tiny_models.refuse_large(tiny_models.transformers_model(name, first_class(name)))
    if library == "transformers":
        model = tiny_models.transformers_model(name, first_class(name))
        inputs = tiny_models.transformers_inputs(model)
    else:
        model, inputs = getattr(tiny_models, f"{library}_model")(name)
    model.eval()
    tiny_models.randomise(model)
    try:
        return claims.Model(model.double(), tiny_models.runner(inputs))
    except RuntimeError:  # something in it is float32 whatever the model is
        return claims.Model(model.float(), tiny_models.runner(inputs))


def examine(library: str, name: str) -> dict:
    try:
        model = make(library, name)
    except Exception as error:  # no model of ours
        return {"status": "not run", "error": survey_models.first_line(error)}
    try:
        groups = erlangen.param_groups(model.model)
    except ValueError as error:
        return {"status": "raised", "error": " ".join(str(error).split())[:200]}
    started = time.monotonic()
    outcomes = claims.check(model, groups)
    result = {"status": "run", "class": type(model.model).__name__}
    result["seconds"] = time.monotonic() - started
    return result | {"blocks": [o._asdict() for o in outcomes]}


def work(connection, library: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while name := connection.recv():
        connection.send(examine(library, name))


def candidates(library: str, seed: int) -> list[str]:
    if library == "torchvision":
        return list(tiny_models.TORCHVISION)
    if library == "diffusers":
        return list(tiny_models.DIFFUSERS)
    names = survey_models.names(library)
    return random.Random(seed).sample(names, len(names))


def draw(library: str, args: argparse.Namespace) -> dict[str, dict]:
    worker, results = Worker(work, library), {}
    number = args.number or NUMBERS.get(library)
    for name in candidates(library, args.seed):
        if sum(r["status"] == "run" for r in results.values()) == number:
            break
        if re.search(args.only, name):
            results[name] = worker.examine(name, args.limit)
            show(name, results[name])
    worker.close()
    return results


def show(name: str, result: dict) -> None:
    if result["status"] != "run":
        print(f"{name}: {result['status']}, {result['error']}", flush=True)
        return
    counts = Counter(block["status"] for block in result["blocks"])
    print(f"{name} ({result['class']}):", *(f"{n} {s}" for s, n in counts.items()), flush=True)
    for block in result["blocks"]:
        if block["status"] != "right":
            print(f"  {block['status']} {block['kind']}: {block['reason']}")
            print("   ", *block["names"][:6])


def summary(results: dict[str, dict]) -> dict:
    ran = [r for r in results.values() if r["status"] == "run"]
    blocks = Counter(b["status"] for r in ran for b in r["blocks"])
    models = Counter(r["status"] for r in results.values())
    tried = sum(any(b["status"] in ("right", "wrong") for b in r["blocks"]) for r in ran)
    counts = {"run": models["run"], "with blocks tested": tried}
    counts |= {k: models[k] for k in ("raised", "traceback", "not run")}
    return counts | {s: blocks[s] for s in STATUS}


def main(words=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    libraries = ("transformers", "timm", "torchvision", "diffusers")
    parser.add_argument("--library", choices=libraries, help="default: all")
    parser.add_argument("--only", default="", help="models in whose name this pattern is found")
    parser.add_argument("--number", type=int, help="models of a library that run")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which they are drawn")
    parser.add_argument("--limit", type=float, default=300, help="seconds a model may take")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    args = parser.parse_args(words)
    libraries = [args.library] if args.library else libraries
    report = harness.circumstances() | {"results": {}}
    report["versions"] |= versions(libraries)
    for library in libraries:
        results = draw(library, args)
        report["results"][library] = summary(results) | {"models": results}
        print(f"\n{library}:", ", ".join(f"{n} {key}" for key, n in summary(results).items()))
        for result in results.values():
            result.pop("seconds", None)
        if args.out:
            args.out.write_text(as_json(rounded(report)))
    return report


if __name__ == "__main__":
    sys.exit(any(result["wrong"] for result in main()["results"].values()))
