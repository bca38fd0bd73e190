"""`lowbit train`: a recipe, its options, and any field of the config by its dotted name."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import re
import shlex
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit.cli.options import Parser, bits
from lowbit.cli.signals import terminable
from lowbit.errors import LowbitError, did_you_mean
from lowbit.files import read_json
from lowbit.processes import rank
from lowbit.train.config import QuantizationConfig, TrainConfig


def parser() -> Parser:
    """The options; RECIPE comes before them."""
    p = Parser(
        prog="lowbit train",
        argument_default=argparse.SUPPRESS,
        usage="lowbit train RECIPE [options] [--FIELD VALUE ...]\n       lowbit train --resume --output RUN",
        description="Train a recipe (`lowbit recipes` lists them) or continue a run.",
        epilog="Any other field of the config is an option by its dotted name, such as --optimizer.lr 0.01 or "
        "--no-compile; `lowbit train RECIPE --help` lists those with the recipe's values.",
    )
    p.add_argument("--bits", type=bits, metavar="B", help="bits of weights and activations, or none for full precision")
    p.add_argument("--weights", type=bits, metavar="B", help="bits of the weights alone")
    p.add_argument("--activations", type=bits, metavar="B", help="bits of the activations alone")
    p.add_argument("--method", metavar="NAME", help="lsq, lsq+, lg-lsq, ...")
    p.add_argument("--model", metavar="NAME", help="a network by name, or your own as package.module:name")
    p.add_argument("--data", metavar="PATH", help="where the data set is, or your own data as package.module:name")
    p.add_argument("--init", metavar="FILE", help="trained weights: a safetensors file, or the folder of a run")
    p.add_argument(
        "--start", metavar="RUN", help="the folder of a run at low bits to go on from, such as a reconstruction"
    )
    p.add_argument("--epochs", type=int, metavar="N")
    p.add_argument("--seed", type=int, metavar="N")
    p.add_argument("--output", metavar="RUN", help="the run folder (default: runs/ and what is trained)")
    p.add_argument(
        "--rule", nargs="+", action="append", metavar=("PATTERN", "KEY=VALUE"),
        help="an exception for layers by name, such as --rule 'layer3.*' weights=8 activations=none",
    )  # fmt: skip
    p.add_argument("--rules", metavar="FILE", help="more of them, from a file that `lowbit allocate` wrote")
    p.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    p.add_argument("--dry-run", action="store_true", help="show the resolved config and the layers; train nothing")
    return p


def run(argv: list[str]) -> int:
    p = parser()
    recipe, argv = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    help_wanted = "-h" in argv or "--help" in argv
    if help_wanted:
        p.print_help()
        if recipe is not None:
            _with_fields(_config(recipe, {}), ["--help"])
        return 0
    options, rest = p.parse_known_args(argv)
    given = vars(options)
    resume, dry_run = given.pop("resume", False), given.pop("dry_run", False)
    if recipe is not None:
        config = _whole(recipe, given, rest, p)
        if config.output is None:
            config = replace(config, output=default_output(config))
    elif resume:
        config = _config_of_run(given, rest)
    else:
        raise LowbitError("name a recipe: lowbit train RECIPE [options]; `lowbit recipes` lists them")

    if dry_run:
        from lowbit.cli.dry_run import show

        if rank() == 0:
            show(config)
        return 0
    from lowbit import train

    assert config.output is not None  # named by the command line, or the default
    try:
        with terminable():
            train.run(config, resume=resume)
    except KeyboardInterrupt:
        if rank() == 0:
            if not (Path(config.output) / "config.json").exists():
                raise
            print(f"\nstopped; continue with: lowbit train --resume --output {config.output}", flush=True)
        return 130
    if rank() == 0:
        print(f"a page about it: lowbit report {shlex.quote(config.output)}", flush=True)
    return 0


def config_of(recipe: str, argv: list[str]) -> TrainConfig:
    """The config of a recipe with options as `lowbit train` takes them.

    Raises:
        LowbitError: an unknown recipe or option, or a value that is none of the option's.
    """
    p = parser()
    options, rest = p.parse_known_args(argv)
    return _whole(recipe, vars(options), rest, p)


def _whole(recipe: str, given: dict[str, Any], rest: list[str], p: Parser) -> TrainConfig:
    _check_names(rest, p)
    # Beside the other fields, so that what has to hold of several together is checked when all of them are there.
    epochs = ["--epochs", str(given["epochs"])] if "epochs" in given else []
    return _with_fields(_config(recipe, given), [*epochs, *rest])


def default_output(config: TrainConfig) -> str:
    """`runs/` and the recipe, with the network, bits and method where its name doesn't have them."""
    from lowbit.train.tasks import kind_of

    name = config.recipe
    if name in ("own", "own-fp"):
        network = re.sub(r"[^\w.+-]", "-", config.model.name.rpartition(":")[2])
        name = f"own-{network}" + name.removeprefix("own")
    if config.quantization is None:
        return f"runs/{name}" if name.endswith("-fp") else f"runs/{name}-fp"
    widths = f"-w{config.quantization.weights or 32}a{config.quantization.activations or 32}"
    how = "-reconstructed" if kind_of(config.task).blockwise else ""
    return f"runs/{name}{'' if widths in name else widths}-{config.quantization.method}{how}"


def _config(recipe: str, given: dict[str, Any]) -> TrainConfig:
    """The recipe's config with the options that were given in it."""
    from lowbit.recipes import get_recipe

    arguments = {key: given[key] for key in ("weights", "activations", "method") if key in given}
    if "bits" in given:
        arguments = {"weights": given["bits"], "activations": given["bits"]} | arguments
    found = get_recipe(recipe)
    if "model" in given and found.takes("model"):
        arguments["model"] = given["model"]
    config = found(**arguments)
    if "model" in given:
        config = replace(config, model=replace(config.model, name=given["model"]))
    fields = {key: given[key] for key in ("seed", "output") if key in given}
    if "data" in given:
        fields["data"] = replace(config.data, path=given["data"])
    if "init" in given:
        fields["model"] = replace(config.model, init=given["init"], pretrained=False)
    if "start" in given:
        if config.quantization is None:
            raise LowbitError("--start: nothing is quantized here; weights in full precision are given with --init")
        config = replace(config, quantization=replace(config.quantization, start=given["start"]))
    if "rule" in given or "rules" in given:
        if config.quantization is None:
            raise LowbitError("--rule: nothing is quantized here that it could change")
        rules = (*map(_rule, given.get("rule", ())), *(_rules_of(given["rules"]) if "rules" in given else ()))
        fields["quantization"] = replace(config.quantization, rules=rules)
    return replace(config, **fields)


def _rule(words: list[str]) -> dict[str, Any]:
    """`PATTERN key=value ...` as the keyword arguments of `lowbit.Rule`."""
    rule: dict[str, Any] = {"pattern": words[0]}
    for word in words[1:]:
        key, _, text = word.partition("=")
        if key not in RULE_KEYS or not text:
            raise LowbitError(
                f"--rule {words[0]}: expected key=value, got {word!r}.{did_you_mean(key, RULE_KEYS)} "
                f"The keys are {', '.join(RULE_KEYS)}"
            )
        try:
            rule[key] = RULE_KEYS[key](text)
        except (KeyError, argparse.ArgumentTypeError):
            raise LowbitError(f"--rule {words[0]}: {text!r} is not a value of {key}") from None
    return rule


def _rules_of(file: str) -> list[dict[str, Any]]:
    """The rules in a file that `Allocation.save` wrote."""
    rules = read_json(file)
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and "pattern" in rule for rule in rules):
        raise LowbitError(f"--rules {file}: not a list of rules, as `lowbit allocate` writes it")
    return rules


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


RULE_KEYS = {
    "weights": bits,
    "activations": bits,
    "method": str,
    "granularity": str,
    "narrow": _boolean,
    "skip": _boolean,
}


def _config_of_run(given: dict[str, Any], rest: list[str]) -> TrainConfig:
    from lowbit.train.build import read_config

    if "output" not in given:
        raise LowbitError("--resume without a recipe needs the run's folder: lowbit train --resume --output RUN")
    others = [f"--{key}" for key in given if key != "output"] + rest
    if others:
        raise LowbitError(f"{others[0]}: a run is continued as it was started; leave the option out")
    # The folder may have moved since: this is the one that continues.
    return replace(read_config(Path(given["output"])), output=given["output"])


def _with_fields(config: TrainConfig, arguments: list[str]) -> TrainConfig:
    """The config with fields changed by `--dotted.name value` arguments."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                TrainConfig, args=arguments, default=config, prog=f"lowbit train {config.recipe}",
                config=(tyro.conf.AvoidSubcommands,),
            )  # fmt: skip
    except SystemExit as error:
        if not error.code:  # it has printed its help
            raise
        raise LowbitError(
            f"{_unboxed(said.getvalue())}; `lowbit train {config.recipe} --help` lists the options"
        ) from None


def _unboxed(text: str) -> str:
    """What tyro says in a box, as one line: what stands between the title and the rule below."""
    lines = [line.strip("│╰╯╭╮ ") for line in text.splitlines()]
    # Where the terminal has no lines to draw boxes with, a rule of dashes is also under the title.
    below = itertools.dropwhile(lambda line: not line.strip("-"), lines[1:])
    message = " ".join(itertools.takewhile(lambda line: line.strip("─-"), below))
    # A field that is wrong by itself is named in our own message; tyro puts the name of its group before it.
    return re.sub(r"^Error parsing (?:[\w.]+: (?=[\w.]+ ))?", "", message).rstrip(".")


def _check_names(arguments: list[str], p: Parser) -> None:
    """Refuse an option that is neither the parser's nor a field of the config, naming close ones of both."""
    fields = _field_options(TrainConfig)
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if argument.startswith("--") and name not in fields:
            known = [*p.option_names(), *fields]
            # --lr is nothing like --optimizer.lr in its letters, but means it.
            short = [field for field in fields if field.rpartition(".")[2] == name.removeprefix("--")]
            hint = f" Did you mean {' or '.join(map(repr, short))}?" if short else did_you_mean(name, known)
            raise LowbitError(f"unknown option {argument!r}.{hint} `lowbit train RECIPE --help` lists them")


def _field_options(kind: type, prefix: str = "") -> list[str]:
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = next((a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None)
        dashed = name.replace("_", "-")
        if kind is QuantizationConfig and name == "rules":  # given by --rule
            continue
        if inner is not None:
            names += _field_options(inner, f"{prefix}{dashed}.")
        else:
            names.append(f"--{prefix}{dashed}")
            if hint is bool:
                names.append(f"--{prefix}no-{dashed}")
    return names
