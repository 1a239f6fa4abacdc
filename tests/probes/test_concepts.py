"""Labels are right, recomputed here by other means; groups are balanced and keep together what belongs together."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache

import pytest

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.concepts import CONCEPTS, concept
from interp_toolkit.probes.data import ProbeData
from interp_toolkit.probes.words import word_spans

SEEDS = (0, 1, 2)
TRUTHS = [name for name in CONCEPTS if name.startswith("truth")]

# Written by city, unlike the table of the module.
COUNTRIES = (
    "Aarhus=Denmark|Almaty=Kazakhstan|Amsterdam=Netherlands|Ankara=Turkey|Antwerp=Belgium|Athens=Greece|"
    "Baghdad=Iraq|Bandung=Indonesia|Bangkok=Thailand|Basel=Switzerland|Basra=Iraq|Beijing=China|Berlin=Germany|"
    "Bilbao=Spain|Bordeaux=France|Braga=Portugal|Brisbane=Australia|Brno=Czech Republic|Brussels=Belgium|"
    "Bucharest=Romania|Budapest=Hungary|Busan=South Korea|Cairo=Egypt|Chennai=India|Copenhagen=Denmark|"
    "Cork=Ireland|Cusco=Peru|Delhi=India|Dresden=Germany|Dublin=Ireland|Edinburgh=United Kingdom|"
    "Eindhoven=Netherlands|Gdansk=Poland|Geneva=Switzerland|Ghent=Belgium|Glasgow=United Kingdom|"
    "Gothenburg=Sweden|Graz=Austria|Guangzhou=China|Hamburg=Germany|Hanoi=Vietnam|Helsinki=Finland|Ibadan=Nigeria|"
    "Isfahan=Iran|Istanbul=Turkey|Izmir=Turkey|Jakarta=Indonesia|Jeddah=Saudi Arabia|Kano=Nigeria|"
    "Karachi=Pakistan|Kathmandu=Nepal|Kolkata=India|Krakow=Poland|Kuala Lumpur=Malaysia|Kyiv=Ukraine|Kyoto=Japan|"
    "Lahore=Pakistan|Leeds=United Kingdom|Lima=Peru|Lisbon=Portugal|London=United Kingdom|Luxor=Egypt|Lviv=Ukraine|"
    "Lyon=France|Madrid=Spain|Manaus=Brazil|Marrakesh=Morocco|Marseille=France|Melbourne=Australia|Milan=Italy|"
    "Mombasa=Kenya|Monterrey=Mexico|Moscow=Russia|Mumbai=India|Munich=Germany|Nagoya=Japan|Nairobi=Kenya|"
    "Naples=Italy|Novosibirsk=Russia|Osaka=Japan|Oslo=Norway|Paris=France|Prague=Czech Republic|Rabat=Morocco|"
    "Recife=Brazil|Rio de Janeiro=Brazil|Riyadh=Saudi Arabia|Rome=Italy|Rotterdam=Netherlands|Salzburg=Austria|"
    "Sao Paulo=Brazil|Seoul=South Korea|Seville=Spain|Shanghai=China|Shenzhen=China|Sofia=Bulgaria|"
    "Stockholm=Sweden|Stuttgart=Germany|Sydney=Australia|Tampere=Finland|Tehran=Iran|Thessaloniki=Greece|"
    "Tijuana=Mexico|Tokyo=Japan|Toulouse=France|Trondheim=Norway|Turin=Italy|Turku=Finland|Uppsala=Sweden|"
    "Venice=Italy|Vienna=Austria|Vladivostok=Russia|Warsaw=Poland|Zurich=Switzerland"
)
COUNTRY_OF = dict(entry.split("=") for entry in COUNTRIES.split("|"))
SMALL = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
NUMBERS = {word: n for n, word in enumerate(SMALL.split(), start=1)} | {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}


@cache
def made(name: str, seed: int = 0) -> ProbeData:
    return concept(name, seed=seed)


def number(words: str) -> int:
    return sum(NUMBERS[part] for part in words.lower().split("-"))


def rows_of(data: ProbeData) -> dict[str, list[int]]:
    found = defaultdict(list)
    for row, group in enumerate(data.groups or ()):
        found[group].append(row)
    return found


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["truth_cities", "truth_cities_negated"])
def test_cities_are_in_the_countries_that_an_atlas_says(name: str, seed: int) -> None:
    data = made(name, seed)
    for text, label in zip(data.texts, data.labels, strict=True):
        city, negation, country = re.fullmatch(r"The city of (.+) is (not )?in (?:the )?(.+)\.", text).groups()
        assert (negation is not None) == name.endswith("negated")
        assert label == str((COUNTRY_OF[city] == country) != bool(negation)).lower(), text
        assert city in data.groups[data.texts.index(text)].split(" and ")
    assert len({re.match(r"The city of (.+) is", text)[1] for text in data.texts}) >= 60


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["truth_comparisons", "truth_comparisons_negated"])
def test_comparisons_are_those_of_the_numbers(name: str, seed: int) -> None:
    data = made(name, seed)
    for text, label in zip(data.texts, data.labels, strict=True):
        a, negation, relation, b = re.fullmatch(r"(\S+) is (not )?(larger|smaller) than (\S+)\.", text).groups()
        assert (negation is not None) == name.endswith("negated")
        fact = number(a) > number(b) if relation == "larger" else number(a) < number(b)
        assert label == str(fact != bool(negation)).lower(), text
        assert number(a) != number(b)


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_are_right_or_wrong_by_a_little(seed: int) -> None:
    data = made("truth_arithmetic", seed)
    commuted = defaultdict(set)
    for text, label, group in zip(data.texts, data.labels, data.groups, strict=True):
        a, b, said = re.fullmatch(r"(\S+) plus (\S+) is (\S+)\.", text).groups()
        right = number(a) + number(b)
        assert label == str(right == number(said)).lower(), text
        assert abs(right - number(said)) <= 5
        commuted[frozenset((a.lower(), b.lower()))].add(group)
    assert all(len(groups) == 1 for groups in commuted.values())


PRAISE = """
wonderful brilliant excellent superb charming delightful gripping moving fresh clever funny beautiful memorable elegant
touching thrilling fantastic marvellous magnificent splendid lovely captivating exciting witty loved enjoyed adored
admired praised cherished relished applauded
"""
BLAME = """
terrible awful dreadful horrible tedious boring dull clumsy stale stupid annoying ugly forgettable sloppy bland lifeless
lousy pathetic miserable horrid dreary pointless shallow messy hated loathed detested despised condemned scorned
abhorred mocked
"""


def test_praise_is_positive_and_blame_negative() -> None:
    praise, blame = PRAISE.split(), BLAME.split()
    data = made("sentiment")
    for text, label in zip(data.texts, data.labels, strict=True):
        found = set(re.findall(r"\w+", text))
        assert (len(found & set(praise)), len(found & set(blame))) == ((1, 0) if label == "positive" else (0, 1)), text
    assert len(set(data.groups)) == len(praise)


def test_no_word_of_sentiment_stands_in_two_groups() -> None:
    data = made("sentiment")
    groups = defaultdict(set)
    for group in data.groups:
        for word in group.split("/"):
            groups[word].add(group)
    assert all(len(found) == 1 for found in groups.values())
    for text, group in zip(data.texts, data.groups, strict=True):
        assert sum(word in groups for word in re.findall(r"\w+", text)) == 1, (text, group)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_number_is_that_of_the_subject_whatever_the_other_noun_is(seed: int) -> None:
    data = made("number_agreement", seed)
    seen, subjects, others = Counter(), set(), set()
    for text, label, span, group in zip(data.texts, data.labels, data.spans, data.groups, strict=True):
        subject, other = re.fullmatch(r"(?:I \w+ the|The) (\w+) \w+ the (\w+)", text).groups()
        plural = {"knife": "knives", "shelf": "shelves", "box": "boxes", "church": "churches"}.get(group, group + "s")
        assert span == subject
        assert subject == (plural if label == "plural" else group)
        seen[label, other.endswith("s")] += 1
        subjects.add(group)
        others.add(other.removesuffix("es").removesuffix("s"))
    assert len(set(seen.values())) == 1
    assert len(seen) == 4
    assert not subjects & others


@pytest.mark.parametrize("seed", SEEDS)
def test_a_word_behind_to_is_a_verb_and_else_a_noun(seed: int) -> None:
    data = made("part_of_speech", seed)
    for text, label, span, group in zip(data.texts, data.labels, data.spans, data.groups, strict=True):
        before = text[: text.index(f" {span}.")].split()
        assert span == group
        assert label == ("verb" if "to" in before[-2 if before[-1] == "quickly" else -1 :] else "noun"), text


# --- groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONCEPTS)
def test_every_group_is_balanced_and_pairs_are_whole(name: str, seed: int) -> None:
    data = made(name, seed)
    assert len(set(data.texts)) == len(data)
    assert len(set(data.labels)) == 2
    sizes = set()
    for rows in rows_of(data).values():
        counts = Counter(data.labels[row] for row in rows)
        assert len(set(counts.values())) == 1
        sizes.add(len(rows))
        assert rows == list(range(rows[0], rows[0] + len(rows)))
    assert len(sizes) == 1
    assert len(data.partners()) * 2 == len(data)
    firsts = Counter(data.labels[first] for first, _ in data.partners())
    assert min(firsts.values()) > len(data.partners()) / 4  # which partner stands first tells nothing


@pytest.mark.parametrize("name", [*TRUTHS, "part_of_speech"])
def test_within_a_group_words_tell_nothing(name: str) -> None:
    data = made(name)
    for rows in rows_of(data).values():
        bags: dict[object, Counter[str]] = defaultdict(Counter)
        for row in rows:
            bags[data.labels[row]].update(re.findall(r"[\w-]+", data.texts[row].lower()))
        first, second = bags.values()
        assert first == second


@pytest.mark.parametrize("name", ["truth_comparisons", "truth_comparisons_negated", "truth_arithmetic"])
def test_nor_does_a_word_at_a_place(name: str) -> None:
    data = made(name)
    for rows in rows_of(data).values():
        bags: dict[object, Counter[tuple[int, str]]] = defaultdict(Counter)
        for row in rows:
            bags[data.labels[row]].update(enumerate(data.texts[row].split()))
        first, second = bags.values()
        assert first == second


@pytest.mark.parametrize("name", ["number_agreement", "part_of_speech"])
def test_spans_are_whole_words_and_the_first_occurrence_is_meant(name: str) -> None:
    data = made(name)
    for text, span in zip(data.texts, data.spans, strict=True):
        start = text.index(span)
        assert (start, start + len(span)) in word_spans(text), (text, span)


# --- choosing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONCEPTS)
def test_the_same_seed_gives_the_same_data_and_a_larger_n_only_adds(name: str) -> None:
    data = made(name)
    assert concept(name).digest == data.digest
    assert made(name, 1).digest != data.digest
    some = concept(name, n=45)
    assert 45 - 8 < len(some) <= 45
    assert some.texts == data.texts[: len(some)]
    assert some.labels == data.labels[: len(some)]
    assert len(set(some.counts().values())) == 1


def test_negated_statements_have_the_groups_of_the_plain_ones() -> None:
    for name in ("truth_cities", "truth_comparisons"):
        assert made(name).groups == made(f"{name}_negated").groups


def test_the_documentation_names_every_concept_and_how_many_rows_it_has() -> None:
    rows = dict(re.findall(r"\| `(\w+)` .*\| +(\d+) \|", concept.__doc__))
    assert rows == {name: str(len(made(name))) for name in CONCEPTS}
    assert list(CONCEPTS) == sorted(CONCEPTS)


def test_data_say_where_they_come_from() -> None:
    assert made("truth_cities", 2).source.endswith("with seed 2.")
    assert made("truth_cities").name == "truth_cities"


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ProbeError, match="no concept 'truth_city'; did you mean truth_cities"):
        concept("truth_city")
    with pytest.raises(ProbeError, match="no concept 'xyz'; there are number_agreement, part_of_speech"):
        concept("xyz")
    with pytest.raises(ProbeError, match="32 groups of 8 rows, so n is at least 8 and at most 256, not 7"):
        concept("sentiment", n=7)
    with pytest.raises(ProbeError, match="at most 256, not 257"):
        concept("sentiment", n=257)
    assert len(concept("truth_comparisons", n=1000)) == 1000
