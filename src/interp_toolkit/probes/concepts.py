"""Concepts as data that is made here: texts whose labels are right by construction.

Every data set is balanced within each of its groups, so it stays balanced in any split by group. Where a group holds
each word as often with one label as with the other, which words a text has tells nothing of its label there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from random import Random
from typing import NamedTuple

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.data import ProbeData
from interp_toolkit.tasks.words import table, words

_CITIES = """
Australia: Sydney, Melbourne, Brisbane
Austria: Vienna, Salzburg, Graz
Belgium: Brussels, Antwerp, Ghent
Brazil: Sao Paulo, Rio de Janeiro, Recife, Manaus
Bulgaria: Sofia
China: Beijing, Shanghai, Guangzhou, Shenzhen
the Czech Republic: Prague, Brno
Denmark: Copenhagen, Aarhus
Egypt: Cairo, Luxor
Finland: Helsinki, Turku, Tampere
France: Paris, Marseille, Lyon, Toulouse, Bordeaux
Germany: Berlin, Hamburg, Munich, Stuttgart, Dresden
Greece: Athens, Thessaloniki
Hungary: Budapest
India: Mumbai, Delhi, Kolkata, Chennai
Indonesia: Jakarta, Bandung
Iran: Tehran, Isfahan
Iraq: Baghdad, Basra
Ireland: Dublin, Cork
Italy: Rome, Milan, Naples, Turin, Venice
Japan: Tokyo, Osaka, Kyoto, Nagoya
Kazakhstan: Almaty
Kenya: Nairobi, Mombasa
Malaysia: Kuala Lumpur
Mexico: Monterrey, Tijuana
Morocco: Rabat, Marrakesh
Nepal: Kathmandu
the Netherlands: Amsterdam, Rotterdam, Eindhoven
Nigeria: Ibadan, Kano
Norway: Oslo, Trondheim
Pakistan: Lahore, Karachi
Peru: Lima, Cusco
Poland: Warsaw, Krakow, Gdansk
Portugal: Lisbon, Braga
Romania: Bucharest
Russia: Moscow, Novosibirsk, Vladivostok
Saudi Arabia: Riyadh, Jeddah
South Korea: Seoul, Busan
Spain: Madrid, Seville, Bilbao
Sweden: Stockholm, Gothenburg, Uppsala
Switzerland: Zurich, Geneva, Basel
Thailand: Bangkok
Turkey: Istanbul, Ankara, Izmir
Ukraine: Kyiv, Lviv
the United Kingdom: London, Glasgow, Edinburgh, Leeds
Vietnam: Hanoi
"""
_ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")

_ADJECTIVES = """
wonderful/terrible brilliant/awful excellent/dreadful superb/horrible charming/tedious delightful/boring gripping/dull
moving/clumsy fresh/stale clever/stupid funny/annoying beautiful/ugly memorable/forgettable elegant/sloppy
touching/bland thrilling/lifeless fantastic/lousy marvellous/pathetic magnificent/miserable splendid/horrid
lovely/dreary captivating/pointless exciting/shallow witty/messy
"""
_VERBS = """
loved/hated enjoyed/loathed adored/detested admired/despised praised/condemned cherished/scorned relished/abhorred
applauded/mocked
"""
_OF_ADJECTIVES = (
    "The film was {} from beginning to end.",
    "I found the second half of the play {}.",
    "My sister called the series {}, and she was right.",
    "Honestly, the ending is just {}.",
    "Everyone in the room thought the show was {}.",
    "The dialogue in this story is {}.",
    "After ten minutes I knew that it would be {}.",
    "To me the whole performance felt {}.",
)
_OF_VERBS = (
    "We saw the film on Friday and {} it.",
    "My brother {} every page of the novel.",
    "The audience {} the new play.",
    "I have to say that I {} this series.",
    "Most of the critics {} the second season.",
    "She read the story twice and {} it both times.",
    "They {} the ending more than anything else.",
    "All of us {} the way it was told.",
)

_NOUN_OR_VERB = """
answer attack bargain bow camp chat cheat climb cook cough crawl cry dance debate
delay dive dream drink drive drop escape exercise experiment fall fight fish gamble giggle guess hike hunt jog joke
jump kick knock land laugh leap lecture lie march moan move nap object paddle paint pause play practice promise protest
quarrel race rally reply report rest retreat return ride rise row run sail scream search shift shout sigh skate sleep
slip smile sneeze snore sprint stay strike stroll struggle study surf swim swing talk tour trade travel turn visit vote
wait walk whisper whistle work yawn yell
"""
_ROLES = (  # the same words for the noun and for the verb: only their order tells
    ("I need to time the {}.", "I need the time to {}."),
    ("He has to plan the {}.", "He has the plan to {}."),
    ("They had to order the {}.", "They had the order to {}."),
    ("We had to honor the {}.", "We had the honor to {}."),
    ("She had to permit the {}.", "She had the permit to {}."),
    ("They got to signal the {}.", "They got the signal to {}."),
    ("He wants to offer the usual {}.", "He wants the usual offer to {}."),
    ("You have to quickly schedule the {}.", "You have the schedule to quickly {}."),
)


class _Row(NamedTuple):
    text: str
    label: str
    pair: str
    span: str | None = None


_Groups = dict[str, list[_Row]]


@dataclass(frozen=True, kw_only=True)
class _Concept:
    """How groups are made, and how many there usually are; all of them if nothing is said."""

    make: Callable[[Random], _Groups]
    source: str
    usual: int | None = None


def concept(name: str, *, n: int | None = None, seed: int = 0) -> ProbeData:
    """Data for a concept, with groups that must not be torn apart and pairs that differ in the concept alone.

    | name                          | labels             | a group is                                     | rows |
    |-------------------------------|--------------------|------------------------------------------------|------|
    | `number_agreement`            | singular, plural   | a subject, with other nouns behind it          |  408 |
    | `part_of_speech`              | noun, verb         | a word that can be either                      |  800 |
    | `sentiment`                   | positive, negative | a word of praise and one of blame              |  256 |
    | `truth_arithmetic`            | true, false        | two sums, each also with the other's result    |  360 |
    | `truth_cities`                | true, false        | two cities, each also in the other's country   |  224 |
    | `truth_cities_negated`        | true, false        | the same, "is not in"                          |  224 |
    | `truth_comparisons`           | true, false        | two numbers in both orders, larger and smaller |  400 |
    | `truth_comparisons_negated`   | true, false        | the same, "is not larger than"                 |  400 |

    The same seed gives negated statements of the same groups, for transfer from one to the other.

    What the data cannot show: in `sentiment` a word decides, so look at groups that the probe was not trained on, as
    splits by group do. In `number_agreement` the subject's own form tells its number; whether the model carries it on
    is seen at the last token, behind another noun. In `part_of_speech` a word or two before the target tell its role.

    Args:
        name: one of `CONCEPTS`.
        n: at most so many rows, in whole groups; by default as many as the table says. A larger n only adds groups.
        seed: of the random choice.

    Returns:
        The data. `number_agreement` and `part_of_speech` mark the subject and the word as spans.

    Raises:
        ProbeError: when there is no such concept, or n is less than a group or more than all.

    Example:
        >>> data = concept("truth_cities", n=40)
        >>> data.counts(), len(set(data.groups))
        ({'false': 20, 'true': 20}, 10)
    """
    if name not in _MAKERS:
        near = get_close_matches(name, CONCEPTS)
        hint = f"did you mean {' or '.join(near)}? There are" if near else "there are"
        raise ProbeError(f"there is no concept {name!r}; {hint} {', '.join(CONCEPTS)}")
    made = _MAKERS[name]
    random = Random(seed)
    groups = made.make(random)
    chosen = random.sample(list(groups), len(groups))[: _how_many(name, made, groups, n)]
    rows = [(group, row) for group in chosen for row in random.sample(groups[group], len(groups[group]))]
    spans = tuple(row.span for _, row in rows if row.span is not None)
    return ProbeData(
        name=name,
        texts=tuple(row.text for _, row in rows),
        labels=tuple(row.label for _, row in rows),
        groups=tuple(group for group, _ in rows),
        spans=spans or None,
        pairs=tuple(f"{group}: {row.pair}" for group, row in rows),
        source=f"{made.source} Made by interp_toolkit with seed {seed}.",
    )


def _how_many(name: str, made: _Concept, groups: _Groups, n: int | None) -> int:
    size = len(next(iter(groups.values())))
    if n is None:
        return made.usual or len(groups)
    if not size <= n <= size * len(groups):
        raise ProbeError(
            f"{name} has {len(groups)} groups of {size} rows, so n is at least {size} and at most "
            f"{size * len(groups)}, not {n}"
        )
    return n // size


# --- statements that are true or false ----------------------------------------------------------------------------


def _truth(fact: bool) -> str:
    return "true" if fact else "false"


def _couples(items: Sequence[str], fit: Callable[[str, str], bool], random: Random) -> Iterator[tuple[str, str]]:
    """Items two by two, such that they fit; what finds no partner is left out."""
    left = random.sample(items, len(items))
    while left:
        first = left.pop()
        partner = next((other for other in left if fit(first, other)), None)
        if partner is not None:
            left.remove(partner)
            yield first, partner


def _cities(relation: str) -> Callable[[Random], _Groups]:
    """Cities two by two; each country stands in as many true statements as in false ones."""

    def make(random: Random) -> _Groups:
        lines = (line.split(": ") for line in _CITIES.strip().splitlines())
        country = {city: name for name, cities in lines for city in cities.split(", ")}
        return {
            f"{first} and {second}": [
                _Row(
                    f"The city of {city} {relation} {country[other]}.",
                    _truth((city == other) == (relation == "is in")),
                    city,
                )
                for city, other in product((first, second), repeat=2)
            ]
            for first, second in _couples(list(country), lambda a, b: country[a] != country[b], random)
        }

    return make


def _comparisons(negation: str) -> Callable[[Random], _Groups]:
    """Two numbers, both relations, both orders: no word at any place tells whether a statement is true."""

    def make(_: Random) -> _Groups:
        return {
            f"{small} and {large}": [
                _Row(
                    f"{_in_words(a).capitalize()} is {negation}{relation} than {_in_words(b)}.",
                    _truth(((a > b) == (relation == "larger")) != bool(negation)),
                    relation,
                )
                for relation, (a, b) in product(("larger", "smaller"), ((small, large), (large, small)))
            ]
            for small, large in product(range(1, 100), repeat=2)
            if small < large
        }

    return make


def _sums(random: Random) -> _Groups:
    """Sums two by two, whose results are near each other; each result is right once and wrong once."""
    result = {}
    for a, b in product(range(1, 21), repeat=2):
        if a <= b:
            first, second = random.sample((a, b), 2)
            result[f"{_in_words(first)} plus {_in_words(second)}"] = a + b
    return {
        f"{first}, {second}": [
            _Row(f"{own.capitalize()} is {_in_words(result[other])}.", _truth(own == other), own)
            for own, other in product((first, second), repeat=2)
        ]
        for first, second in _couples(list(result), lambda a, b: 1 <= abs(result[a] - result[b]) <= 5, random)
    }


def _in_words(number: int) -> str:
    tens, ones = divmod(number, 10)
    if tens < 2:
        return _ONES[number]
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


# --- words and grammar --------------------------------------------------------------------------------------------


def _sentiment(random: Random) -> _Groups:
    """Words of praise and blame, two by two, in four templates each."""
    groups: _Groups = {}
    for listed, templates in ((_ADJECTIVES, _OF_ADJECTIVES), (_VERBS, _OF_VERBS)):
        for couple in words(listed):
            groups[couple] = [
                _Row(template.format(word), label, template.format("..."))
                for template in random.sample(templates, 4)
                for word, label in zip(couple.split("/"), ("positive", "negative"), strict=True)
            ]
    return groups


def _agreement(random: Random) -> _Groups:
    """Subjects in both numbers before another noun in both numbers; no noun is both a subject and another noun."""
    nouns = words(table("things")["nouns"])
    others = nouns[2::3]
    templates = [template for part in table("subject_verb_agreement")["templates"].values() for template, *_ in part]
    groups: _Groups = {}
    for noun in nouns:
        if noun in others:
            continue
        chosen = zip(random.sample(templates, 2), random.sample(others, 2), strict=True)
        groups[noun.split("/")[0]] = [
            _Row(
                template.format(subject=subject, other=form), label, template.format(subject="...", other=form), subject
            )
            for template, other in chosen
            for form in other.split("/")
            for subject, label in zip(noun.split("/"), ("singular", "plural"), strict=True)
        ]
    return groups


def _roles(random: Random) -> _Groups:
    """Words as nouns and as verbs, in four couples of templates each."""
    return {
        word: [
            _Row(template.format(word), label, couple[0].format("..."), word)
            for couple in random.sample(_ROLES, 4)
            for template, label in zip(couple, ("noun", "verb"), strict=True)
        ]
        for word in words(_NOUN_OR_VERB)
    }


_MAKERS = {
    "number_agreement": _Concept(make=_agreement, source="Subjects in the singular or plural before another noun."),
    "part_of_speech": _Concept(make=_roles, source="Words as nouns or as verbs, among the same other words."),
    "sentiment": _Concept(make=_sentiment, source="Sentences of praise or blame from templates."),
    "truth_arithmetic": _Concept(make=_sums, source="Right and wrong sums.", usual=90),
    "truth_cities": _Concept(make=_cities("is in"), source="Cities in their own and in other countries.", usual=56),
    "truth_cities_negated": _Concept(make=_cities("is not in"), source="Countries in which cities are not.", usual=56),
    "truth_comparisons": _Concept(make=_comparisons(""), source="Which number is larger or smaller.", usual=100),
    "truth_comparisons_negated": _Concept(
        make=_comparisons("not "), source="Which number is not larger or smaller.", usual=100
    ),
}

CONCEPTS = tuple(_MAKERS)
"""The names of the concepts that `concept` knows."""

__all__ = ["CONCEPTS", "concept"]
