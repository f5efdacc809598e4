"""A policy written from what each product should become, as a page a person can read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from qgraph.policy import ROLES, Policy, SiteFacts, decide, load_policy_text
from qgraph.policy.candidates import HIGH_CANDIDATE, Candidate


def compose_policy(
    name: str, source: str, sites: Sequence[SiteFacts], chosen: Mapping[int, Candidate]
) -> tuple[str, Policy]:
    """Return the policy, as text and read back, that gives site number i of `sites` what `chosen[i]` says.

    Sites that are not in `chosen`, and those whose candidate is high, stay high.

    Raises: AssertionError if the policy as read says anything else: that would be a fault of this function.
    """
    rules: list[dict[str, object]] = []
    for role in ROLES:
        for op in dict.fromkeys(site.op for site in sites if site.role == role):
            here = [i for i, site in enumerate(sites) if (site.op, site.role) == (op, role)]
            groups: dict[Candidate, list[int]] = {}
            for i in here:
                groups.setdefault(chosen.get(i, HIGH_CANDIDATE), []).append(i)
            rules += _rules(op, role, groups, sites)
    transforms = {c.transform.name: c.transform for c in chosen.values() if c.transform}
    head = {"qgraph": 1, "name": name, "source": source}
    if transforms:
        head["transforms"] = {
            key: {"hadamard": t.hadamard, "signs": t.signs} for key, t in transforms.items()
        }
    if not rules:  # a policy that quantizes nothing has this name
        head["name"], rules = "high", [{"match": {}, "keep": "high"}]
    text = yaml.dump(head, sort_keys=False, width=100) + "rules:\n"
    for rule in rules:
        body = yaml.dump(rule, sort_keys=False, width=100, default_flow_style=None)
        text += "  - " + body.replace("\n", "\n    ").rstrip() + "\n"
    policy = load_policy_text(text, file=f"{name}.yaml")
    for i, site in enumerate(sites):
        wanted = chosen[i].operands(site.operand_kinds) if i in chosen else ()
        found = decide(policy, site).operands
        assert (found if any(o.changes for o in found) else ()) == wanted, (
            f"{site.module} {site.role}"
        )
    return text, policy


def _rules(
    op: str, role: str, groups: Mapping[Candidate, Sequence[int]], sites: Sequence[SiteFacts]
) -> list[dict[str, object]]:
    """Return the rules of one op and role; what stays high is named only where it must be."""
    known = {site.module for site in sites}
    rules: list[dict[str, object]] = []
    # The root module has no path: only a rule for all that is left can name it, so it comes last.
    roots = [c for c, mine in groups.items() if any(not sites[i].module for i in mine)]
    order = sorted(groups, key=lambda c: (c in roots, c.format is not None))
    for candidate in order:
        mine = groups[candidate]
        last = candidate in roots
        if candidate.format is None and (last or not any(root.format for root in roots)):
            continue  # what no rule matches stays high
        others = {sites[i].module for c, rest in groups.items() if c != candidate for i in rest}
        modules = ["*"] if last else _globs([sites[i] for i in mine], known, others)
        rule: dict[str, object] = {"match": {"op": op, "role": role, "module": modules}}
        if candidate.format is None:
            rule["keep"] = "high"
        else:
            kinds = dict.fromkeys(kind for i in mine for kind in sites[i].operand_kinds)
            rule[role] = {kind: _entry(candidate, kind) for kind in kinds}
        rules.append(rule)
    return rules


def _entry(candidate: Candidate, kind: str) -> object:
    operand = candidate.operand(kind)
    entry = {"format": str(operand.format)}
    if operand.rounding.random:
        entry["rounding"] = str(operand.rounding)
    if operand.transform:
        entry["transform"] = operand.transform.name
    return entry if len(entry) > 1 else entry["format"]


def _globs(sites: Sequence[SiteFacts], known: set[str], others: set[str]) -> list[str]:
    """Return the modules' paths; where all blocks of a stack are among them, one path with a star."""
    found: list[str] = []
    for site in sites:
        pattern = site.module
        if site.block is not None and site.block_count:
            parts = re.split(rf"(?<=\.){site.block}(?=\.|$)", f".{site.module}", maxsplit=1)
            paths = {f"{parts[0]}{i}{parts[1]}"[1:] for i in range(site.block_count)}
            # A star crosses dots: it may name no module but these.
            match = re.compile(re.escape(parts[0][1:]) + ".*" + re.escape(parts[1]) + "$")
            named = {path for path in known if match.match(path)}
            if len(paths) > 1 and paths == named and paths <= {s.module for s in sites}:
                pattern = f"{parts[0][1:]}*{parts[1]}"
        found.append(pattern)
    unique = list(dict.fromkeys(found))
    # A path without a star also names the ends of longer ones.
    clash = any(
        not {"*"} & set(path) and any(o != path and o.endswith(f".{path}") for o in others)
        for path in unique
    )
    return [f"[{path[0]}]{path[1:]}" if clash and "*" not in path else path for path in unique]
