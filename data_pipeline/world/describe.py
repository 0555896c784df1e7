"""The world's rules in words, for `python -m data_pipeline.world --describe`."""

from data_pipeline.world import catalogue, conditions, encounters, laboratory, rules, treatments


def rules_text() -> str:
    """All tables of the rules, one line an entry."""
    sections = (
        ("Phenotypes (hidden): share", _phenotypes()),
        ("Chronic conditions: prevalence at 60, log change per ten years, group, department", _chronic()),
        ("Acute conditions: severity (logit of admission), group, department", _acute()),
        ("Cascades: cause -> effect, added to the effect's log hazard or logit", _cascades()),
        (
            "Chief complaints: weight in emergencies and offices, what drives them -> what they turn out to be",
            _complaints(),
        ),
        ("Drugs: probability of a start for each indication", _drugs()),
        ("Tests: reference centre, when ordered, what moves them (in spreads)", _labs()),
        ("Drifts: test, spreads a year since the condition was first coded", _drifts()),
        ("Procedures: probability for each condition coded, where", _procedures()),
        ("Steps within an encounter: interval bins", _steps()),
        ("After an encounter: relative rates of office visits, emergencies and deaths by interval bin", _paces()),
    )
    return "\n\n".join(title + "\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections)


def _weights(values: dict[str, float], sign: str = "") -> str:
    return ", ".join(f"{name} {value:{sign}g}" for name, value in values.items()) or "-"


def _phenotypes() -> list[str]:
    pairs = zip(conditions.PHENOTYPES, conditions.PHENOTYPE_SHARES, strict=True)
    return [f"{name:<18}{share:.0%}" for name, share in pairs]


def _chronic() -> list[str]:
    lines = []
    for item in sorted(conditions.CHRONIC, key=lambda item: (bool(item.requires), -item.share)):
        rate = f"{item.share:.1%}" if not item.requires else f"{item.share:g}/year after {item.requires}"
        sex = f", {item.sex} only" if item.sex else ""
        lines.append(
            f"{item.code:<9}{item.description:<42}{rate:<24}{item.slope:+.2f}  {item.group}, {item.department}" + sex
        )
    return lines


def _acute() -> list[str]:
    return [
        f"{item.code:<9}{item.description:<42}{item.severity:+.1f}  {item.group}, {item.department}"
        + (f", only after {item.requires}" if item.requires else "")
        for item in conditions.ACUTE
    ]


def _cascades() -> list[str]:
    names = {item.code: item.description for item in catalogue.CONDITIONS}
    return [
        f"{cause:<9}-> {effect:<9}{weight:+.1f}  {names[cause]} -> {names[effect]}"
        for cause, effect, weight in conditions.CASCADES
    ]


def _complaints() -> list[str]:
    return [
        f"{item.name:<27}{item.emergency:g}, {item.office:g}; {_weights(item.drivers, '+')} -> "
        f"{_weights(item.diagnoses)}"
        for item in encounters.COMPLAINTS
    ]


def _drugs() -> list[str]:
    return [
        f"{item.code:<9}{item.description:<37}{_weights(item.starts)}"
        + (f"; favoured by {', '.join(item.favoured_by)}" if item.favoured_by else "")
        + ("" if item.lasting else "; in the encounter only")
        for item in catalogue.DRUGS
    ]


def _labs() -> list[str]:
    return [
        f"{item.code:<9}{item.description:<37}{item.centre:g} {item.unit}; {_weights(item.orders)}; "
        f"{_weights(item.shifts, '+')}; noise {laboratory.NOISE:g}"
        for item in catalogue.LABS
    ]


def _drifts() -> list[str]:
    return [f"{code:<9}{_weights(drifts, '+')}" for code, drifts in laboratory.DRIFTS.items()]


def _procedures() -> list[str]:
    return [f"{item.code:<9}{_weights(item.triggers)}; {', '.join(item.where)}" for item in treatments.PROCEDURES]


def _paces() -> list[str]:
    paces = zip(encounters.OFFICE_PACE, encounters.EMERGENCY_PACE, encounters.DEATH_PACE, strict=True)
    lines = ["bins: " + ", ".join(encounters.GAP_BINS)]
    for name, rows in zip(("a visit", "an emergency", "a hospital stay"), paces, strict=True):
        lines += [f"{f'after {name}:' if not i else '':<24}{row}" for i, row in enumerate(rows)]
    return lines


def _steps() -> list[str]:
    return [f"{name:<21}{_weights(weights)}" for name, weights in rules.STEPS.items()]
