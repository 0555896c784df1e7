r"""Code maps: what the codes of a data set mean, as an ordered list of regular expressions.

A MEDS code such as `DIAGNOSIS//ICD//10//E1165` becomes a concept: a kind (diagnosis), a coding system (ICD10CM), up
to three parts (E11, 6, 5), each of them one token, and a role where it is more than an event (death, an encounter's
start). The first rule whose pattern matches the whole code takes it; a code that no rule takes is kept whole, kind
OTHER. There are maps for the synthetic world (`world`), MIMIC-IV (`mimic`), OMOP databases (`omop`), Synthea
(`synthea`) and data never seen (`generic`).

Your own map is a JSON file, given by its path wherever a map's name is. It may have "extends", the name or path of a
map whose rules come after its own, and "mappings", files of translations that are applied before any rule
(data_pipeline.code_translations); docs/code_maps.md says it all:

    {"name": "my_hospital",
     "rules": [
       {"pattern": "DX\\|(?P<p1>[A-Z]\\d\\w)\\.?(?P<p2>\\w)?(?P<p3>\\w*)", "kind": "DIAGNOSIS", "system": "ICD10CM"},
       {"pattern": "LAB\\|(?P<p1>\\d+-\\d)", "kind": "LAB", "system": "LOINC"},
       {"pattern": "ADMIT\\|(?P<p2>.+)", "first": "INPATIENT",
        "kind": "ENCOUNTER", "system": "ENCOUNTER_START", "role": "start"},
       {"pattern": "MEDS_BIRTH", "kind": "DEMOGRAPHIC", "system": "BIRTH", "role": "birth"},
       {"pattern": "MEDS_DEATH", "kind": "DEATH", "system": "DEATH", "role": "death"},
       {"pattern": "PERIOD_END", "kind": "OTHER", "system": "OBSERVATION", "role": "observation_end"},
       {"pattern": "NOTE\\|.*", "kind": "OTHER", "system": "NOTE", "role": "drop"}]}
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from data_pipeline.code_translations import TranslationFile
from data_pipeline.errors import UserError

# The kinds (vocabulary.KINDS) that an event may have; the others are the tokenizer's own.
EVENT_KINDS = (
    "DEMOGRAPHIC",
    "ENCOUNTER",
    "DEPARTMENT",
    "CHIEF_COMPLAINT",
    "DIAGNOSIS",
    "LAB",
    "MEDICATION",
    "PROCEDURE",
    "OTHER",
    "DEATH",
)
# "": an ordinary event. start, end: of an encounter. birth, sex, race: who the subject is. observation_end: until when
# it is observed (data_pipeline.follow_up). drop: counted, no token.
ROLES = ("", "start", "end", "birth", "death", "sex", "race", "drop", "observation_end")
# What a role says about the rule's kind and system (None: any).
_ROLE_NEEDS = {
    "start": ("ENCOUNTER", None),
    "end": ("ENCOUNTER", None),
    "sex": ("DEMOGRAPHIC", "SEX"),
    "race": ("DEMOGRAPHIC", "RACE"),
    "birth": ("DEMOGRAPHIC", None),
    "death": ("DEATH", None),
}
# Rows of these roles stand in no timeline.
ROLES_WITHOUT_EVENT = ("sex", "race", "birth", "drop", "observation_end")
# The first words of tokens that no code-map rule makes an event of.
_RESERVED_SYSTEMS = ("SEX", "RACE", "AGE", "PERIOD", "INTERVAL", "VALUE", "TEXT", "UNKNOWN")
_GROUPS = ("p1", "p2", "p3")
NO_RULE = -1


@dataclasses.dataclass(frozen=True)
class Rule:
    """Codes that match `pattern` as a whole are of this kind and coding system.

    Attributes:
        pattern: regular expression. Its named groups p1, p2, p3 give the parts (p2 and p3 may be missing or empty); a
            pattern without them makes the whole code the one part.
        kind: one of EVENT_KINDS.
        system: the coding system, as it stands in tokens and concept names; no "//", no white space, and none of the
            words that begin the program's own tokens (AGE, VALUE, ...).
        role: one of ROLES.
        first: constant text that stands as first part, in place of p1 (an encounter's type, say, where the code only
            implies it).
        case: "lower" to write the parts in small letters, where the data spells one thing in several ways (the tall-man
            letters of drug names); left out, they stay as they are.

    Raises:
        UserError: the pattern is no regular expression, or a kind, role, system or group is not allowed.
    """

    pattern: str
    kind: str
    system: str
    role: str = ""
    first: str = ""
    case: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise UserError(f"{field.name} must be text")
        if self.kind not in EVENT_KINDS:
            raise UserError(f"unknown kind {self.kind!r}", fix=f"the kinds are {', '.join(EVENT_KINDS)}")
        if self.role not in ROLES:
            raise UserError(f"unknown role {self.role!r}", fix=f'the roles are "", {", ".join(ROLES[1:])}')
        if self.case not in ("", "lower"):
            raise UserError(f"unknown case {self.case!r}", fix='it is "lower" or left out')
        if not self.system or "//" in self.system or len(self.system.split()) != 1:
            raise UserError(f'system {self.system!r} must be one word without "//"')
        kind, system = _ROLE_NEEDS.get(self.role, (None, None))
        if kind not in (None, self.kind) or system not in (None, self.system):
            needs = f"kind {kind}" + (f" and system {system}" if system else "")
            raise UserError(f"role {self.role!r} goes with {needs}, not {self.kind} and {self.system}")
        if (self.kind == "DEATH") != (self.role == "death"):
            raise UserError("kind DEATH goes with role 'death', and with no other")
        if self.role not in ROLES_WITHOUT_EVENT:
            if self.kind == "DEMOGRAPHIC":
                raise UserError("kind DEMOGRAPHIC goes with role birth, sex, race or drop", fix="use kind OTHER")
            if self.system in _RESERVED_SYSTEMS:
                raise UserError(f"system {self.system!r} is the program's own", fix="name the system otherwise")
        self._check_groups()

    def _check_groups(self) -> None:
        groups = set(self.compiled.groupindex)
        if not groups <= set(_GROUPS):
            raise UserError(f"group names must be p1, p2 or p3, not {', '.join(sorted(groups - set(_GROUPS)))}")
        if self.first and "p1" in groups:
            raise UserError("give either a group p1 or 'first', not both")
        if groups and not self.first and "p1" not in groups:
            raise UserError("groups p2 and p3 need p1 or 'first' before them")
        if "p3" in groups and "p2" not in groups:
            raise UserError("group p3 needs p2")

    @functools.cached_property
    def compiled(self) -> re.Pattern[str]:
        """The compiled pattern."""
        try:
            return re.compile(self.pattern, re.DOTALL)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"pattern is not a regular expression ({error})") from error

    def parts(self, code: str) -> tuple[str, ...] | None:
        """The parts of a code, white space made single, up to the first empty one; None if the rule doesn't take it."""
        match = self.compiled.fullmatch(code)
        if match is None:
            return None
        if not match.re.groupindex:
            texts: list[str | None] = [self.first or code]
        else:
            found = match.groupdict()
            texts = [self.first or found["p1"], found.get("p2"), found.get("p3")]
        parts = tuple(" ".join((text or "").split()) for text in texts)
        if self.case == "lower":
            parts = tuple(part.lower() for part in parts)
        kept = parts[: parts.index("")] if "" in parts else parts
        return kept or None


@dataclasses.dataclass(frozen=True)
class Concept:
    """What a code means.

    Attributes:
        name: tells concepts apart: KIND//SYSTEM//, then the parts run together.
        kind, role: the rule's.
        parts: one to three token texts, each with its place: ICD10CM//E11, ICD10CM//2//6, ICD10CM//3//5.
        rule: index of the rule that took the code; NO_RULE if none did.
    """

    name: str
    kind: str
    role: str
    parts: tuple[str, ...]
    rule: int

    @functools.cached_property
    def key(self) -> tuple[str, str, str, str]:
        """What tells concepts apart in counts: name, kind, role, and the parts as lines."""
        return self.name, self.kind, self.role, "\n".join(self.parts)

    @functools.cached_property
    def forms(self) -> tuple["Concept", ...]:
        """The concept, then its ever shorter codes: DIAGNOSIS//ICD10CM//E1165, ...E116, ...E11."""
        if len(self.parts) == 1:
            return (self,)
        last = self.parts[-1].split("//", 2)[2]
        shorter = dataclasses.replace(self, name=self.name[: -len(last)], parts=self.parts[:-1])
        return (self, *shorter.forms)


@dataclasses.dataclass(frozen=True)
class CodeMap:
    """Ordered rules: the first that matches a code, or what it is translated to, takes it.

    Attributes:
        translations: (code, what it is read as), sorted; each code once.

    Raises:
        UserError: one coding system is given two kinds, so that its tokens would have two.
    """

    name: str
    rules: tuple[Rule, ...]
    translations: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        kinds = {"OTHER": "OTHER"}
        for index, rule in enumerate(self.rules):
            if rule.role != "drop" and kinds.setdefault(rule.system, rule.kind) != rule.kind:
                raise UserError(
                    f"system {rule.system!r} has kind {rule.kind} here and {kinds[rule.system]} elsewhere",
                    where=f"rules[{index}]",
                    fix="give each kind a system of its own",
                )

    def map(self, code: str) -> Concept:
        """The concept of a MEDS code; the same code always gives the same concept."""
        code = self._translated.get(code, code)
        for index, rule in enumerate(self.rules):
            parts = rule.parts(code)
            if parts is not None:
                return _concept(rule, parts, index)
        return _concept(_OTHER, (" ".join(code.split()),), NO_RULE)

    def concept_by_rule(self, code: str, index: int) -> Concept:
        """`map`, faster where it is known that rule `index` takes the code, or none does (NO_RULE)."""
        code = self._translated.get(code, code)
        parts = None if index == NO_RULE else self.rules[index].parts(code)
        if parts is None:
            return _concept(_OTHER, (" ".join(code.split()),), NO_RULE)
        return _concept(self.rules[index], parts, index)

    def map_codes(self, codes: Sequence[str]) -> list[Concept]:
        """`map` for each code, remembered from one call to the next."""
        known = self._known
        for code in codes:
            if code not in known:
                known[code] = self.map(code)
        return [known[code] for code in codes]

    @functools.cached_property
    def _translated(self) -> dict[str, str]:
        return dict(self.translations)

    @functools.cached_property
    def _known(self) -> dict[str, Concept]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The map as one JSON object that needs no other file: what it extends and its mappings are in it."""
        rules = [{key: value for key, value in dataclasses.asdict(rule).items() if value} for rule in self.rules]
        content: dict[str, Any] = {"name": self.name, "rules": rules}
        return content | {"translations": self._translated} if self.translations else content

    @classmethod
    def from_dict(cls, content: Any, where: str = "code map") -> "CodeMap":
        """Inverse of `to_dict`; raises UserError naming `where` and the rule, counted from 0."""
        if not isinstance(content, dict) or not isinstance(content.get("name"), str):
            raise UserError("not a code map", where=where, fix='it needs {"name": ..., "rules": [...]}')
        if set(content) - {"name", "rules", "translations"} or not isinstance(content.get("rules"), list):
            raise UserError(
                "must hold 'name' and a list 'rules', and maybe 'extends' and 'mappings', and nothing else", where=where
            )
        rules = [_rule_from_dict(rule, f"{where}: rules[{index}]") for index, rule in enumerate(content["rules"])]
        pairs = content.get("translations", {})
        if not isinstance(pairs, dict) or not all(isinstance(code, str) for code in pairs.values()):
            raise UserError("'translations' must be an object from code to code", where=where)
        try:
            return cls(content["name"], tuple(rules), tuple(sorted(pairs.items())))
        except UserError as error:
            raise UserError(str(error), where=where) from error


def named(name_or_path: str) -> CodeMap:
    """The map with this name (`world`, `mimic`, ...), or that of a JSON file; raises UserError if there is none."""
    return _find(name_or_path, pathlib.Path(), ())


def _find(name_or_path: str, folder: pathlib.Path, extended_by: tuple[pathlib.Path, ...]) -> CodeMap:
    # Here, because that module builds its maps from this one's classes.
    from data_pipeline.builtin_code_maps import CODE_MAPS

    if name_or_path in CODE_MAPS:
        return CODE_MAPS[name_or_path]
    path = folder / name_or_path
    if not path.is_file():
        raise UserError(
            f"no code map {name_or_path!r}",
            where=str(extended_by[-1]) if extended_by else "",
            fix=f"give {', '.join(CODE_MAPS)} or the path of a JSON file (see docs/code_maps.md)",
        )
    if path.resolve() in extended_by:
        raise UserError("extends itself", where=str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not a readable JSON file ({type(error).__name__})", where=str(path)) from error
    return _from_file(content, path, extended_by)


def _from_file(content: Any, path: pathlib.Path, extended_by: tuple[pathlib.Path, ...]) -> CodeMap:
    """A user's map, with what it extends and its files of translations."""
    if not isinstance(content, dict):
        return CodeMap.from_dict(content, str(path))
    content = dict(content)
    base, mappings = content.pop("extends", None), content.pop("mappings", [])
    own = CodeMap.from_dict(content | ({"rules": []} if base and "rules" not in content else {}), str(path))
    if base is not None and not isinstance(base, str):
        raise UserError("'extends' must be the name or path of a code map", where=str(path))
    if not isinstance(mappings, list):
        raise UserError("'mappings' must be a list", where=str(path))
    translations = dict(own.translations)
    for index, entry in enumerate(mappings):
        where = f"{path}: mappings[{index}]"
        pairs = TranslationFile.from_json(entry, where).read(path.parent)
        if not translations.keys().isdisjoint(pairs):
            raise UserError("a code that another mapping translates too", where=where, fix="name each code once")
        translations |= pairs
    rules = own.rules
    if base:
        extended = _find(base, path.parent, (*extended_by, path.resolve()))
        translations = dict(extended.translations) | translations
        rules = (*rules, *extended.rules)
    try:
        return CodeMap(own.name, rules, tuple(sorted(translations.items())))
    except UserError as error:
        raise UserError(str(error), where=str(path)) from error


def _rule_from_dict(content: Any, where: str) -> Rule:
    fields = {field.name for field in dataclasses.fields(Rule)}
    if not isinstance(content, dict) or not {"pattern", "kind", "system"} <= set(content) <= fields:
        raise UserError(
            "a rule holds 'pattern', 'kind', 'system' and maybe 'role', 'first' and 'case', and nothing else",
            where=where,
        )
    try:
        return Rule(**content)
    except UserError as error:
        raise UserError(str(error), where=where) from error


def _concept(rule: Rule, parts: tuple[str, ...], index: int) -> Concept:
    if rule.role == "death":
        return Concept("DEATH", rule.kind, rule.role, ("DEATH",), index)
    tokens = [f"{rule.system}//{parts[0]}"]
    tokens += [f"{rule.system}//{position}//{part}" for position, part in enumerate(parts[1:], start=2)]
    return Concept(f"{rule.kind}//{rule.system}//{''.join(parts)}", rule.kind, rule.role, tuple(tokens), index)


_OTHER = Rule(r".*", "OTHER", "OTHER")
