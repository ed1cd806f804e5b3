"""The grammar of a skeleton, as xgrammar reads it, over tokenizers of both kinds."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import xgrammar
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from xgrammar import GrammarCompiler, GrammarMatcher, TokenizerInfo

from benchmarks.grammar import large_vocabulary
from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.plan_parser import PlanParser, PlanParserError, declined
from langchain_pos.reasoning.skeleton_grammar import (
    BLOCK_CLOSE,
    PREAMBLE_CLOSE,
    STEP_CLOSE,
    closing,
    skeleton_grammar,
)

CORPUS = [
    "Let us check each student's GPA, one by one.\n####Nitin Sharma:......\n####Eli White:......\n",
    "让我们从五个独立维度展开分析。\n####经济层面:......\n####技术路线与环境:......\n####%%%%\n",
    "## Heading ###\n1. **bold**: text…\n\n####%%%%The answer is 3.14 (50%), e.g. naïve café 😀.",
]
END = "</s>"


def byte_level() -> Tokenizer:
    """Bytes dressed as letters, as GPT-2, Llama 3 and Qwen have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Pieces with `▁` for a space and `<0x..>` for bytes, as SentencePiece models have them."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, byte_fallback], ids=lambda make: make.__name__)
def info(request: pytest.FixtureRequest) -> TokenizerInfo:
    """A small vocabulary of either kind."""
    make: Callable[[], Tokenizer] = request.param
    wrapped = PreTrainedTokenizerFast(tokenizer_object=make(), eos_token=END)
    return TokenizerInfo.from_huggingface(wrapped)


def matcher(info: TokenizerInfo | None = None, **options: int | bool) -> GrammarMatcher:
    """A fresh matcher of `skeleton_grammar(**options)` that ends where the grammar ends."""
    info = info or TokenizerInfo([bytes([byte]) for byte in range(256)])
    grammar = xgrammar.Grammar.from_ebnf(skeleton_grammar(**{"max_branches": 4} | options))
    compiled = GrammarCompiler(info, max_threads=1, cache_enabled=False).compile_grammar(grammar)
    return GrammarMatcher(compiled, terminate_without_stop_token=True)


def accepts(text: str, **options: int | bool) -> bool:
    """Whether `text` is a whole text of the grammar."""
    state = matcher(**options)
    return state.accept_string(text) and state.is_terminated()


def steps(count: int) -> str:
    """Steps in the canonical form."""
    return "".join(f"####Title {n}:......\n" for n in range(count))


@pytest.mark.parametrize(
    "preamble", ["", "\n", "Let us see.\n", "让我们看：\n\n", " \t*a*\n%%%%\n"]
)
def test_preamble_is_empty_or_whole_lines(preamble: str) -> None:
    """Any lines, or none, may stand before the first step."""
    assert accepts(f"{preamble}{steps(2)}####%%%%")


@pytest.mark.parametrize(
    "text",
    [
        f"Let us see.{steps(2)}####%%%%",
        f"a #### b\n{steps(2)}####%%%%",
        f"### Heading\n{steps(2)}####%%%%",
        f"bell \a\n{steps(2)}####%%%%",
        f"next line \x85\n{steps(2)}####%%%%",
        f"separator \u2028\n{steps(2)}####%%%%",
        f"{steps(2)}####%%%%\n",
        f"{steps(2)}#####%%%%",
        f"{steps(2)}Then:\n####%%%%",
        steps(2),
    ],
)
def test_nothing_but_a_skeleton_is_accepted(text: str) -> None:
    """`#` stands in marks only, marks begin a line, and nothing follows the terminator."""
    assert not accepts(text)


@pytest.mark.parametrize(
    "title", ["A", "Ann", "王伟", "C++ (2nd)", "50% off", "a*", "3.5", "😀", "Ann ", "«x»", "-"]
)
def test_titles_may_be_any_line(title: str) -> None:
    """Titles are words in any script, signs included."""
    assert accepts(f"####{title}:......\n####Ben:......\n####%%%%")


@pytest.mark.parametrize(
    "title",
    [
        *("", " Ann", "\tAnn", "\u3000王", "\u00a0A", "\u200bA", "\ufeff"),
        *("#", "*A", "%A", ":A", "：A"),
        *("A:B", "A：B", "A#B", "A\nB", "A\rB", "A\x00", "A\u2028B", "A\x9fB"),
    ],
)
def test_titles_that_cannot_be_read_back_are_refused(title: str) -> None:
    """No title is empty, invisible at its start, or holds a colon, a mark or a line break."""
    assert not accepts(f"####{title}:......\n####Ben:......\n####%%%%")


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"allow_decline": False}, {2, 3, 4}),
        ({"min_branches": 1}, {0, 1, 2, 3, 4}),
        ({"min_branches": 1, "allow_decline": False}, {1, 2, 3, 4}),
        ({"min_branches": 3}, {0, 1, 3, 4}),
        ({"min_branches": 4, "allow_decline": False}, {4}),
        ({"min_branches": 4}, {0, 1, 4}),
        ({"max_branches": 2}, {0, 1, 2}),
        ({"max_branches": 1, "min_branches": 1, "allow_decline": False}, {1}),
    ],
)
def test_number_of_steps_is_bounded(options: dict[str, int | bool], allowed: set[int]) -> None:
    """Between the bounds; none or one as well where the model may decline."""
    assert {n for n in range(7) if accepts(f"{steps(n)}####%%%%", **options)} == allowed
    continued = {
        n
        for n in range(7)
        if accepts(f"{steps(n)}####%%%%".removeprefix("####"), continued=True, **options)
    }
    assert continued == allowed


@pytest.mark.parametrize(("fewest", "most"), [(0, 4), (3, 2), (2, 1), (-1, -1)])
def test_senseless_bounds_are_refused(fewest: int, most: int) -> None:
    """Bounds that leave no plan are an error that names them."""
    with pytest.raises(InvalidRequestError, match=f"at least {fewest} and at most {most}"):
        skeleton_grammar(max_branches=most, min_branches=fewest)


def test_everything_behind_a_title_is_forced() -> None:
    """Right behind the colon, the text up to the next mark needs no model."""
    state = matcher(max_branches=2, allow_decline=False)
    for title, forced in (("Ann", "......\n####"), ("Ben", "......\n####%%%%")):
        assert state.accept_string(("####" if title == "Ann" else "") + title)
        assert state.find_jump_forward_string() == ""
        assert state.accept_string(":")
        assert state.find_jump_forward_string() == forced
        assert state.accept_string(forced)
    assert state.is_terminated()


def test_mark_is_forced_once_begun() -> None:
    """A `#` can only be the beginning of `####`."""
    state = matcher()
    assert state.accept_string("Let us see.\n#")
    assert state.find_jump_forward_string() == "###"


def test_terminator_is_forced_at_the_most_steps() -> None:
    """After the last step allowed only the end remains; a continued text knows it too."""
    state = matcher(max_branches=2, continued=True)
    assert state.accept_string(f"{steps(2)}####".removeprefix("####"))
    assert state.find_jump_forward_string() == "%%%%"


PREFIXES = [
    "",
    "\n",
    "Let us",
    "Let us see.\n",
    "让我们\n\n",
    "  ",
    "Let us\n#",
    "Let us\n###",
    "Let us\n####",
    "####",
    "####%",
    "####%%%%",
    "####A",
    "####Ann ",
    "####王",
    "####Ann:",
    "####Ann:..",
    "####Ann:......",
    "####Ann:......\n",
    "####Ann:......\n##",
    "####Ann:......\n####",
    "####Ann:......\n####%%%",
    "####Ann:......\n####Ben 50%%",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_skeleton_can_be_closed_anywhere(prefix: str) -> None:
    """Whatever has been written so far, `closing` completes it."""
    assert accepts(prefix + closing(prefix))


@pytest.mark.parametrize("prefix", [p for p in PREFIXES if p.startswith("####") and len(p) > 4])
def test_a_continued_skeleton_can_be_closed_anywhere(prefix: str) -> None:
    """With the mark that it goes on from in front, `closing` knows what is missing."""
    rest = (prefix + closing(prefix)).removeprefix("####")
    assert accepts(rest, continued=True)


def test_bounds_in_tokens_can_be_enforced() -> None:
    """Preamble and titles can be cut at any character, and another step opened."""
    for preamble in ("", "L", "Let us", "Let us\n", "  ", "让"):
        for title in ("A", "Ann ", "王", "50%"):
            text = preamble + PREAMBLE_CLOSE + title + STEP_CLOSE + title + BLOCK_CLOSE
            assert accepts(text, allow_decline=False)


def walk(
    info: TokenizerInfo, state: GrammarMatcher, chance: random.Random, fewest: int
) -> Iterator[str]:
    """A model that likes nothing in particular: any allowed token, and budgets like the engine's.

    Yields the text so far after each token whose end is the end of a character.
    """
    pieces = info.decoded_vocab
    bitmask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    written, since = b"", 0
    liking = {index: chance.choice([1, 1, 20, 200]) for index in range(info.vocab_size)}
    while not state.is_terminated():
        state.fill_next_token_bitmask(bitmask)
        bits = bitmask[0].view(torch.uint8).numpy().tobytes()
        allowed = [i for i in range(info.vocab_size) if bits[i // 8] >> (i % 8) & 1]
        token = chance.choices(allowed, [liking[i] for i in allowed])[0]
        assert state.accept_token(token)
        written, since = written + pieces[token], since + 1
        try:
            text = written.decode()
        except UnicodeDecodeError:
            continue
        if since > 12 and not state.is_terminated():
            marks = text.count("####")
            line = text.rpartition("\n")[2]
            if marks == 0 and not line.startswith("#"):
                forced = PREAMBLE_CLOSE
            elif re.fullmatch(r"####[^:%][^:]*", line):
                forced = STEP_CLOSE if marks < fewest else closing(text)
            else:
                forced = state.find_jump_forward_string()
            assert state.accept_string(forced)
            written, since = written + forced.encode(), 0
        yield written.decode()


@pytest.mark.parametrize("fewest", [1, 2, 4])
@pytest.mark.parametrize("allow_decline", [False, True])
def test_random_models_write_valid_plans(
    info: TokenizerInfo, fewest: int, allow_decline: bool
) -> None:
    """Any walk through the allowed tokens is a plan with all its steps, or it declines."""
    chance = random.Random(f"{fewest}{allow_decline}")
    options = {"max_branches": 6, "min_branches": fewest, "allow_decline": allow_decline}
    read = 0
    for _ in range(60):
        text = list(walk(info, matcher(info, **options), chance, fewest))[-1]
        written = re.findall(r"^####([^:]+):\.{6}$", text, re.MULTILINE)
        assert text.endswith("####%%%%")
        assert text.count("####") == len(written) + 1
        assert len(written) <= 6
        if not allow_decline:
            assert len(written) >= fewest
        if not written:
            assert declined(text)
            continue
        try:
            plan = PlanParser(max_branches=6).parse(text)
        except PlanParserError as error:
            assert "same title" in str(error)  # noqa: PT017
            continue
        for title, line in zip(plan.titles, written, strict=True):
            assert _plain(title) in _plain(line)
        read += 1
    assert read >= (20 if allow_decline else 50)


def test_every_moment_of_a_walk_can_be_closed(info: TokenizerInfo) -> None:
    """Wherever a walk has come to, the grammar takes what `closing` says, and ends."""
    chance = random.Random(7)
    for _ in range(8):
        for text in walk(info, matcher(info, max_branches=3), chance, 1):
            assert accepts(text + closing(text), max_branches=3)


def test_grammar_compiles_for_a_large_vocabulary() -> None:
    """With 150,000 tokens every stretch of a skeleton is taken; the cost is a benchmark."""
    large = TokenizerInfo(large_vocabulary())
    state = matcher(large, max_branches=64)
    bitmask = xgrammar.allocate_token_bitmask(1, large.vocab_size)
    for piece in ("Let us", " see\n", "####", "Ann", ":", "......\n####", "经济", " "):
        assert state.accept_string(piece), piece
        assert state.fill_next_token_bitmask(bitmask), piece


def _plain(title: str) -> str:
    """Without what the parser may take off inside a title."""
    return " ".join(title.replace("*", "").split())
