"""qgraph whatif: what quantizing each product would do, and the best policy for a budget."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.errors import ArtifactError, ModelError, PolicyError
from qgraph.search import HIGH_CANDIDATE, check_measure, parse_candidates
from qgraph.tools.show.format_plot import check_file
from qgraph.tools.show.screen import print_json, progress, width
from qgraph.tools.show.whatif_text import measured_json, whatif_text

if TYPE_CHECKING:
    from qgraph.search import Budget, Sensitivity

RANDOM = 3  # random policies of the same cost that are run beside the chosen one
POINTS = 12  # of the plotted front


def whatif(
    model: Annotated[str, typer.Argument(help="A causal language model, named as for convert.")],
    data: Annotated[
        str | None,
        typer.Option("--data", "--text", help="A text file; without it, Python's library sources."),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            help="Candidates: formats, each with sr (stochastic gradients), rht (rotated)."
        ),
    ] = "nvfp4, nvfp4 sr, nvfp4 rht, mxfp4, mxfp8, int8_row",
    by: Annotated[
        str, typer.Option(help="What ranks: gradient, loss, wgrad, fisher or hutchinson.")
    ] = "gradient",
    keep: Annotated[
        str | None, typer.Option(metavar="10%", help="Budget: share of product FLOPs kept high.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Budget: mean bits of an operand element; high counts 16.")
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(metavar="POLICY.yaml", help="Write the best policy for the budget."),
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Plot the best error for every budget.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    length: Annotated[int, typer.Option(min=2, help="Tokens per sequence.")] = 128,
    minutes: Annotated[
        float, typer.Option(min=0, help="Time for running the step again and again.")
    ] = 2.0,
    probes: Annotated[int, typer.Option(min=1, help="Random vectors for hutchinson.")] = 4,
    top: Annotated[int, typer.Option(min=1, help="Products to list.")] = 15,
    seed: Annotated[int, typer.Option(help="Seed of a preset's weights, order and rounding.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what quantizing each product alone does to one step of MODEL, and choose a policy.

    For example: qgraph whatif preset:tiny-llama --formats "nvfp4, mxfp8" --bits 6 --write mine.yaml

    One batch goes forward and backward. Each product is then quantized alone, under each candidate,
    and what follows from it runs again; what time does not allow is scaled from what was measured.
    The policy is the exact optimum of summed errors for the budget, by an integer program.

    JSON keys: model, tokens, loss, by, products (module, op, role, block, flops, score, and effects by
    candidate: sqnr_db, underflow, clipped, output_error, gradient_error, measured, loss_change,
    first_order, fisher, kept_gradient_error), everything (gradient_error, loss_change, of all under the
    first candidate), measured (share of effects), left_out, and with a budget policy (predicted,
    gradient_error, loss_change, cost, counts, random), front, wrote.
    """
    candidates = parse_candidates(formats)
    ranked, limit = check_measure(by), _budget(keep, bits, write)
    if plot is not None:
        check_file(plot)
    if write is not None:
        _check_policy_file(write)
    with progress(8) as step:
        step("loading torch")
        import torch
        import transformers

        from qgraph.models import load_config, load_model
        from qgraph.search import Budget, Replay, hessian_traces, measure, score
        from qgraph.training import Windows, read_text, tokenize

        transformers.utils.logging.disable_progress_bar()
        vocabulary = getattr(load_config(model).get_text_config(), "vocab_size", None)
        if vocabulary is None:
            raise ModelError(f"{model}: takes no text", "give a causal language model")
        rows = Windows(tokenize(read_text(data), model, vocabulary), length)
        loaded = load_model(model, seed)
        ids = torch.stack([rows[i * len(rows) // batch]["input_ids"] for i in range(batch)])
        step("capturing the step, and running it once")
        replay = Replay(loaded, {"input_ids": ids, "labels": ids})
        found = measure(replay, candidates, step, seconds=60 * minutes, seed=seed)
        traces = hessian_traces(replay, probes, seed) if ranked == "hutchinson" else None
        scores = score(found, ranked, traces, replay)
        result = measured_json(model, ids.numel(), found, ranked, scores, candidates[0].name)
        if limit is not None or plot is not None:
            step("choosing")
            budget = Budget(kind=limit[0], amount=limit[1]) if limit else None
            result |= _choose(replay, found, scores, budget, write, plot, model, by, seed)
    if as_json:
        print_json(result)
    else:
        sys.stdout.write(whatif_text(result, candidates[0].name, top, width()))


def _budget(keep: str | None, bits: float | None, write: str | None) -> tuple[Any, float] | None:
    if keep is not None and bits is not None:
        raise PolicyError("--keep", keep, "a second budget beside --bits", "give one of them")
    if keep is not None:
        try:
            amount = float(keep.removesuffix("%")) / 100
        except ValueError:
            amount = -1.0
        if not 0 <= amount <= 1:
            raise PolicyError("--keep", keep, "not a share of FLOPs", "write --keep 10%")
        return "keep", amount
    if bits is not None:
        if not 1 <= bits <= 16:
            raise PolicyError(
                "--bits", f"{bits:g}", "out of range", "write --bits 6; high counts 16"
            )
        return "bits", bits
    if write is not None:
        raise PolicyError("--write", write, "no budget", "add --keep 10%, or --bits 6")
    return None


def _check_policy_file(file: str) -> None:
    path = Path(file)
    wrong = {
        "the name does not end in .yaml": path.suffix not in (".yaml", ".yml"),
        "it already exists": path.exists(),
        f"no such folder as {path.parent}": not path.parent.is_dir(),
        "the folder is read-only": path.parent.is_dir() and not os.access(path.parent, os.W_OK),
    }
    if problem := next((text for text, is_so in wrong.items() if is_so), None):
        raise ArtifactError(
            f"{file}: cannot write the policy: {problem}",
            "choose another --write, such as mine.yaml",
        )


def _choose(
    replay: Any, found: Sensitivity, scores: dict[tuple[int, str], float], budget: Budget | None,
    write: str | None, plot: str | None, model: str, by: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
    from qgraph.search import Budget, choices, choose, choose_at_random, compose_policy, run_policy
    from qgraph.tools.show.whatif_plot import Front, plot_front

    root = math.sqrt if by in ("gradient", "wgrad") else float
    result: dict[str, Any] = {}
    chosen_point = measured = None
    randoms: list[tuple[float, float]] = []
    if budget is not None:
        chosen, best = choose(found, scores, budget)
        error, loss = run_policy(replay, [*zip(found.units, chosen, strict=True)], seed)
        others = []
        for number in range(RANDOM):
            other, spent = choose_at_random(found, scores, budget, seed + number)
            randoms.append((spent.cost, root(spent.error)))
            others.append(run_policy(replay, [*zip(found.units, other, strict=True)], seed)[0])
            if by == "gradient":  # as it ran, like the chosen one
                randoms[-1] = (spent.cost, others[-1])
        chosen_point, measured = (best.cost, root(best.error)), error if by == "gradient" else None
        result["policy"] = {
            "budget": {budget.kind: budget.amount},
            "cost": best.cost,
            "predicted": root(best.error),
            "gradient_error": error,
            "loss_change": loss,
            "counts": dict(Counter(candidate.name for candidate in chosen)),
            "random": others,
        }
        if write is not None:
            sites = [site for site in replay.sites if site.operands]
            of_site = {
                site.number: candidate
                for unit, candidate in zip(found.units, chosen, strict=True)
                for site in unit.sites
            }
            wanted = {i: of_site.get(site.number, HIGH_CANDIDATE) for i, site in enumerate(sites)}
            words = f"{budget.kind} {budget.amount:g}"
            source = f"qgraph whatif {Path(model).name}, by {by}, {words}"
            text, _ = compose_policy(Path(write).stem, source, sites, wanted)
            _write(write, text)
            result["wrote"] = write
    if plot is not None:
        kind = budget.kind if budget else "bits"
        names, numbers = choices(found, scores, Budget(kind=kind, amount=16))
        low = sum(min(c.cost for c in own) for own in numbers)
        high = sum(max(c.cost for c in own) for own in numbers)
        points = [low + (high - low) * (i / POINTS) ** 2 for i in range(POINTS + 1)]
        front = [choose(found, scores, Budget(kind=kind, amount=p))[1] for p in points]
        uniform = {
            candidate.name: (
                sum(own[i].cost for own in numbers), root(sum(own[i].error for own in numbers))
            )
            for i, candidate in enumerate(names[0]) if candidate.format
        }  # fmt: skip
        result["front"] = [[a.cost, root(a.error)] for a in front]
        ylabel = "relative error of the gradient" if by == "gradient" else f"{by}, summed"
        drawn = Front(
            kind=kind, best=[(a.cost, root(a.error)) for a in front], random=randoms, uniform=uniform,
            chosen=chosen_point, measured=measured,
        )  # fmt: skip
        plot_front(drawn, f"{Path(model).name}: what a budget buys", ylabel, plot)
        result["plot"] = plot
    return result


def _write(file: str, text: str) -> None:
    path = Path(file)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as stream:
        stream.write(text)
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)
