"""Tasks are aligned pairs with one-token answers, reproducible, and apart in their splits."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from interp_toolkit import InterpError, tasks
from interp_toolkit.errors import FileFormatError, PositionError, RunError, TokenError
from interp_toolkit.model.demo_files import demo_model_folder
from interp_toolkit.tasks import TASKS, Task, TaskPair
from interp_toolkit.tasks.words import SPLITS, table
from tasks.offline import byte_tokenizer, word_tokenizer

NAMES = sorted(TASKS)
WORDY = sorted(set(NAMES) - {"induction"})
ONE_TEMPLATE = {("induction", "validation"), ("induction", "test")}


@cache
def demo_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_model_folder())


@cache
def task(name: str, split: str = "train", n: int = 40, **options: Any) -> Task:
    return TASKS[name](demo_tokenizer(), n=n, split=split, **options)


def words_of(made: Task) -> set[str]:
    return {word for pair in made.pairs for side in (pair.entities, pair.corrupt_entities) for word in side.values()}


# --- every behaviour ----------------------------------------------------------------------------------------------


def test_the_catalogue_has_every_behaviour_under_its_own_name() -> None:
    for name, make in TASKS.items():
        assert getattr(tasks, name) is make
        assert task(name).name == name
    assert len(TASKS) == 7


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_pairs_and_a_larger_n_only_adds(name: str) -> None:
    again = TASKS[name](demo_tokenizer(), n=20)
    assert again.pairs == task(name).pairs[:20]
    assert TASKS[name](demo_tokenizer(), n=20, seed=1).pairs != again.pairs


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_template_and_no_entity(name: str) -> None:
    for n, first in enumerate(SPLITS):
        for second in SPLITS[n + 1 :]:
            one, other = task(name, first), task(name, second)
            assert not set(one.templates) & set(other.templates)
            assert not words_of(one) & words_of(other)
            assert words_of(one)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_what_the_tokenizer_makes_of_their_texts(name: str, split: str) -> None:
    tokenizer, made = demo_tokenizer(), task(name, split)
    assert isinstance(made.clean[0], str)
    for pair, clean, corrupt in zip(made.pairs, made.clean, made.corrupt, strict=True):
        assert tuple(tokenizer(clean)["input_ids"]) == pair.clean_ids
        assert tuple(tokenizer(corrupt)["input_ids"]) == pair.corrupt_ids
        assert len(pair.clean_ids) == len(pair.corrupt_ids)
        assert pair.clean_ids != pair.corrupt_ids
        assert pair.positions["changed"] == tuple(
            n for n in range(len(pair)) if pair.clean_ids[n] != pair.corrupt_ids[n]
        )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_one_token_behind_its_very_prompt(name: str, split: str) -> None:
    tokenizer = demo_tokenizer()
    for pair in task(name, split).pairs:
        assert not set(pair.targets) & set(pair.foils)
        for token, text in zip(pair.targets + pair.foils, pair.target_strings + pair.foil_strings, strict=True):
            assert tuple(tokenizer(pair.clean + text)["input_ids"]) == (*pair.clean_ids, token)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_all_prompts_have_one_length_and_come_from_several_templates(name: str, split: str) -> None:
    made = task(name, split)
    assert len(made.lengths) == 1
    assert len(made.templates) >= (1 if (name, split) in ONE_TEMPLATE else 2)


@pytest.mark.parametrize("name", WORDY)
def test_labels_stand_where_the_entities_are_in_both_prompts(name: str) -> None:
    tokenizer, seen = demo_tokenizer(), 0
    for pair in task(name).pairs:
        assert pair.positions["end"] == (len(pair) - 1,)
        for entities, ids in ((pair.entities, pair.clean_ids), (pair.corrupt_entities, pair.corrupt_ids)):
            for slot, word in entities.items():
                assert tokenizer.decode([ids[n] for n in pair.positions[slot]]).strip() == word
                seen += 1
        differ = {slot for slot in pair.entities if pair.entities[slot] != pair.corrupt_entities[slot]}
        assert set(pair.positions["changed"]) <= {n for slot in differ for n in pair.positions[slot]}
    assert seen >= 2 * 40


@pytest.mark.usefixtures("unchecked")  # which is quicker
@pytest.mark.parametrize("name", NAMES)
def test_five_hundred_distinct_pairs_can_be_had_for_training(name: str) -> None:
    made = TASKS[name](demo_tokenizer(), n=500)
    assert len({(pair.clean, pair.corrupt) for pair in made.pairs}) == 500


def test_asking_for_too_many_says_how_many_there_are() -> None:
    with pytest.raises(TokenError, match="900 pairs of country_capital were asked for") as found:
        tasks.country_capital(demo_tokenizer(), n=900, split="test")
    allowed = int(re.findall(r"allows (\d+)", str(found.value))[0])
    assert len(tasks.country_capital(demo_tokenizer(), n=allowed, split="test")) == allowed
    with pytest.raises(TokenError, match=rf"allows {allowed} of one length \(7 tokens\) in the test split \(all \d+ "):
        tasks.country_capital(demo_tokenizer(), n=allowed + 1, split="test")


def test_prompts_of_all_lengths_come_when_one_length_is_not_asked_for() -> None:
    made = task("greater_than", same_length=False, n=200)
    assert len(made.lengths) > 1
    assert all(len(pair.clean_ids) == len(pair.corrupt_ids) for pair in made.pairs)
    assert set(task("greater_than").lengths) < set(made.lengths)


# --- each behaviour -----------------------------------------------------------------------------------------------


def strings(pair: TaskPair, label: str) -> list[str]:
    return [demo_tokenizer().decode([pair.clean_ids[n]]).strip() for n in pair.positions[label]]


@pytest.mark.parametrize("corruption", ["swap", "random"])
def test_ioi_asks_for_the_name_that_comes_once(corruption: str) -> None:
    for pair in task("ioi", corruption=corruption).pairs:
        words = re.findall(r"\w+", str(pair.clean))
        recipient, giver = pair.target_strings[0].strip(), pair.foil_strings[0].strip()
        assert (words.count(recipient), words.count(giver)) == (1, 2)
        assert strings(pair, "IO") == [recipient]
        assert strings(pair, "S1") == strings(pair, "S2") == [giver]
        assert pair.positions["S1+1"] == (pair.positions["S1"][0] + 1,)
        others = re.findall(r"\w+", str(pair.corrupt))
        if corruption == "swap":
            assert (others.count(recipient), others.count(giver)) == (2, 1)
        else:
            assert not {recipient, giver} & set(others)
            assert len({pair.corrupt_entities[slot] for slot in ("IO", "S1", "S2")}) == 3


def test_names_go_with_their_pronouns() -> None:
    lists = {kind: set(table("names")[kind].split()) for kind in ("she", "he", "either")}
    assert not lists["she"] & lists["he"]
    assert not lists["either"] & (lists["she"] | lists["he"])
    for pair in task("gendered_pronoun").pairs:
        assert pair.entities["name"] in lists[pair.target_strings[0].strip()]
        assert pair.corrupt_entities["name"] in lists[pair.foil_strings[0].strip()]
    for pair in task("gendered_pronoun", corruption="random").pairs:
        assert pair.corrupt_entities["name"] in lists["either"]


def test_verbs_agree_with_the_subject_and_not_always_with_the_other_noun() -> None:
    plural = {entry.split("/")[1] for entry in table("things")["nouns"].split()}
    agreeing = 0
    for pair in task("subject_verb_agreement").pairs:
        many = pair.entities["subject"] in plural
        assert (pair.target_strings[0].strip() in {"are", "were"}) == many
        assert (pair.foil_strings[0].strip() in {"are", "were"}) != many
        assert (pair.corrupt_entities["subject"] in plural) != many
        agreeing += (pair.entities["other"] in plural) == many
    assert 10 <= agreeing <= 30


def test_capitals_are_those_of_the_two_countries() -> None:
    capitals = dict(entry.split(":") for entry in table("country_capital")["capitals"].split())
    assert capitals["France"] == "Paris"
    for pair in task("country_capital").pairs:
        assert pair.target_strings == (f" {capitals[pair.entities['country']]}",)
        assert pair.foil_strings == (f" {capitals[pair.corrupt_entities['country']]}",)


@pytest.mark.parametrize("corruption", ["swap", "random"])
def test_the_docstring_comes_to_the_next_parameter_of_the_head(corruption: str) -> None:
    for pair in task("docstring", corruption=corruption).pairs:
        head = re.findall(r"\w+", str(pair.clean).split("(")[1].split(")")[0])
        described = re.findall(r":param (\w+):", str(pair.clean))
        assert described == head[1:3]
        assert [pair.target_strings[0].strip(), pair.foil_strings[0].strip()] == head[3:5]
        other = re.findall(r"\w+", str(pair.corrupt).split("(")[1].split(")")[0])
        if corruption == "swap":
            assert other == [*head[:3], head[4], head[3]]
        else:
            assert not set(other[1:]) & set(head[1:])


@pytest.mark.parametrize("corruption", ["swap", "random"])
def test_induction_repeats_and_the_corrupt_prompt_differs_in_one_word(corruption: str) -> None:
    for pair in task("induction", corruption=corruption).pairs:
        ids, [before], [answer] = pair.clean_ids, pair.positions["before"], pair.positions["answer"]
        assert answer == before + 1
        assert ids[before] == ids[-1]
        assert ids[answer] == pair.targets[0]
        assert ids.count(pair.targets[0]) == 1
        start = len(ids) - before - 1
        assert ids[start:] == ids[: before + 1]
        assert pair.positions["changed"] == ((answer,) if corruption == "swap" else (before,))
        assert pair.foils[0] in pair.corrupt_ids


@pytest.mark.parametrize(("digits", "given"), [(1, 2), (2, 2), (3, 3)])
def test_years_are_cut_as_the_tokenizer_cuts_them(digits: int, given: int) -> None:
    made = tasks.greater_than(word_tokenizer(digits=digits), n=40)
    assert made.metric == "prob_diff"
    for pair in made.pairs:
        start, prefix = pair.entities["start"], pair.entities["prefix"]
        assert prefix == start[:given]
        assert str(pair.clean).endswith(f" {prefix}")
        width = len(pair.target_strings[0])
        assert width == (2 if digits == 2 else 1)
        own = start[given : given + width]
        numbers = [f"{n:0{width}}" for n in range(10**width)]
        ambiguous = given + width < 4 and start[-1] != "9"  # no later year begins with the 3 of 1839
        assert list(pair.target_strings) == [n for n in numbers if n > own]
        assert list(pair.foil_strings) == [n for n in numbers if (n < own if ambiguous else n <= own)]
        assert pair.corrupt_entities["start"] == (f"{prefix}01" if given == 2 else f"{prefix}0")


# --- tokenizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_of_words_will_do_and_its_start_token_counts(name: str) -> None:
    plain = TASKS[name](word_tokenizer(), n=10)
    started = TASKS[name](word_tokenizer(add="<s> $A"), n=10)
    for pair, other in zip(plain.pairs, started.pairs, strict=True):
        assert other.clean_ids == (1, *pair.clean_ids)
        assert other.targets == pair.targets
        assert other.positions == {label: tuple(n + 1 for n in places) for label, places in pair.positions.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_of_bytes_allows_no_more_than_bytes_can_answer(name: str) -> None:
    if name == "greater_than":  # digits are bytes
        assert len(tasks.greater_than(byte_tokenizer(), n=5)) == 5
        return
    with pytest.raises(TokenError, match=f"{name}.*(allows 0|needs at least)"):
        TASKS[name](byte_tokenizer(), n=5)


@pytest.mark.parametrize("name", ["country_capital", "greater_than", "induction"])
def test_a_tokenizer_that_ends_every_text_is_refused(name: str) -> None:
    with pytest.raises(TokenError, match="adds something behind the prompt"):
        TASKS[name](word_tokenizer(add="$A </s>"), n=5)


def test_an_unknown_word_is_no_answer() -> None:
    without = word_tokenizer(without=table("names")["she"].split() + table("names")["he"].split())
    with pytest.raises(TokenError, match=r"0 of .* in the train split"):
        tasks.ioi(without)
    with pytest.raises(TokenError, match=r"allows 0 .*does not know a word of the prompt"):
        tasks.gendered_pronoun(without)


def test_years_that_are_one_token_are_refused() -> None:
    with pytest.raises(TokenError, match="cuts a year such as 1745 behind 17 or behind 174"):
        tasks.greater_than(word_tokenizer(digits=4))


def test_induction_is_token_ids_where_text_does_not_give_them_back() -> None:
    made = tasks.induction(word_tokenizer(normalizer=normalizers.Prepend("the ")), n=5)
    assert made.pairs[0].clean is None
    assert made.clean == [list(pair.clean_ids) for pair in made.pairs]
    assert made.corrupt == [list(pair.corrupt_ids) for pair in made.pairs]
    assert str(made.clean[0]) in made.summary()


# --- what cannot be asked -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "the splits are 'train', 'validation', 'test'; there is no 'dev'"),
        ({"corruption": "noise"}, "ioi has the corruption 'swap' and 'random', but not 'noise'"),
        ({"n": 0}, "at least 1, not 0"),
    ],
)
def test_what_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        tasks.ioi(demo_tokenizer(), **options)


def test_a_corruption_that_makes_no_sense_is_not_offered() -> None:
    with pytest.raises(RunError, match="country_capital has the corruption 'swap', but not 'random'"):
        tasks.country_capital(demo_tokenizer(), corruption="random")


@pytest.mark.usefixtures("unchecked")
def test_a_model_in_place_of_the_tokenizer_is_named(demo: tuple[Any, Any]) -> None:
    with pytest.raises(RunError, match=r"for a tokenizer, not for a LlamaForCausalLM: tasks.ioi\(tokenizer"):
        tasks.ioi(demo[0])


# --- tasks as data ------------------------------------------------------------------------------------------------


def test_a_task_survives_a_file(tmp_path: Path) -> None:
    made = task("greater_than", n=10)
    assert Task.load(made.save(tmp_path / "task.json")) == made
    assert json.loads(json.dumps(made.to_dict())) == json.loads((tmp_path / "task.json").read_text(encoding="utf-8"))
    for broken in ("[]", '{"format": "other"}', "nonsense"):
        (tmp_path / "other.json").write_text(broken, encoding="utf-8")
        with pytest.raises(FileFormatError):
            Task.load(tmp_path / "other.json")


def test_answers_are_pairs_of_ids_where_there_is_one_of_each() -> None:
    made = task("ioi")
    assert made.answers == [(pair.targets[0], pair.foils[0]) for pair in made.pairs]
    assert made.targets == [pair.targets for pair in made.pairs]
    assert made.foils == [pair.foils for pair in made.pairs]
    with pytest.raises(TokenError, match="use targets and foils"):
        _ = task("greater_than").answers


def test_positions_come_for_every_prompt_by_label() -> None:
    made = task("ioi")
    assert made.positions("S2") == [list(pair.positions["S2"]) for pair in made.pairs]
    with pytest.raises(PositionError, match="no label 'S3' in every pair; it has IO, S1"):
        made.positions("S3")
    assert "place" not in task("gendered_pronoun").labels  # some templates have an object instead


def test_a_task_is_cut_by_template() -> None:
    parts = task("ioi").by_template()
    assert {name: part.templates for name, part in parts.items()} == {name: (name,) for name in task("ioi").templates}
    assert sum(map(len, parts.values())) == 40
    assert all(len({tuple(p) for p in part.positions("S2")}) == 1 for part in parts.values())


def test_a_task_needs_a_pair() -> None:
    with pytest.raises(TokenError, match="at least one pair"):
        task("ioi").select([])


# --- pairs of one's own -------------------------------------------------------------------------------------------


def own(**changes: Any) -> Task:
    parts: dict[str, Any] = {
        "clean": ["The Louvre is in", "The Kremlin is in"],
        "corrupt": ["The Prado is in", "The Louvre is in"],
        "answers": [("Paris", "Madrid"), (" Moscow", "Paris")],
    }
    named = {k: v for k, v in changes.items() if k not in parts}
    parts.update({k: v for k, v in changes.items() if k in parts})
    return tasks.from_pairs(word_like(), parts["clean"], parts["corrupt"], parts["answers"], **named)


@cache
def word_like() -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "The", "Louvre", "Kremlin", "Prado", "is", "in", "Paris", "Madrid", "Moscow", "old"]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def test_own_pairs_become_a_task() -> None:
    made = own(name="buildings", templates=["art", "power"])
    assert made.answers == [(7, 8), (9, 7)]
    assert made.clean == ["The Louvre is in", "The Kremlin is in"]
    assert made.positions("changed") == [[1], [1]]
    assert made.templates == ("art", "power")
    assert (made.name, made.split, made.metric) == ("buildings", "all", "logit_diff")


def test_own_pairs_may_be_token_ids_and_have_several_answers() -> None:
    made = own(clean=[[1, 2, 5, 6]], corrupt=[[1, 4, 5, 6]], answers=[(["Paris", 9], "Madrid")], metric="prob_diff")
    assert made.pairs[0].targets == (7, 9)
    assert made.clean == [[1, 2, 5, 6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupt": ["The old Prado is in", "The Louvre is in"]}, "pair 0: the clean prompt has 4 tokens.* one 5"),
        ({"corrupt": ["The Prado is in", "The Kremlin is in"]}, "pair 1: .* prompt are the same"),
        ({"answers": [("Paris", "Paris"), ("Moscow", "Paris")]}, "pair 0: target and foil are not two different"),
        ({"answers": [("Paris", "in Madrid"), ("Moscow", "Paris")]}, "pair 0: the answer 'in Madrid' is not one token"),
        ({"answers": [("Paris", "Madrid"), (99, "Paris")]}, "pair 1: token id 99 is outside .* 0 to 10"),
        ({"answers": [("Paris", "Madrid")]}, "there are 2, 2, 1 and 2 of them"),
        ({"clean": ["The Louvre is in"] * 2, "corrupt": ["The Prado is in"] * 2}, "pair 1 comes a second time"),
        ({"answers": [("Paris", []), ("Moscow", "Paris")]}, "pair 0: target and foil are not two different"),
        ({"clean": [], "corrupt": [], "answers": []}, "at least one pair"),
    ],
)
def test_own_pairs_that_do_not_compare_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenError, match=message):
        own(**changes)


@pytest.mark.usefixtures("unchecked")
def test_answers_of_own_pairs_are_two() -> None:
    with pytest.raises(InterpError, match=r"pair 0: answers are \(target, foil\)"):
        own(answers=[("Paris",), ("Moscow", "Paris")])


# --- the package --------------------------------------------------------------------------------------------------


def test_importing_tasks_needs_only_what_the_library_has_loaded_anyway() -> None:
    folder = Path(tasks.__file__).parent
    loaded = set()
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # what runs when the file is loaded
            if isinstance(node, ast.ImportFrom):
                loaded.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Import):
                loaded |= {alias.name.split(".")[0] for alias in node.names}
    assert loaded - {"interp_toolkit"} <= {"__future__", "torch", *__import__("sys").stdlib_module_names}


def test_no_word_of_the_data_is_listed_twice() -> None:
    lists = [
        *(table("names").values()),
        *(table("things").values()),
        *(table("docstring")["words"].values()),
        table("greater_than")["words"]["events"],
        table("country_capital")["capitals"],
    ]
    for text in lists:
        words = text.split()
        assert len(words) == len(set(words)) > 10
