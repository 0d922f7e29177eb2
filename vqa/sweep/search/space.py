"""The search space: Hydra's sweep syntax on one side, Optuna's distributions on the other.

A number can be searched as a multiple of another: `lora.lora_alpha: tag(times:lora.r, choice(1, 2, 4))`.
LoRA scales its update by alpha / r, so a good alpha moves with r, and a sampler that knows only alpha learns
little from trials of another r. The study therefore draws the ratio, under the name
`lora.lora_alpha / lora.r`. Jobs, leaderboard and best.yaml get the plain alpha.

Optuna's storage keeps numbers, switches and text only. A study therefore draws a text, a list or null as an
override would write it: `pad_512`, `'a, b'`, `[q_proj,v_proj]`, `null`. Everybody else gets the plain value.

A resolver in the configuration (`lora_alpha: ${times:${lora.r},${ratio}}`) cannot replace this. The searched
key would be the ratio, so leaderboard.csv and best.yaml would hold the ratio instead of alpha, the known-good
settings in `conf/model/` could not be enqueued, and each further pair of keys would need a key of its own.

Source: Hydra's tags, which its grammar keeps for sweepers, as in tag(log, interval(1e-5, 1e-3)).
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString, Transformer
from hydra.errors import HydraException
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_params_from_overrides
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from vqa.errors import UserError

log = logging.getLogger(__name__)

OVER = " / "
TIMES = "times:"


def key_of(name: str) -> str:
    """The configuration key behind a searched name."""
    return name.partition(OVER)[0]


def other_of(name: str) -> str:
    """The key of which a searched name is a multiple; empty for a name that is searched by itself."""
    return name.partition(OVER)[2]


def searched_name(key: str, tags: Iterable[str]) -> str:
    """The name under which the study draws `key`, which may have tags.

    Raises:
        UserError: A tag has no meaning here.
    """
    others = [tag for tag in tags if tag != "log"]
    multiples = [tag.removeprefix(TIMES) for tag in others if tag.startswith(TIMES) and tag != TIMES]
    if len(multiples) > 1 or len(multiples) < len(others):
        raise UserError(f"{key}: tag must be log or one {TIMES}KEY, got {', '.join(sorted(others))}")
    return f"{key}{OVER}{multiples[0]}" if multiples else key


def with_constants(
    space: Mapping[str, BaseDistribution], fixed: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    """Make sure that every multiple knows its other number; a fixed one becomes a range of one value.

    Args:
        space: Searched name -> its range.
        fixed: Key -> value, of the keys that are not searched.

    Raises:
        UserError: The other number is neither searched nor fixed, or something is not a number.
    """
    complete: dict[str, BaseDistribution] = {}
    for name, distribution in space.items():
        key, _, other = name.partition(OVER)
        if other and other not in space:
            if other not in fixed:
                raise UserError(
                    f"{key} is searched as a multiple of {other}, so {other} must be searched by itself or "
                    f"fixed, got neither. Give a range or a value, such as {other}=16."
                )
            complete[other] = CategoricalDistribution([fixed[other]])
        complete[name] = distribution
    for name in complete:
        for part in (name, other_of(name)) if OVER in name else ():
            if not _has_numbers(complete[part]):
                raise UserError(f"{part} must be numbers, as {name} is searched, got {complete[part]}.")
    return complete


def _has_numbers(distribution: BaseDistribution) -> bool:
    return not isinstance(distribution, CategoricalDistribution) or all(
        _is_number(choice) for choice in distribution.choices
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what the study drew into the values of the keys.

    Args:
        params: Searched name -> value; a multiple whose other number is not drawn yet is left out.
    """
    values: dict[str, Any] = {}
    for name, value in params.items():
        key, _, other = name.partition(OVER)
        if not other:
            values[name] = _undrawn(value) if isinstance(value, str) else value
        elif other in params:
            values[key] = _whole(value * params[other], params[other])
    return values


def drawn_values(where: str, values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Turn values of keys into what the study would have drawn; the inverse of `plain_values`.

    Args:
        where: For messages.
        values: Key -> value.
        names: Searched names.

    Raises:
        UserError: A multiple stands without its other number.
    """
    drawn = dict(values)
    for name in names:
        key, _, other = name.partition(OVER)
        if not other or key not in values:
            continue
        if other not in values:
            raise UserError(f"{where} names {key} without {other}, of which it is a multiple. Add {other}.")
        top, bottom = drawn.pop(key), values[other]
        fits = _is_number(top) and _is_number(bottom) and bottom != 0
        drawn[name] = _whole(top / bottom, 1) if fits else math.nan
    return drawn


def _whole(value: float, like: float) -> float:
    """Make a whole number an int again where `like` is one: alpha = 0.5 x 16 is 8, not 8.0."""
    return int(value) if isinstance(like, int) and float(value).is_integer() else value


@dataclass(frozen=True)
class SearchSpace:
    """What a study asks.

    Args:
        distributions: Searched name -> its range or choices, in the order in which they are drawn. A name is
            a key, or `key / other` for a multiple.
        fixed: Overrides that every job of the study gets, as typed.
        conditions: Name -> other name -> the choices of the other under which the name is searched; all of
            them must hold. Elsewhere the name is not drawn, and its key keeps the configuration's value. The
            others stand before the name in `distributions`.
        left_out: Keys that do not apply under the values that are fixed.
    """

    distributions: dict[str, BaseDistribution]
    fixed: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    @property
    def keys(self) -> list[str]:
        """The keys that differ between trials, in order."""
        return [key_of(name) for name in self.distributions]

    def applies(self, name: str, params: Mapping[str, Any]) -> bool:
        """Whether a name is searched beside these values of the names before it."""
        wanted = self.conditions.get(name, {})
        return all(other in params and params[other] in choices for other, choices in wanted.items())

    def applicable(self, params: Mapping[str, Any]) -> list[str]:
        """The names that are searched beside these values; those whose other is not drawn yet are not."""
        if not self.conditions:
            return list(self.distributions)
        held: dict[str, Any] = {}
        names = []
        for name in self.distributions:
            if self.applies(name, held):
                names.append(name)
                held |= {name: params[name]} if name in params else {}
        return names

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Key -> value of a trial whose parameters are all drawn."""
        return plain_values({name: params[name] for name in self.applicable(params)})

    def grid(self) -> dict[str, list[Any]]:
        """Every value of every key.

        Raises:
            UserError: A key has an interval without steps.
        """
        values: dict[str, list[Any]] = {}
        for name, distribution in self.distributions.items():
            try:
                values[name] = list(OptunaSweeperImpl._to_grid_sampler_choices(distribution))
            except ValueError:
                raise UserError(
                    f"hydra.sweeper.params.{name} must be choice(...) or range(...) for a grid, "
                    f"got {distribution}. Use these, or another hydra/sweeper/sampler."
                ) from None
        return values

    def size(self) -> int:
        """Number of points of the grid; a name that is not searched does not make two of one point."""
        values = self.grid()
        return sum(
            math.prod(len(values[name]) for name in self.applicable(branch) if name not in branch)
            for branch in self.branches()
        )

    def is_finite(self) -> bool:
        """Whether the space has an end: choices and stepped ranges only."""
        return all(
            isinstance(ranged, CategoricalDistribution | IntDistribution) or getattr(ranged, "step", None)
            for ranged in self.distributions.values()
        )

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a finite space, as the study draws it."""
        yield from self._points(self.grid(), {})

    def branches(self) -> list[dict[str, Any]]:
        """The choices on which conditions depend, in every way in which they can meet; [{}] without any."""
        deciding = {other for wanted in self.conditions.values() for other in wanted}
        choices = {
            name: list(distribution.choices)
            for name, distribution in self.distributions.items()
            if name in deciding and isinstance(distribution, CategoricalDistribution)
        }
        return list(self._points(choices, {}))

    def _points(self, values: Mapping[str, list[Any]], held: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Every way to give the names of `values` one of theirs, each beside what `held` has; the last name
        changes first."""
        left = iter(values)
        name = next((name for name in left if self.applies(name, held)), None)
        if name is None:
            yield held
            return
        others = {other: values[other] for other in left}
        for value in values[name]:
            yield from self._points(others, {**held, name: value})

    def samples(self) -> list[dict[str, Any]]:
        """Give trials that together have every key and every choice, to see whether they compose."""
        drawn: list[dict[str, Any]] = []
        seen: set[tuple[str, Any]] = set()
        for branch in self.branches():
            sample = self._sample(branch)
            choices = {(name, branch.get(name)) for name in sample}
            if not choices <= seen:
                drawn.append(sample)
            seen |= choices
        for name, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                beside = next(sample for sample in drawn if name in sample)
                known = {sample[name] for sample in drawn if name in sample}
                others = [choice for choice in distribution.choices if choice not in known]
                drawn += [{**beside, name: choice} for choice in others]
        return [plain_values(params) for params in drawn]

    def _sample(self, branch: Mapping[str, Any]) -> dict[str, Any]:
        first = {name: _first(self.distributions[name]) for name in self.applicable(branch)}
        return {name: branch.get(name, value) for name, value in first.items()}


def _first(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    return distribution.to_external_repr(vars(distribution)["low"])


def _key(name: str) -> str:
    return key_of(name).lstrip("+")


def group_of(key: str) -> str:
    """The config group that an override's key would name: `db` for `+db@backup`."""
    return key.lstrip("+").partition("@")[0]


def _written_out(override: str, groups: ConfigLoader | None) -> Override:
    """Parse an override; `group=glob(*)` becomes a choice of the options that match."""
    [parsed] = OverridesParser.create(groups).parse_overrides([override])
    if not isinstance(parsed.value(), Glob):
        return parsed
    options = list(parsed.sweep_string_iterator())
    if not options:
        raise ValueError("no option of a config group matches; glob(...) takes groups such as image or model")
    choice = f"{parsed.get_key_element()}=choice({','.join(options)})"
    return OverridesParser.create(groups).parse_overrides([choice])[0]


def _parse(
    where: str, override: str, groups: ConfigLoader | None
) -> tuple[dict[str, BaseDistribution], dict[str, Any]]:
    """Read one override: searched name -> range, and key -> value of what it fixes."""
    try:
        parsed = _written_out(override, groups)
        space, fixed, _ = create_params_from_overrides([str(parsed.input_line)])
    except (HydraException, ValueError) as error:
        raise UserError(f"{where}: cannot read {override!r} as a value or a search range: {error}") from None
    if parsed.is_choice_sweep():  # Hydra's own distribution would lose the quotes of a text
        items = parsed.sweep_iterator(transformer=Transformer.identity)
        space = {
            key: CategoricalDistribution([drawn_value(_unquoted(item)) for item in items]) for key in space
        }
    tags = getattr(parsed.value(), "tags", ())  # a range's; a plain value has none
    return {searched_name(key, tags): ranged for key, ranged in space.items()}, fixed


def read_search_space(
    params: Mapping[str, Any], arguments: Sequence[str], groups: ConfigLoader | None = None
) -> SearchSpace:
    """Put `hydra.sweeper.params` and the command line together.

    A value on the command line wins over the range in the config, whether it fixes the key
    (`lora.r=16`) or gives another range (`lora.r=8,16`).

    Args:
        params: Key -> sweep syntax or plain value; None takes the key out.
        arguments: Overrides of the command line.
        groups: Knows the options of config groups, for `group=glob(*)`; None = nobody does.

    Raises:
        UserError: Something cannot be parsed, or nothing is left to search.
    """
    space: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for name, value in params.items():
        if value is None:
            continue
        override = f"{name}={value if isinstance(value, str) else override_value(value)}"
        ranges, plain = _parse(f"hydra.sweeper.params.{name}", override, groups)
        space.update(ranges)
        fixed.update(dict.fromkeys(plain, override))
    typed: list[str] = []
    constants: dict[str, str] = {}
    for argument in arguments:
        ranges, plain = _parse("command line", argument, groups)
        constants |= {_key(name): text for name, text in plain.items()}
        for name in [*ranges, *plain]:
            known = [key for key in space if _key(key) == _key(name)]
            fixed.pop(_key(name), None)
            if name in plain or known != [name]:  # a new range for a known key keeps its place
                for key in known:
                    del space[key]
        space.update(ranges)
        if not ranges:
            typed.append(argument)
    if not space:
        raise UserError(
            "hydra.sweeper.params is empty, or the command line fixes every searched key: nothing to search. "
            "Give a range such as 'optimizer.lr=tag(log, interval(1e-5, 1e-3))', or leave out -m."
        )
    constants |= {key: override.split("=", 1)[1] for key, override in fixed.items()}
    others = {other_of(name) for name in space}
    numbers = {key: plain_value(text) for key, text in constants.items() if key in others}
    return SearchSpace(with_constants(space, numbers), (*fixed.values(), *typed))


def read_enqueued(
    entries: Sequence[Mapping[str, Any]], space: SearchSpace, leave_out: bool = False
) -> list[dict[str, Any]]:
    """Check the configurations to try first; keys that have one value only are dropped.

    Args:
        entries: `hydra.sweeper.enqueue`.
        space: The space that they must lie in.
        leave_out: Whether one that lies outside is left out, with a line in the log: known-good settings of a
            file must not stop a user who searches a narrower range.

    Returns:
        Parameters of each trial to enqueue, without empty entries and repetitions.

    Raises:
        UserError: A key is not searched, or not beside the others, or a value lies outside its range.
    """
    fixed = {_key(override.split("=", 1)[0]) for override in space.fixed}
    result: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        where = f"hydra.sweeper.enqueue[{index}]"
        params: dict[str, Any] = {}
        for name, value in drawn_values(where, entry, space.distributions).items():
            if name in space.distributions and space.distributions[name].single():
                continue
            if name in space.distributions:
                try:
                    params[name] = _inside(where, name, value, space.distributions[name])
                except UserError:
                    if not leave_out:
                        raise
                    log.info(f"{where} is left out: {name}={value} lies outside {space.distributions[name]}")
                    params = {}
                    break
            elif _key(name) not in fixed and _key(name) not in space.left_out:
                searched = ", ".join(space.keys)
                raise UserError(f"{where} names {name!r}, which is not searched. Searched: {searched}.")
        try:
            _refuse_what_does_not_apply(where, params, space)
        except UserError as error:
            if not leave_out:
                raise
            log.info(f"{error} It is left out.")
            continue
        if params and params not in result:
            result.append(params)
    return result


def _refuse_what_does_not_apply(where: str, params: Mapping[str, Any], space: SearchSpace) -> None:
    for name in params:
        for other, choices in space.conditions.get(name, {}).items():
            if other in params and params[other] not in choices:
                raise UserError(
                    f"{where} names {key_of(name)}, which is not searched beside {other}={params[other]}. "
                    "Take one of the two out."
                )


def _inside(where: str, name: str, value: Any, distribution: BaseDistribution) -> Any:
    drawn = drawn_value(value) if isinstance(distribution, CategoricalDistribution) else value
    try:
        internal = distribution.to_internal_repr(drawn)
        contained = distribution._contains(internal)
    except (ValueError, TypeError):
        contained = False
    if not contained:
        raise UserError(
            f"{where}: {name} must lie in {distribution}, got {value!r}. "
            "Change the entry or the range in hydra.sweeper.params."
        )
    return distribution.to_external_repr(internal)


def drawn_value(value: Any) -> Any:
    """What a study draws for a plain value: numbers and switches as they are, the rest as an override."""
    return value if isinstance(value, bool | int | float) else override_value(value)


@lru_cache(maxsize=4096)  # parsing takes a millisecond, and the ranking reads all trials after each of them
def _undrawn(text: str) -> Any:
    """The plain value behind a text that a study drew; not to be changed."""
    return plain_value(text)


def _unquoted(item: Any) -> Any:
    """An item of a choice as the parser gives it, as the plain value that it stands for."""
    if isinstance(item, QuotedString):
        return item.text
    if isinstance(item, list):
        return [_unquoted(part) for part in item]
    return {key: _unquoted(part) for key, part in item.items()} if isinstance(item, dict) else item


def override_value(value: Any) -> str:
    """Write a plain value so that Hydra's override syntax reads the same value back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(override_value, value)) + "]"
    return _written_text(value) if isinstance(value, str) else str(value)


@lru_cache(maxsize=4096)  # parsing takes milliseconds, and a table is drawn twice a second
def _written_text(text: str) -> str:
    """A text, in quotes where Hydra would read something else without them, also inside a list."""
    try:
        if plain_value(text) == text and plain_value(f"[{text}]") == [text]:
            return text
    except HydraException:
        pass  # so it is no value without quotes
    return QuotedString(text, Quote.single).with_quotes()


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """Turn key -> value into overrides."""
    return [f"{name}={override_value(value)}" for name, value in params.items()]


def plain_value(text: str) -> Any:
    """Read the value that an override's right-hand side stands for (number, switch, null, text, list)."""
    [override] = OverridesParser.create().parse_overrides([f"key={text}"])
    return override.value()
